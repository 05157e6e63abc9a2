"""Every pair keeps the contract: shapes, ranges, the published counts, and equal weights from equal seeds."""

import math

import pytest
import torch

from config import SettingsError
from config.settings.models import Dcgan, Degan, Lsgan, Mlp
from degan import models

SMALL = {"lsgan": Lsgan(), "dcgan": Dcgan(latent=8, width=4), "mlp": Mlp(latent=8, hidden=16), "degan": Degan(latent=8)}
PAIRS = [
    *[
        (SMALL[name], (channels, SMALL[name].image_size, SMALL[name].image_size))
        for name in SMALL
        for channels in (1, 3)
    ],
    (Lsgan(image_size=64), (1, 64, 64)),
    (Dcgan(latent=8, width=4, image_size=64), (3, 64, 64)),
    (Mlp(latent=8, hidden=16, image_size=8), (1, 8, 8)),
    (Mlp(latent=8, hidden=16), (2,)),
]
NAMES = [f"{settings.__struct_config__.tag}-{'x'.join(map(str, shape))}" for settings, shape in PAIRS]


def count(module):
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


@pytest.mark.parametrize(("settings", "shape"), PAIRS, ids=NAMES)
def test_shapes_ranges_and_gradients(settings, shape):
    torch.manual_seed(0)
    generator, discriminator = models.build(settings, shape)
    assert generator.latent == settings.latent
    fakes = generator(torch.randn(3, generator.latent))
    logits = discriminator(fakes)
    assert fakes.shape == (3, *shape) and fakes.dtype == torch.float32
    assert logits.shape == (3,)
    if len(shape) == 3:
        assert fakes.abs().max() <= 1
    logits.sum().backward()
    for name, value in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert value.grad is not None and value.grad.isfinite().all(), name


@pytest.mark.parametrize(("settings", "shape"), PAIRS, ids=NAMES)
def test_a_seed_fixes_the_weights(settings, shape):
    def weights(seed):
        torch.manual_seed(seed)
        return [pair.state_dict() for pair in models.build(settings, shape)]

    first, again, other = weights(1), weights(1), weights(2)
    for one, two, three in zip(first, again, other, strict=True):
        assert list(one) == list(two) == list(three)
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(not torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize(("settings", "shape"), PAIRS, ids=NAMES)
def test_evaluation_treats_every_sample_by_itself(settings, shape):
    torch.manual_seed(0)
    generator, discriminator = (network.eval() for network in models.build(settings, shape))
    latents = torch.randn(4, generator.latent)
    with torch.no_grad():
        together = generator(latents)
        torch.testing.assert_close(together[:1], generator(latents[:1]))
        torch.testing.assert_close(discriminator(together)[:1], discriminator(together[:1]))


def test_lsgan_has_the_counts_of_fegan():
    generator, discriminator = models.build(Lsgan(), (1, 32, 32))
    assert count(generator) == 1_049_729
    assert count(discriminator) == 98_113


def test_lsgan_uses_its_epsilon_everywhere():
    pair = models.build(Lsgan(norm_eps=0.25), (1, 32, 32))
    found = [m.eps for network in pair for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert found == [0.25] * 5


def test_degan_has_the_nine_arrays_of_the_released_code():
    pair = models.build(Degan(), (1, 28, 28))
    arrays = [value for network in pair for value in network.parameters() if value.dim() > 1]
    assert len(arrays) == 9
    assert sum(value.numel() for value in arrays) == 4_240_320
    # Our networks have more parameters: the biases of nine layers, and scale and shift of five BatchNorms.
    biases = 25_088 + 256 + 128 + 1 + 64 + 64 + 128 + 256 + 1
    assert sum(map(count, pair)) == 4_240_320 + biases + 2 * (256 + 128 + 64 + 128 + 256)


@pytest.mark.parametrize("size", [32, 64])
def test_dcgan_doubles_downwards_and_has_no_useless_bias(size):
    generator, discriminator = models.build(Dcgan(latent=8, width=4, image_size=size), (3, size, size))
    ups = [m for m in generator.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    downs = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    widths = [4, 8, 16, 32][: int(math.log2(size)) - 2]
    assert [layer.out_channels for layer in ups] == [*widths[::-1], 3]
    assert [layer.out_channels for layer in downs] == [*widths, 1]
    assert [layer.bias is None for layer in ups] == [True] * len(widths) + [False]
    assert [layer.bias is None for layer in downs] == [False] + [True] * (len(widths) - 1) + [False]


@pytest.mark.parametrize("settings", [Dcgan(latent=64, width=32), Degan()], ids=["dcgan", "degan"])
def test_weights_are_normal_with_a_deviation_of_a_fiftieth(settings):
    torch.manual_seed(0)
    size = settings.image_size
    for network in models.build(settings, (1, size, size)):
        for name, value in network.named_parameters():
            if value.numel() < 1000 or value.dim() == 1:
                continue
            assert abs(value.mean().item()) < 5 * 0.02 / math.sqrt(value.numel()), name
            assert value.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * value.numel())), name


def test_points_are_not_bounded():
    torch.manual_seed(0)
    generator, _ = models.build(Mlp(latent=2, hidden=64), (2,))
    with torch.no_grad():
        generator.body[-1].weight.mul_(100)
        assert generator(torch.randn(100, 2)).abs().max() > 1.5


@pytest.mark.parametrize(
    ("settings", "shape", "begins"),
    [
        (Dcgan(), (2,), "model.name"),
        (Mlp(), (3,), "model.name"),
        (Dcgan(), (4, 32, 32), "model.name"),
        (Dcgan(), (1, 32, 28), "model.name"),
        (Dcgan(), (1, 28, 28), "model.image_size"),
        (Mlp(image_size=8), (1, 28, 28), "model.image_size"),
    ],
)
def test_a_network_that_cannot_be_built_names_the_setting(settings, shape, begins):
    with pytest.raises(SettingsError, match=f"^{begins}"):
        models.build(settings, shape)
