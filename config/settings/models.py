"""The networks, and how they are trained."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from config.settings.base import Fraction, Rate, Settings, Weight, Width


class Lsgan(Settings, frozen=True, tag_field="name", tag="lsgan"):
    """FeGAN's LSGAN: dense to 128 maps, two up-sampling convolutions; 1,049,729 + 98,113 values on MNIST."""

    latent: Width = 100
    image_size: Literal[32, 64] = 32
    norm_eps: Rate = 0.8


class Dcgan(Settings, frozen=True, tag_field="name", tag="dcgan"):
    """Transposed-convolution DCGAN; `width` is the number of maps at the largest resolution."""

    latent: Width = 64
    width: Width = 32
    image_size: Literal[32, 64] = 32


class Mlp(Settings, frozen=True, tag_field="name", tag="mlp"):
    """Lipizzaner's four-layer perceptron; also the model for two-dimensional points."""

    latent: Width = 64
    hidden: Width = 256
    image_size: Annotated[int, msgspec.Meta(ge=4, le=256)] = 28


class Degan(Settings, frozen=True, tag_field="name", tag="degan"):
    """The DEGAN paper's convolutional pair for 28 x 28 images, with its biases and BatchNorm trained."""

    latent: Width = 100
    image_size: Literal[28] = 28


class Optimiser(Settings, frozen=True):
    """Adam (or plain SGD) for both networks, and the decay of the generator's moving average."""

    algorithm: Literal["adam", "sgd"] = "adam"
    generator_lr: Rate = 2e-4
    discriminator_lr: Rate = 2e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    ema_decay: Fraction = 0.999


class Regularisation(Settings, frozen=True):
    """Penalties on the discriminator's gradient at the data."""

    r1_gamma: Weight = 0.0
    gradient_penalty: Weight = 10.0
