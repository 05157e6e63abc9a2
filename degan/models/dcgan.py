"""DCGAN: strided (transposed) convolutions and BatchNorm all the way, no pooling, no dense hidden layer.

Follows Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (ICLR 2016, arXiv:1511.06434), section 3 and figure 1: BatchNorm in both networks
except at the generator's output and the discriminator's input, ReLU and tanh in the generator,
LeakyReLU(0.2) in the discriminator, weights from N(0, 0.02). The paper's generator for 64 x 64 is
`width: 128`. Departures: kernels are 4 x 4, not 5 x 5 (every output pixel then has the same number of
inputs, which avoids a checkerboard; the authors' own Torch code has the same kernels). A layer before
BatchNorm has no bias, because BatchNorm would subtract the bias.
"""

from __future__ import annotations

import torch
from torch import nn

from config.settings.models import Dcgan
from degan.models.weights import start_normal


def _widths(settings: Dcgan) -> list[int]:
    """Numbers of maps at 4 x 4, 8 x 8, ... up to half the image size, where the number is `settings.width`."""
    halvings = settings.image_size.bit_length() - 4  # 32 -> 2, 64 -> 3
    return [settings.width * 2**level for level in range(halvings, -1, -1)]


class Generator(nn.Module):
    """Latents (batch, latent) to images (batch, channels, size, size) in [-1, 1]."""

    def __init__(self, settings: Dcgan, channels: int) -> None:
        super().__init__()
        self.latent = settings.latent
        widths = _widths(settings)
        layers = [
            nn.ConvTranspose2d(settings.latent, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
        self.body = nn.Sequential(*layers)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.body(latents[:, :, None, None])  # (batch, latent, 1, 1) -> 4 x 4 -> ... -> size x size


class Discriminator(nn.Module):
    """Images (batch, channels, size, size) to logits (batch,)."""

    def __init__(self, settings: Dcgan, channels: int) -> None:
        super().__init__()
        widths = _widths(settings)[::-1]
        layers = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4))
        self.body = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).flatten()  # (batch, 1, 1, 1) -> (batch,)


def build(settings: Dcgan, sample_shape: tuple[int, ...]) -> tuple[Generator, Discriminator]:
    """The pair for images of `sample_shape` (channels, size, size)."""
    pair = Generator(settings, sample_shape[0]), Discriminator(settings, sample_shape[0])
    for network in pair:
        start_normal(network)
    return pair
