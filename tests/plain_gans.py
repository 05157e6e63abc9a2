"""GANs in plain torch, written by hand: the reference of the modes with a leader.

The initial weights of a pair, the seeds of its random numbers and the layers of other networks than perceptrons are
the product's; all else is not. Losses, penalties, Adam and the moving average are written out.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from degan import models
from degan.learners.gan_pair import GanPair
from degan.seeds import spawn_seed
from tests.learner_views import tensors_of


class Adam:
    """Kingma and Ba 2015, algorithm 1; plain descent where `betas` is None."""

    def __init__(self, module: nn.Module, rate: float, betas: tuple[float, float] | None):
        self.weights, self.rate, self.betas, self.steps = list(module.parameters()), rate, betas, 0
        self.first, self.second = ([torch.zeros_like(w) for w in self.weights] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor]) -> None:
        self.steps += 1
        for at, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            if self.betas is None:
                weight -= self.rate * gradient
                continue
            one, two = self.betas
            self.first[at] = one * self.first[at] + (1 - one) * gradient
            self.second[at] = two * self.second[at] + (1 - two) * gradient**2
            mean, square = self.first[at] / (1 - one**self.steps), self.second[at] / (1 - two**self.steps)
            weight -= self.rate * mean / (square.sqrt() + 1e-8)


def layers(settings, sample_shape) -> list[nn.Module]:
    """The modules of G and D: perceptrons written out here, others as the product builds them."""
    model = settings.model
    if model.__struct_config__.tag != "mlp":
        return list(models.build(model, sample_shape))
    values, hidden = sample_shape[0] * sample_shape[1] * sample_shape[2], model.hidden

    def body(inputs, outputs):
        between = nn.LeakyReLU(0.2), nn.LeakyReLU(0.2)
        return nn.Linear(inputs, hidden), between[0], nn.Linear(hidden, hidden), between[1], nn.Linear(hidden, outputs)

    return [
        nn.Sequential(*body(model.latent, values), nn.Tanh(), nn.Unflatten(1, sample_shape)),
        nn.Sequential(nn.Flatten(1), *body(values, 1), nn.Flatten(0)),
    ]


class PlainGan:
    """One worker's G, D, optimisers and moving average.

    Attributes:
        g, d, average: modules; `average` has G's layers.
        g_adam, d_adam: their optimisers.
    """

    def __init__(self, settings, sample_shape: tuple[int, ...], worker: int):
        self.settings, optimiser = settings, settings.optimiser
        # The initial values of the layers do not count, nor do the random numbers that are drawn for them.
        with torch.random.fork_rng(devices=[]):
            self.g, self.d = layers(settings, sample_shape)
        first = tensors_of(GanPair(settings, sample_shape, worker, torch.device("cpu")))
        for name, module in (("generator.", self.g), ("discriminator.", self.d)):
            values = [tensor for key, tensor in first.items() if key.startswith(name)]
            with torch.no_grad():
                for mine, theirs in zip(module.state_dict().values(), values, strict=True):
                    mine.copy_(theirs)
        self.average = copy.deepcopy(self.g)
        betas = None if optimiser.algorithm == "sgd" else optimiser.betas
        self.g_adam = Adam(self.g, optimiser.generator_lr, betas)
        self.d_adam = Adam(self.d, optimiser.discriminator_lr, betas)
        self._latents = torch.Generator().manual_seed(spawn_seed(settings.seed, "latents", worker))
        self._mixing = torch.Generator().manual_seed(spawn_seed(settings.seed, "mixing", worker))
        self.averaged = 0

    # --- losses -------------------------------------------------------------------------------

    def fakes(self, count: int) -> torch.Tensor:
        """Samples of G, with their graph."""
        return self.g(torch.randn(count, self.settings.model.latent, generator=self._latents))

    def d_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """The loss that D minimises."""
        at_real, at_fake, name = self.d(real), self.d(fake), self.settings.loss
        if name == "least_squares":
            return ((at_real - 1) ** 2).mean() / 2 + (at_fake**2).mean() / 2
        if name == "hinge":
            return (1 - at_real).clamp(min=0).mean() + (1 + at_fake).clamp(min=0).mean()
        if name == "wasserstein_gp":
            mix = torch.rand(len(real), 1, 1, 1, generator=self._mixing)
            between = (mix * real + (1 - mix) * fake).requires_grad_(True)
            (slopes,) = torch.autograd.grad(self.d(between).sum(), between, create_graph=True)
            lengths = slopes.flatten(1).square().sum(1).sqrt()
            weight = self.settings.regularisation.gradient_penalty
            return at_fake.mean() - at_real.mean() + weight * ((lengths - 1) ** 2).mean()
        ones, zeros = torch.ones_like(at_real), torch.zeros_like(at_fake)
        return F.binary_cross_entropy_with_logits(at_real, ones) + F.binary_cross_entropy_with_logits(at_fake, zeros)

    def g_loss(self, fake: torch.Tensor) -> torch.Tensor:
        """The loss that G minimises."""
        at_fake, name = self.d(fake), self.settings.loss
        if name == "least_squares":
            return ((at_fake - 1) ** 2).mean() / 2
        if name in ("hinge", "wasserstein_gp"):
            return -at_fake.mean()
        return F.binary_cross_entropy_with_logits(at_fake, torch.ones_like(at_fake))

    # --- steps --------------------------------------------------------------------------------

    def learn_d(self, real: torch.Tensor, fake: torch.Tensor) -> float:
        """A step of D."""
        loss = self.d_loss(real, fake.detach())
        self.d_adam.step(torch.autograd.grad(loss, self.d_adam.weights))
        return float(loss.detach())

    def learn_g(self, loss: torch.Tensor) -> float:
        """A step of G."""
        self.g_adam.step(torch.autograd.grad(loss, self.g_adam.weights))
        return float(loss.detach())

    def learn(self, real: torch.Tensor, is_g_first: bool) -> tuple[float, float]:
        """A step of both on one batch of fakes: of G and D as they were, or of D, then of G; returns their losses."""
        fake = self.fakes(len(real))
        if not is_g_first:
            return self.learn_d(real, fake), self.learn_g(self.g_loss(fake))
        of_d, of_g = self.d_loss(real, fake.detach()), self.g_loss(fake)
        gradients = torch.autograd.grad(of_d, self.d_adam.weights)
        self.learn_g(of_g)
        self.d_adam.step(gradients)
        return float(of_d.detach()), float(of_g.detach())

    @torch.no_grad()
    def take_average(self) -> None:
        """Update G's moving average after one step: its decay grows to the one in the settings."""
        self.averaged += 1
        decay = min(self.settings.optimiser.ema_decay, (1 + self.averaged) / (10 + self.averaged))
        for mine, theirs in zip(self.average.state_dict().values(), self.g.state_dict().values(), strict=True):
            mine.copy_(decay * mine + (1 - decay) * theirs if mine.is_floating_point() else mine)

    # --- as vectors ---------------------------------------------------------------------------

    def weights(self) -> torch.Tensor:
        """The weights of G, then those of D, in module order; a copy."""
        return torch.cat([w.detach().reshape(-1) for w in (*self.g_adam.weights, *self.d_adam.weights)])

    @torch.no_grad()
    def load_weights(self, values: torch.Tensor) -> None:
        """The inverse of `weights`."""
        tensors = [*self.g_adam.weights, *self.d_adam.weights]
        for tensor, part in zip(tensors, values.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def flat(module: nn.Module, has_statistics: bool = True) -> torch.Tensor:
    """A network's weights, then its running statistics, as one vector."""
    found = [*module.parameters(), *(b for b in module.buffers() if has_statistics and b.is_floating_point())]
    return torch.cat([tensor.detach().reshape(-1) for tensor in found])
