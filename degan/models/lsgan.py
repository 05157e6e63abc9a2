"""FeGAN's LSGAN: a dense layer, two up-sampling convolutions; four strided convolutions against it.

Follows the released code of Guirguis et al., "FeGAN: Scaling Distributed GANs" (Middleware 2020),
which takes these networks from PyTorch-GAN. For one channel of 32 x 32 pixels they have 1,049,729 and
98,113 trainable values. Two habits of that code are kept, because the published numbers come from them:

* BatchNorm's second argument is 0.8. It was meant as a momentum, and is the epsilon. So these layers
  normalise much less than usual. `norm_eps` sets it for all five; 1e-5 is what most networks use.
* The discriminator normalises after dropout, so its running statistics see the dropped maps.
"""

from __future__ import annotations

import torch
from torch import nn

from config.settings.models import Lsgan
from degan.models.weights import NORMS, start_uniform


class Generator(nn.Module):
    """Latents (batch, latent) to images (batch, channels, size, size) in [-1, 1]."""

    def __init__(self, settings: Lsgan, channels: int) -> None:
        super().__init__()
        self.latent = settings.latent
        self.start = settings.image_size // 4
        self.dense = nn.Linear(settings.latent, 128 * self.start**2)
        self.body = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128, eps=settings.norm_eps),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64, eps=settings.norm_eps),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        maps = self.dense(latents).unflatten(1, (128, self.start, self.start))
        return self.body(maps)


class Discriminator(nn.Module):
    """Images (batch, channels, size, size) to logits (batch,)."""

    def __init__(self, settings: Lsgan, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (channels, 16, 32, 64, 128)
        for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout2d(0.25)]
            if index > 0:
                layers.append(nn.BatchNorm2d(after, eps=settings.norm_eps))
        self.body = nn.Sequential(*layers)
        self.dense = nn.Linear(128 * (settings.image_size // 16) ** 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dense(self.body(images).flatten(1)).squeeze(1)


def build(settings: Lsgan, sample_shape: tuple[int, ...]) -> tuple[Generator, Discriminator]:
    """The pair for images of `sample_shape` (channels, size, size)."""
    pair = Generator(settings, sample_shape[0]), Discriminator(settings, sample_shape[0])
    for network in pair:
        _start(network)
    return pair


def _start(network: nn.Module) -> None:
    """As released: convolutions N(0, 0.02), BatchNorm N(1, 0.02); dense layers and biases as in torch."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            start_uniform(layer)
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, NORMS):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
