"""The networks, and how the workers train them."""

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


class GnLenet(Settings, frozen=True, tag_field="name", tag="gn_lenet"):
    """decentralizepy's GN-LeNet: three 5 x 5 convolutions with GroupNorm and one dense layer."""

    image_size: Annotated[int, msgspec.Meta(ge=8, le=256)] = 28


class Resnet(Settings, frozen=True, tag_field="name", tag="resnet"):
    """A small residual network; `depth` layers in three stages, of which the first has `width` maps."""

    depth: Literal[8, 14, 20, 32, 44, 56] = 8
    # With 4 maps the CPU's convolutions of torch 2.14 (oneDNN) write beyond their memory.
    width: Annotated[int, msgspec.Meta(ge=8, le=1024, multiple_of=8)] = 16
    norm: Literal["group", "batch"] = "group"
    image_size: Annotated[int, msgspec.Meta(ge=8, le=256)] = 32


class MlpClassifier(Settings, frozen=True, tag_field="name", tag="mlp"):
    """Two dense layers; also the classifier for two-dimensional points."""

    hidden: Width = 256
    image_size: Annotated[int, msgspec.Meta(ge=4, le=256)] = 28


class Optimiser(Settings, frozen=True):
    """Adam (or plain SGD): `lr` is a classifier's rate, the other rates and the average's decay are a GAN's."""

    algorithm: Literal["adam", "sgd"] = "adam"
    lr: Rate = 1e-3
    generator_lr: Rate = 2e-4
    discriminator_lr: Rate = 2e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    ema_decay: Fraction = 0.999


class Regularisation(Settings, frozen=True):
    """Penalties on the discriminator's gradient at the data."""

    r1_gamma: Weight = 0.0
    gradient_penalty: Weight = 10.0
