"""The classifiers' networks: their layers by hand, and the samples that they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from config import SettingsError
from config.settings.models import GnLenet, MlpClassifier, Resnet
from degan.models import classifiers


def built(settings, shape, classes=10, seed=1):
    torch.manual_seed(seed)
    return classifiers.build(settings, shape, classes)


def values(network):
    return sum(parameter.numel() for parameter in network.parameters())


def norms(network, kind):
    return [layer for layer in network.modules() if isinstance(layer, kind)]


def test_gn_lenet_is_that_of_the_paper_on_cifar():
    network = built(GnLenet(image_size=32), (3, 32, 32))
    convolutions = 3 * 32 * 25 + 32 + 32 * 32 * 25 + 32 + 32 * 64 * 25 + 64
    assert values(network) == convolutions + 2 * (32 + 32 + 64) + 64 * 4 * 4 * 10 + 10
    assert [(norm.num_groups, norm.num_channels) for norm in norms(network, nn.GroupNorm)] == [
        (2, 32),
        (2, 32),
        (2, 64),
    ]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [8, 28, 31])
def test_gn_lenet_has_the_size_of_the_samples(size):
    network = built(GnLenet(image_size=size), (1, size, size), classes=3)
    assert network.head.in_features == 64 * (size // 8) ** 2
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 3)


@pytest.mark.parametrize(("depth", "width"), [(8, 16), (20, 8)])
def test_a_resnet_has_its_depth_and_width(depth, width):
    network = built(Resnet(depth=depth, width=width, image_size=16), (3, 16, 16))
    blocks = (depth - 2) // 6
    assert len(network.body) == 3 * blocks
    # Two convolutions a block, the first one and the dense layer are `depth` layers.
    counted = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(counted) + 1 == depth
    assert [layer.out_channels for layer in counted] == [width] * (2 * blocks + 1) + [2 * width] * 2 * blocks + [
        4 * width
    ] * 2 * blocks
    assert network.head.in_features == 4 * width
    maps = network.body(torch.zeros(2, width, 16, 16))
    assert maps.shape == (2, 4 * width, 4, 4) and network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_a_block_adds_its_shortcut():
    block = classifiers.Block(4, 4, 1, "group")
    for layer in (block.first, block.second):
        nn.init.zeros_(layer.weight)
    maps = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(maps), maps)


@pytest.mark.parametrize(
    ("norm", "kind", "other"), [("group", nn.GroupNorm, nn.BatchNorm2d), ("batch", nn.BatchNorm2d, nn.GroupNorm)]
)
def test_a_resnet_has_the_normalisation_of_its_setting(norm, kind, other):
    network = built(Resnet(width=8, norm=norm, image_size=8), (1, 8, 8))
    assert len(norms(network, kind)) == 1 + 2 * 3 and not norms(network, other)


def test_the_groups_divide_the_maps():
    assert [classifiers._norm("group", maps).num_groups for maps in (3, 4, 12, 16, 64)] == [1, 4, 4, 8, 8]


def test_an_mlp_looks_at_images_and_at_points():
    assert values(built(MlpClassifier(hidden=5, image_size=4), (1, 4, 4), 3)) == 16 * 5 + 5 + 5 * 3 + 3
    assert built(MlpClassifier(hidden=5), (2,), 8)(torch.zeros(4, 2)).shape == (4, 8)


@pytest.mark.parametrize(
    ("settings", "shape", "classes", "line"),
    [
        (GnLenet(), (2,), 8, "classifier.name: gn_lenet looks at images; points are for mlp"),
        (Resnet(), (2,), 8, "classifier.name: resnet looks at images; points are for mlp"),
        (GnLenet(), (1, 32, 32), 10, "classifier.image_size: 28, but the samples are 32 x 32"),
        (MlpClassifier(), (1, 8, 8), 10, "classifier.image_size: 28, but the samples are 8 x 8"),
        (MlpClassifier(image_size=8), (1, 8, 8), 1, "classifier.name: mlp tells classes apart, and the data has 1"),
    ],
)
def test_samples_that_it_cannot_look_at(settings, shape, classes, line):
    with pytest.raises(SettingsError) as caught:
        classifiers.build(settings, shape, classes)
    assert str(caught.value) == line


@pytest.mark.parametrize("settings", [GnLenet(image_size=8), Resnet(image_size=8), MlpClassifier(image_size=8)])
def test_one_seed_gives_one_network(settings):
    one, same, other = (built(settings, (1, 8, 8), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
