"""Losses against values by hand and closed forms; penalties against critics with a known gradient."""

import math

import pytest
import torch
from torch import nn

from degan.learners import losses

REAL, FAKE = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, -3.0])


def softplus(x):
    return math.log1p(math.exp(x))


BY_HAND = {
    "non_saturating": (
        (softplus(-2) + softplus(0) + softplus(1)) / 3 + (softplus(1) + softplus(-3)) / 2,
        (softplus(-1) + softplus(3)) / 2,
    ),
    "least_squares": (0.5 * (1 + 1 + 4) / 3 + 0.5 * (1 + 9) / 2, 0.5 * (0 + 16) / 2),
    "hinge": ((0 + 1 + 2) / 3 + (2 + 0) / 2, 1.0),
    "wasserstein_gp": (-1.0 - 1 / 3, 1.0),
}


@pytest.mark.parametrize("name", losses.NAMES)
def test_by_hand(name):
    for_discriminator, for_generator = BY_HAND[name]
    assert losses.discriminator_loss(name, REAL, FAKE).item() == pytest.approx(for_discriminator, rel=1e-6)
    assert losses.generator_loss(name, FAKE).item() == pytest.approx(for_generator, rel=1e-6)


def test_non_saturating_is_cross_entropy_and_least_squares_is_half_the_squared_error():
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(FAKE)
    for name, criterion, factor in (
        ("non_saturating", nn.BCEWithLogitsLoss(), 1.0),
        ("least_squares", nn.MSELoss(), 0.5),
    ):
        expected = factor * (criterion(REAL, ones) + criterion(FAKE, zeros))
        torch.testing.assert_close(losses.discriminator_loss(name, REAL, FAKE), expected)
        torch.testing.assert_close(losses.generator_loss(name, FAKE), factor * criterion(FAKE, zeros + 1))


@pytest.mark.parametrize("name", losses.NAMES)
def test_each_side_pulls_its_own_way(name):
    real, fake = torch.full((4,), 0.5, requires_grad=True), torch.full((4,), 0.5, requires_grad=True)
    losses.discriminator_loss(name, real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # Descent raises reals, lowers fakes.
    fake.grad = None
    losses.generator_loss(name, fake).backward()
    assert (fake.grad < 0).all()


def test_non_saturating_keeps_its_gradient_where_the_discriminator_is_sure():
    fake = torch.tensor([-200.0], requires_grad=True)
    loss = losses.generator_loss("non_saturating", fake)
    loss.backward()
    assert loss.item() == pytest.approx(200) and fake.grad.item() == pytest.approx(-1)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="non_saturating"):
        losses.discriminator_loss("hinges", REAL, FAKE)
    with pytest.raises(ValueError, match="wasserstein_gp"):
        losses.generator_loss("hinges", FAKE)


class Linear(nn.Module):
    """A critic x -> scale * <direction, x> + 3, with |direction| = 1: its gradient has norm `scale` everywhere."""

    def __init__(self, shape, scale):
        super().__init__()
        direction = torch.randn(shape)
        self.weight = nn.Parameter(scale * direction / direction.norm())

    def forward(self, samples):
        return (samples * self.weight).flatten(1).sum(1) + 3


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_penalties_of_a_linear_critic(shape, scale):
    torch.manual_seed(0)
    critic = Linear(shape, scale)
    real, fake = torch.randn(6, *shape), torch.randn(6, *shape)
    penalty = losses.gradient_penalty(critic, real, fake, torch.Generator().manual_seed(0))
    assert penalty.item() == pytest.approx((scale - 1) ** 2, abs=1e-5)
    assert losses.r1_penalty(critic, real).item() == pytest.approx(scale**2, rel=1e-5, abs=1e-9)
    penalty.backward()
    assert critic.weight.grad.isfinite().all()  # The gradient is finite where the norm is 0, too.


def test_penalties_reach_the_parameters_and_not_the_samples():
    torch.manual_seed(0)
    critic = Linear((2,), 2.0)
    real, fake = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    losses.r1_penalty(critic, real).backward()
    # |w|^2 has the gradient 2 w; (|w| - 1)^2 has 2 (|w| - 1) w / |w|, here w.
    torch.testing.assert_close(critic.weight.grad, 2 * critic.weight.detach())
    critic.weight.grad = None
    losses.gradient_penalty(critic, real, fake, torch.Generator().manual_seed(0)).backward()
    torch.testing.assert_close(critic.weight.grad, critic.weight.detach())
    assert real.grad is None and fake.grad is None


def test_r1_of_a_square_is_its_own_mean():
    class Square(nn.Module):
        def forward(self, samples):
            return 0.5 * samples.square().sum(1)

    real = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert losses.r1_penalty(Square(), real).item() == pytest.approx((25 + 1) / 2)


def test_the_gradient_penalty_looks_between_the_samples_and_follows_its_generator():
    seen = []

    def critic(samples):
        seen.append(samples.detach())
        return samples.square().sum(1)

    real, fake = torch.zeros(500, 1), torch.ones(500, 1)
    first = losses.gradient_penalty(critic, real, fake, torch.Generator().manual_seed(1))
    again = losses.gradient_penalty(critic, real, fake, torch.Generator().manual_seed(1))
    assert torch.equal(first, again) and torch.equal(seen[0], seen[1])
    assert 0 <= seen[0].min() < 0.05 and 0.95 < seen[0].max() <= 1  # One weight a sample, over the whole line.
    # With u uniform on [0, 1] and the gradient 2u the mean of (2u - 1)^2 is 1/3.
    assert first.item() == pytest.approx(1 / 3, abs=0.05)


def test_the_gradient_penalty_wants_pairs():
    with pytest.raises(ValueError, match="pair up"):
        losses.gradient_penalty(Linear((2,), 1.0), torch.zeros(4, 2), torch.zeros(1, 2), torch.Generator())


@pytest.mark.parametrize("name", losses.NAMES)
def test_r1_works_with_every_loss(name):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0))
    real, fake = torch.randn(5, 2), torch.randn(5, 2)
    loss = losses.discriminator_loss(name, critic(real), critic(fake)) + 5 * losses.r1_penalty(critic, real)
    loss.backward()
    assert critic[0].weight.grad.abs().sum() > 0
