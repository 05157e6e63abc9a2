"""Lipizzaner's four-layer perceptron, for images of any size and for points in the plane.

Follows Schmiedlechner et al., "Lipizzaner: A System That Scales Robust Generative Adversarial Network
Training" (2018, arXiv:1811.12843), section 4, and its released code, where "four layers" counts the
layers of units: input, two hidden ones of 256, output. So there are three dense layers a network.

* Images (the released `FourLayerPerceptron`): LeakyReLU(0.2), and tanh at the generator's output.
* Points (its `CircularProblem`): tanh between the layers, and no tanh at the generator's output. The
  targets lie well inside [-1, 1]. A bounded output would hide a diverging generator, and collect its
  points on a square frame. A smooth activation moves points through the plane without creases.

Departures: the hidden width and the latent size come from the settings for both (released: 256 and 64
for images, 128 and 256 for points); the discriminator returns logits, since the sigmoid belongs to the
loss; weights are uniform as in torch, with the formula written out here.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from config.settings.models import Mlp
from degan.models.weights import start_uniform


def _layers(inputs: int, hidden: int, outputs: int, points: bool) -> list[nn.Module]:
    between = nn.Tanh if points else lambda: nn.LeakyReLU(0.2)
    return [nn.Linear(inputs, hidden), between(), nn.Linear(hidden, hidden), between(), nn.Linear(hidden, outputs)]


class Generator(nn.Module):
    """Latents (batch, latent) to samples (batch, *sample_shape): images in [-1, 1], or unbounded points."""

    def __init__(self, settings: Mlp, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent = settings.latent
        self.sample_shape = sample_shape
        points = len(sample_shape) == 1
        layers = _layers(settings.latent, settings.hidden, math.prod(sample_shape), points)
        self.body = nn.Sequential(*layers, *([] if points else [nn.Tanh()]))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.body(latents).unflatten(1, self.sample_shape)


class Discriminator(nn.Module):
    """Samples (batch, *sample_shape) to logits (batch,)."""

    def __init__(self, settings: Mlp, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(*_layers(math.prod(sample_shape), settings.hidden, 1, len(sample_shape) == 1))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.body(samples.flatten(1)).squeeze(1)


def build(settings: Mlp, sample_shape: tuple[int, ...]) -> tuple[Generator, Discriminator]:
    """The pair for images (channels, size, size) or points (2,)."""
    pair = Generator(settings, sample_shape), Discriminator(settings, sample_shape)
    for network in pair:
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                start_uniform(layer)
    return pair
