"""Classifiers, found by the tag of their settings: samples (batch, *sample_shape) -> logits (batch, classes).

Layers are named and drawn in a fixed order, so the same seed gives the same weights.

* `gn_lenet`: three 5 x 5 convolutions (32, 32, 64 maps), each with GroupNorm of two groups, ReLU and 2 x 2 pooling,
  then one dense layer. Source: Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning" (ICML 2020),
  whose GN-LeNet decentralizepy uses; departure: the dense layer's size follows from the samples.
* `resnet`: a small residual network for small images: a 3 x 3 convolution, three stages of `(depth - 2) / 6` blocks
  with `width`, 2 and 4 times `width` maps, the mean over the image, one dense layer. Source: He et al., "Deep Residual
  Learning for Image Recognition" (CVPR 2016), section 4.2; departures: a strided 1 x 1 convolution where a block
  changes its shape, and `norm: group` (Wu and He, "Group Normalization", ECCV 2018), which keeps no statistics of a
  worker's own data.
* `mlp`: two dense layers with ReLU between them; also for points.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from config import SettingsError
from config.settings.models import GnLenet, MlpClassifier, Resnet
from degan.models.weights import start_uniform

GROUPS = 2
# The largest number of groups; fewer where this does not divide the number of maps.
RESNET_GROUPS = 8


class GnLenetNetwork(nn.Module):
    """Images (batch, channels, size, size) to logits (batch, classes)."""

    def __init__(self, sample_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = [sample_shape[0], 32, 32, 64]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 5, padding=2), nn.GroupNorm(GROUPS, after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(64 * (sample_shape[1] // 8) ** 2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).flatten(1))


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: (batch, before, n, n) to (batch, after, n / stride, n / stride)."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = _norm(norm, after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = _norm(norm, after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        changed = F.relu(self.first_norm(self.first(maps)))
        return F.relu(self.second_norm(self.second(changed)) + self.shortcut(maps))


class ResnetNetwork(nn.Module):
    """Images (batch, channels, size, size) to logits (batch, classes)."""

    def __init__(self, settings: Resnet, channels: int, classes: int) -> None:
        super().__init__()
        width, blocks = settings.width, (settings.depth - 2) // 6
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem_norm = _norm(settings.norm, width)
        layers, before = [], width
        for stage in range(3):
            for place in range(blocks):
                after, stride = width * 2**stage, 2 if stage and not place else 1
                layers.append(Block(before, after, stride, settings.norm))
                before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.body(F.relu(self.stem_norm(self.stem(images))))
        return self.head(maps.mean(dim=(2, 3)))


class MlpNetwork(nn.Module):
    """Samples (batch, *sample_shape) to logits (batch, classes)."""

    def __init__(self, settings: MlpClassifier, sample_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(math.prod(sample_shape), settings.hidden)
        self.head = nn.Linear(settings.hidden, classes)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(samples.flatten(1))))


def _norm(name: str, maps: int) -> nn.Module:
    return nn.BatchNorm2d(maps) if name == "batch" else nn.GroupNorm(math.gcd(RESNET_GROUPS, maps), maps)


def build(settings: GnLenet | Resnet | MlpClassifier, sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A fresh classifier, float32, in training mode, on the CPU; convolutions and dense layers start uniform.

    Weights come from torch's global generator: seed it with `torch.manual_seed` before the call.

    Args:
        settings: the classifier block of an experiment; its tag picks the network.
        sample_shape: (channels, size, size) with size = `settings.image_size`; (2,) for points (only `mlp`).
        classes: number of classes, at least 2.

    Raises:
        SettingsError: the classifier does not support samples of this shape, or there is only one class.
    """
    name, shape = settings.__struct_config__.tag, tuple(sample_shape)
    if classes < 2:
        raise SettingsError(f"classifier.name: {name} tells classes apart, and the data has {classes}")
    if len(shape) == 1 and name != "mlp":
        raise SettingsError(f"classifier.name: {name} looks at images; points are for mlp")
    if len(shape) == 3 and shape[1:] != (settings.image_size, settings.image_size):
        size = settings.image_size
        raise SettingsError(f"classifier.image_size: {size}, but the samples are {shape[1]} x {shape[2]}")
    match settings:
        case GnLenet():
            network = GnLenetNetwork(shape, classes)
        case Resnet():
            network = ResnetNetwork(settings, shape[0], classes)
        case _:
            network = MlpNetwork(settings, shape, classes)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            start_uniform(layer)
    return network
