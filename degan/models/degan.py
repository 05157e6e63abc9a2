"""The DEGAN paper's pair for 28 x 28 images: dense to 7 x 7 x 512, two up-sampling convolutions.

Follows Faezi, Bijani and Dolati, "DEGAN: Decentralized generative adversarial networks"
(Neurocomputing 419, 2021) and its released code. The nine weight arrays, without biases and BatchNorm,
have 4,240,320 values for latent 100 and one channel.

Departures: the released code exchanged and applied only those nine arrays, so its biases and
BatchNorm parameters never left their first values; here they are trained and exchanged like all the others.
TensorFlow's "same" pads a strided convolution unevenly (one pixel less at the top and left for 5 x 5);
here strided ones are padded evenly, and only the 2 x 2 one, which has no even padding, pads below and
to the right as TensorFlow does.
"""

from __future__ import annotations

import torch
from torch import nn

from config.settings.models import Degan
from degan.models.weights import start_normal


class Generator(nn.Module):
    """Latents (batch, latent) to images (batch, channels, 28, 28) in [-1, 1]."""

    def __init__(self, settings: Degan, channels: int) -> None:
        super().__init__()
        self.latent = settings.latent
        self.dense = nn.Linear(settings.latent, 512 * 7 * 7)
        self.body = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(512, 256, 3, padding=1),
            nn.BatchNorm2d(256),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(256, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Conv2d(128, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.dense(latents)).unflatten(1, (512, 7, 7))
        return self.body(maps)


class Discriminator(nn.Module):
    """Images (batch, channels, 28, 28) to logits (batch,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 5, stride=2, padding=2),  # 28 -> 14
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),  # 14 -> 7
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(128, 256, 2),  # 8 -> 7
            nn.BatchNorm2d(256),
            nn.LeakyReLU(0.2),
        )
        self.dense = nn.Linear(256 * 7 * 7, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dense(self.body(images).flatten(1)).squeeze(1)


def build(settings: Degan, sample_shape: tuple[int, ...]) -> tuple[Generator, Discriminator]:
    """The pair for images of `sample_shape` (channels, 28, 28)."""
    pair = Generator(settings, sample_shape[0]), Discriminator(sample_shape[0])
    for network in pair:
        start_normal(network)
    return pair
