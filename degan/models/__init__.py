"""Generators and discriminators, one file a pair, found by the tag of their settings.

Every pair keeps the same contract. Generator: latents (batch, latent) -> samples (batch,
*sample_shape), images in [-1, 1]; its `latent` is the expected size. Discriminator: samples ->
logits (batch,). Layers are named and drawn in a fixed order, so the same seed gives the same weights.
"""

from __future__ import annotations

from torch import nn

from config import SettingsError
from config.settings.models import Dcgan, Degan, Lsgan, Mlp
from degan.models import dcgan, degan, lsgan, mlp

__all__ = ["build"]

_BUILDERS = {"lsgan": lsgan.build, "dcgan": dcgan.build, "mlp": mlp.build, "degan": degan.build}


def build(settings: Lsgan | Dcgan | Mlp | Degan, sample_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """A fresh generator and discriminator, float32, in training mode, on the CPU.

    Weights come from torch's global generator: seed it with `torch.manual_seed` before the call.

    Args:
        settings: the model block of an experiment; its tag picks the pair.
        sample_shape: (channels, size, size) with 1 or 3 channels and size = `settings.image_size`;
            (2,) for points, which only `mlp` supports.

    Raises:
        SettingsError: the model cannot make samples of this shape.
    """
    name = settings.__struct_config__.tag
    shape = tuple(sample_shape)
    if len(shape) == 1:
        if name != "mlp" or shape != (2,):
            raise SettingsError(f"model.name: {name} cannot make samples of shape {shape}; points are (2,), with mlp")
    elif len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise SettingsError(f"model.name: {name} makes square images of 1 or 3 channels, not samples of shape {shape}")
    elif shape[1] != settings.image_size:
        raise SettingsError(f"model.image_size: {settings.image_size}, but the samples are {shape[1]} x {shape[2]}")
    return _BUILDERS[name](settings, shape)
