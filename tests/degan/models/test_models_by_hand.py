"""Every pair against its layers written out as functions, by the names of their tensors; and their initial values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from config.settings.models import Dcgan, Degan, Lsgan, Mlp
from degan import models


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


class Tensors:
    """The tensors of a network by name, with copies of the running statistics that a pass in training mode changes.

    Attributes:
        layers: the kind of each tensor's layer, in the order of use, e.g. `("dense", "dense")`.
    """

    def __init__(self, network, is_training):
        self.by_name = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.is_training = is_training
        self.used: list[str] = []

    def __call__(self, name):
        self.used.append(name)
        return self.by_name[name]

    def dense(self, layer, x):
        return x @ self(f"{layer}.weight").T + self(f"{layer}.bias")

    def conv(self, layer, x, stride=1, padding=1, bias=True):
        return F.conv2d(x, self(f"{layer}.weight"), self(f"{layer}.bias") if bias else None, stride, padding)

    def up(self, layer, x, stride=2, padding=1, bias=False):
        return F.conv_transpose2d(x, self(f"{layer}.weight"), self(f"{layer}.bias") if bias else None, stride, padding)

    def norm(self, layer, x, eps=1e-5):
        scale, shift = self(f"{layer}.weight"), self(f"{layer}.bias")
        mean, var = self(f"{layer}.running_mean"), self(f"{layer}.running_var")
        self(f"{layer}.num_batches_tracked")
        if self.is_training:
            count = x.numel() / x.shape[1]
            batch_mean, batch_var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            mean.mul_(0.9).add_(0.1 * batch_mean)
            var.mul_(0.9).add_(0.1 * batch_var * count / (count - 1))
            self.by_name[f"{layer}.num_batches_tracked"] += 1
            mean, var = batch_mean, batch_var
        view = (1, -1, 1, 1)
        normed = (x - mean.view(view)) / (var.view(view) + eps).sqrt()
        return normed * scale.view(view) + shift.view(view)

    def drop(self, x):
        """Drop a quarter of the maps, and scale the others by 4/3."""
        return F.dropout2d(x, 0.25, self.is_training)


def double(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def lsgan_generator(t, latents, settings):
    size = settings.image_size // 4
    x = t.dense("dense", latents).reshape(-1, 128, size, size)
    x = leaky(t.norm("body.2", t.conv("body.1", double(x)), settings.norm_eps))
    x = leaky(t.norm("body.6", t.conv("body.5", double(x)), settings.norm_eps))
    return torch.tanh(t.conv("body.8", x))


def lsgan_discriminator(t, x, settings):
    x = t.drop(leaky(t.conv("body.0", x, 2)))
    for conv, norm in ((3, 6), (7, 10), (11, 14)):
        x = t.norm(f"body.{norm}", t.drop(leaky(t.conv(f"body.{conv}", x, 2))), settings.norm_eps)
    return t.dense("dense", x.reshape(len(x), -1))[:, 0]


def dcgan_generator(t, latents, settings):
    x = torch.relu(t.norm("body.1", t.up("body.0", latents.reshape(*latents.shape, 1, 1), 1, 0)))
    last = 9 if settings.image_size == 32 else 12
    for place in range(3, last, 3):
        x = torch.relu(t.norm(f"body.{place + 1}", t.up(f"body.{place}", x)))
    return torch.tanh(t.up(f"body.{last}", x, bias=True))


def dcgan_discriminator(t, x, settings):
    x = leaky(t.conv("body.0", x, 2))
    last = 8 if settings.image_size == 32 else 11
    for place in range(2, last, 3):
        x = leaky(t.norm(f"body.{place + 1}", t.conv(f"body.{place}", x, 2, bias=False)))
    return t.conv(f"body.{last}", x, 1, 0).reshape(len(x))


def mlp_generator(t, latents, settings):
    x = leaky(t.dense("body.2", leaky(t.dense("body.0", latents))))
    return torch.tanh(t.dense("body.4", x)).reshape(-1, 1, settings.image_size, settings.image_size)


def mlp_discriminator(t, x, settings):
    x = leaky(t.dense("body.0", x.reshape(len(x), -1)))
    return t.dense("body.4", leaky(t.dense("body.2", x)))[:, 0]


def points_generator(t, latents, settings):
    return t.dense("body.4", torch.tanh(t.dense("body.2", torch.tanh(t.dense("body.0", latents)))))


def points_discriminator(t, x, settings):
    return points_generator(t, x, settings)[:, 0]


def degan_generator(t, latents, settings):
    x = torch.relu(t.dense("dense", latents)).reshape(-1, 512, 7, 7)
    x = leaky(t.norm("body.2", t.conv("body.1", double(x))))
    x = leaky(t.norm("body.6", t.conv("body.5", double(x))))
    return torch.tanh(t.conv("body.8", x))


def degan_discriminator(t, x, settings):
    x = leaky(t.conv("body.0", x, 2, 2))
    x = leaky(t.norm("body.3", t.conv("body.2", x)))
    x = leaky(t.norm("body.6", t.conv("body.5", x, 2)))
    # There is one row of zeros below and one column of zeros to the right.
    padded = torch.zeros(*x.shape[:2], 8, 8)
    padded[:, :, :7, :7] = x
    x = leaky(t.norm("body.10", t.conv("body.9", padded, 1, 0)))
    return t.dense("dense", x.reshape(len(x), -1))[:, 0]


CASES = {
    "lsgan": (Lsgan(latent=3, norm_eps=0.4), (3, 32, 32), lsgan_generator, lsgan_discriminator),
    "lsgan 64": (Lsgan(latent=3, image_size=64), (1, 64, 64), lsgan_generator, lsgan_discriminator),
    "dcgan": (Dcgan(latent=3, width=2), (1, 32, 32), dcgan_generator, dcgan_discriminator),
    "dcgan 64": (Dcgan(latent=3, width=2, image_size=64), (3, 64, 64), dcgan_generator, dcgan_discriminator),
    "mlp": (Mlp(latent=3, hidden=5, image_size=8), (1, 8, 8), mlp_generator, mlp_discriminator),
    "points": (Mlp(latent=3, hidden=5), (2,), points_generator, points_discriminator),
    "degan": (Degan(latent=3), (1, 28, 28), degan_generator, degan_discriminator),
}


@pytest.mark.parametrize("is_training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_is_its_layers_written_out(case, is_training):
    settings, shape, *by_hand = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = models.build(settings, shape)
        for network in networks:
            assert network.training
            network.train(is_training)
            for value in (*network.parameters(), *network.buffers()):
                if value.is_floating_point():
                    # The values are large enough for every nonlinearity and every epsilon to show.
                    value.data.add_(0.3 * torch.rand_like(value))
        inputs = torch.randn(4, 3), 0.5 * torch.randn(4, *shape)
        for network, function, given in zip(networks, by_hand, inputs, strict=True):
            tensors = Tensors(network, is_training)
            torch.manual_seed(1)
            with torch.no_grad():
                found = network(given)
            torch.manual_seed(1)
            expected = function(tensors, given, settings)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
            for name, value in network.state_dict().items():
                torch.testing.assert_close(value, tensors.by_name[name], rtol=1e-3, atol=1e-5, msg=name)
            # Tensors are in the order of use, which is the order of messages and of random draws.
            assert list(network.state_dict()) == tensors.used


@pytest.mark.parametrize("case", ["lsgan", "dcgan", "mlp", "points", "degan"])
def test_every_tensor_starts_as_its_source_defines(case, monkeypatch):
    """Weights are normal or uniform, by their deviation and largest value; scales are around one, biases zeros.

    The test blanks torch's own initial values of a layer, since another release of torch may have others.
    """
    for kind in (torch.nn.Linear, torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._NormBase):
        monkeypatch.setattr(kind, "reset_parameters", leave_blank)
    settings = {
        "lsgan": Lsgan(latent=20),
        "dcgan": Dcgan(latent=20, width=16),
        "mlp": Mlp(latent=20, hidden=64, image_size=16),
        "points": Mlp(latent=20, hidden=64),
        "degan": Degan(latent=20),
    }[case]
    shape = (2,) if case == "points" else (3, settings.image_size, settings.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        networks = models.build(settings, shape)
    for network in networks:
        layers = dict(network.named_modules())
        for name, value in network.named_parameters():
            layer, _, kind = name.rpartition(".")
            is_norm = isinstance(layers[layer], torch.nn.BatchNorm2d)
            value = value.detach()
            is_conv = layers[layer].weight.dim() == 4
            if is_norm and kind == "weight":
                assert_normal(value, 1.0, name)
            elif is_norm or kind == "bias" and case in ("dcgan", "degan"):
                assert (value == 0).all(), name
            elif kind == "weight" and (is_conv or case in ("dcgan", "degan")):
                assert_normal(value, 0.0, name)
            else:
                assert_uniform(value, 1 / math.sqrt(layers[layer].weight[0].numel()), name)
        for name, value in network.named_buffers():
            assert (value == float("var" in name)).all(), name


def leave_blank(layer):
    for parameter in layer.parameters():
        parameter.data.fill_(math.nan)
    if isinstance(layer, torch.nn.BatchNorm2d):
        layer.reset_running_stats()


def assert_normal(value, mean, name):
    """The value is from N(mean, 0.02), within five standard errors."""
    count = value.numel()
    assert abs(value.mean().item() - mean) < 5 * 0.02 / math.sqrt(count), name
    if count > 1:
        assert value.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * count)), name
    assert value.std() > 0 or count == 1, name


def assert_uniform(value, bound, name):
    """The value is from U(-bound, bound): none outside, a deviation of bound / sqrt(3) within five standard errors."""
    count = value.numel()
    assert value.abs().max() <= bound, name
    assert abs(value.mean().item()) < 5 * bound / math.sqrt(3 * count), name
    if count > 10:
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 * 0.45 / math.sqrt(count)), name


COUNTS = {
    # Counts: dense (inputs + 1) * outputs, convolution inputs * outputs * kernel + biases, BatchNorm 2 * maps.
    "lsgan": (
        (3 + 1) * 128 * 64 + (128 * 128 * 9 + 128) + 2 * 128 + (128 * 64 * 9 + 64) + 2 * 64 + (64 * 3 * 9 + 3),
        (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128) * 9 + (16 + 32 + 64 + 128) + 2 * (32 + 64 + 128) + 128 * 4 + 1,
    ),
    "dcgan": (
        (3 * 8 + 8 * 4 + 4 * 2 + 2 * 1) * 16 + 2 * (8 + 4 + 2) + 1,
        (1 * 2 + 2 * 4 + 4 * 8 + 8 * 1) * 16 + 2 * (4 + 8) + 2 + 1,
    ),
    "mlp": ((3 + 1) * 5 + (5 + 1) * 5 + (5 + 1) * 64, (64 + 1) * 5 + (5 + 1) * 5 + (5 + 1)),
    "points": ((3 + 1) * 5 + (5 + 1) * 5 + (5 + 1) * 2, (2 + 1) * 5 + (5 + 1) * 5 + (5 + 1)),
}


@pytest.mark.parametrize("case", COUNTS)
def test_a_network_has_as_many_values_as_its_layers_need(case):
    settings, shape, *_ = CASES[case]
    networks = models.build(settings, shape)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks) == COUNTS[case]
