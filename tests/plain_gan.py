"""One worker's GAN training in plain torch, written by hand from the papers: the oracle of `degan.learners`.

Nothing of degan is imported: the networks are `nn.Sequential`, every parameter has a gradient, an Adam step and a
moving average of its own, and the losses are torch's own criteria or the formula.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

MLP, DCGAN = (1, 8, 8), (1, 32, 32)
LATENT = 4


def seed_of(*path) -> int:
    """The seed of one purpose: eight bytes of BLAKE2b of the path as Python writes it, little end first, halved."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=8).digest(), "little") // 2


def mlp() -> tuple[nn.Module, nn.Module]:
    """The perceptron pair with 8 hidden units, for images of 8 x 8."""
    generator = nn.Sequential(
        *(nn.Linear(LATENT, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 64)),
        *(nn.Tanh(), nn.Unflatten(1, MLP)),
    )
    discriminator = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)),
        nn.Flatten(0),
    )
    return generator, discriminator


def dcgan() -> tuple[nn.Module, nn.Module]:
    """The convolutional pair of width 2, for images of 32 x 32."""

    def up(before, after, stride=2, padding=1):
        layer = nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False)
        return layer, nn.BatchNorm2d(after), nn.ReLU()

    def down(before, after):
        return nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)

    generator = nn.Sequential(
        *(nn.Unflatten(1, (LATENT, 1, 1)), *up(LATENT, 8, 1, 0), *up(8, 4), *up(4, 2)),
        *(nn.ConvTranspose2d(2, 1, 4, 2, 1), nn.Tanh()),
    )
    discriminator = nn.Sequential(
        *(nn.Conv2d(1, 2, 4, 2, 1), nn.LeakyReLU(0.2), *down(2, 4), *down(4, 8), nn.Conv2d(8, 1, 4), nn.Flatten(0))
    )
    return generator, discriminator


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy every parameter and buffer of `source` into the one of `target` at the same place."""
    for kind in ("named_parameters", "named_buffers"):
        theirs, mine = list(getattr(source, kind)()), list(getattr(target, kind)())
        assert [name.rpartition(".")[2] for name, _ in theirs] == [name.rpartition(".")[2] for name, _ in mine]
        for (_, value), (name, own) in zip(theirs, mine, strict=True):
            assert value.shape == own.shape, name
            own.data.copy_(value.data)


def loss_of_discriminator(name, real, fake):
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    if name == "non_saturating":
        return F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    if name == "least_squares":
        return F.mse_loss(real, ones) / 2 + F.mse_loss(fake, zeros) / 2
    if name == "hinge":
        return (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    assert name == "wasserstein_gp"
    return fake.mean() - real.mean()


def loss_of_generator(name, fake):
    if name == "non_saturating":
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    if name == "least_squares":
        return F.mse_loss(fake, torch.ones_like(fake)) / 2
    return -fake.mean()


def input_gradients(network, samples):
    """The gradient d logit / d sample of each sample, as a row."""
    samples = samples.detach().clone().requires_grad_(True)
    logits = network(samples)
    (found,) = torch.autograd.grad(logits, samples, torch.ones_like(logits), create_graph=True)
    return found.reshape(len(samples), -1)


@dataclass
class Trained:
    """A network with its optimiser, written out.

    Attributes:
        moments: for each parameter the means of its gradients and of their squares, as Adam keeps them.
        steps: the number of steps that the optimiser has taken.
    """

    network: nn.Module
    algorithm: str
    rate: float
    betas: tuple[float, float]
    moments: list[list[torch.Tensor]] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self):
        self.moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in self.network.parameters()]

    def gradient_of(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(self.network.parameters()), retain_graph=True))

    @torch.no_grad()
    def apply(self, gradients: list[torch.Tensor]) -> None:
        """A step of Kingma & Ba 2015, algorithm 1; or of plain descent."""
        self.steps += 1
        first, second = self.betas
        for parameter, gradient, moments in zip(self.network.parameters(), gradients, self.moments, strict=True):
            if self.algorithm == "sgd":
                parameter.sub_(self.rate * gradient)
                continue
            moments[0] = first * moments[0] + (1 - first) * gradient
            moments[1] = second * moments[1] + (1 - second) * gradient * gradient
            mean = moments[0] / (1 - first**self.steps)
            square = moments[1] / (1 - second**self.steps)
            parameter.sub_(self.rate * mean / (square.sqrt() + 1e-8))


class PlainGan:
    """One worker.

    Args:
        settings: the experiment; only the numbers of loss, regularisation and optimiser are read.
        pair: the pair whose initial weights are copied.
        worker: its number, for the latents and the mixing weights.
    """

    def __init__(self, settings, pair, worker: int = 0):
        optimiser, self.penalties = settings.optimiser, settings.regularisation
        self.loss, self.decay = settings.loss, optimiser.ema_decay
        networks = mlp() if pair.sample_shape == MLP else dcgan()
        for source, target in zip((pair.generator.module, pair.discriminator.module), networks, strict=True):
            copy_weights(source, target)
        rates = optimiser.generator_lr, optimiser.discriminator_lr
        self.generator, self.discriminator = (
            Trained(network, optimiser.algorithm, rate, optimiser.betas)
            for network, rate in zip(networks, rates, strict=True)
        )
        self.average = copy.deepcopy(networks[0])
        self.averaged = 0
        self.latents = torch.Generator().manual_seed(seed_of(settings.seed, "latents", worker))
        self.mixing = torch.Generator().manual_seed(seed_of(settings.seed, "mixing", worker))

    def draw(self, count: int) -> torch.Tensor:
        return self.generator.network(torch.randn(count, LATENT, generator=self.latents))

    def gradient_of_discriminator(self, real, fake):
        """The gradient of D, a tensor a parameter, and its loss."""
        network, fake = self.discriminator.network, fake.detach()
        loss = loss_of_discriminator(self.loss, network(real), network(fake))
        if self.loss == "wasserstein_gp" and self.penalties.gradient_penalty > 0:
            place = torch.rand(len(real), *[1] * (real.dim() - 1), generator=self.mixing)
            slopes = input_gradients(network, place * real + (1 - place) * fake)
            loss = loss + self.penalties.gradient_penalty * (slopes.pow(2).sum(1).sqrt() - 1).pow(2).mean()
        if self.penalties.r1_gamma > 0:
            loss = loss + self.penalties.r1_gamma / 2 * input_gradients(network, real).pow(2).sum(1).mean()
        return self.discriminator.gradient_of(loss), loss.item()

    def gradient_of_generator(self, fake):
        loss = loss_of_generator(self.loss, self.discriminator.network(fake))
        return self.generator.gradient_of(loss), loss.item()

    def step(self, real: torch.Tensor, updates: str) -> dict[str, float]:
        """One step with this batch; returns the losses."""
        fake = self.draw(len(real))
        for_discriminator, d_loss = self.gradient_of_discriminator(real, fake)
        if updates == "alternating":
            self.discriminator.apply(for_discriminator)
        for_generator, g_loss = self.gradient_of_generator(fake)
        if updates == "simultaneous":
            self.discriminator.apply(for_discriminator)
        self.generator.apply(for_generator)
        self.note_average()
        return {"d_loss": d_loss, "g_loss": g_loss}

    @torch.no_grad()
    def note_average(self) -> None:
        """Update G's moving average; its decay grows over the first steps: 2/11, 3/12, 4/13, ..."""
        self.averaged += 1
        decay = min(self.decay, (1 + self.averaged) / (10 + self.averaged))
        for kind in ("parameters", "buffers"):
            ours, theirs = getattr(self.average, kind)(), getattr(self.generator.network, kind)()
            for own, value in zip(ours, theirs, strict=True):
                if value.is_floating_point():
                    own.copy_(decay * own + (1 - decay) * value)

    def networks(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator.network,
            "discriminator": self.discriminator.network,
            "ema": self.average,
        }


def flat(tensors) -> torch.Tensor:
    """The values of tensors, one after the other."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
