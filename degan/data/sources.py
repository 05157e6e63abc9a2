"""The data sets by name: `prepare` makes sure that a data set is there, `load` reads one part of the set.

| name | samples | held out for "test" |
| --- | --- | --- |
| digits | 1,797 grey 8 x 8 images that come with scikit-learn | a seeded fifth |
| mnist, fashion-mnist | 70,000 grey 28 x 28 images | the data set's own 10,000 |
| cifar10 | 60,000 RGB 32 x 32 images | the data set's own 10,000 |
| folder | any images, in one folder a class | `test` or `val`, else a tenth of each class |
| gaussian-ring | points around 8 places on a circle | 2,048 of their own |

To add a data set: its name in `config.settings.data.Data`, a reader `(data, image_size, part) -> Source`
here, and a line in `_READERS`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from config.settings.data import Data
from degan.data import folder, torchvision_sets
from degan.data.base import ImageSource, PointSource, Source, resize
from degan.errors import DataError

Part = Literal["train", "test"]

_DIGITS_SEED = 20231
_DIGITS_TEST = 0.2

RING_MODES = 8
RING_RADIUS = 0.8
RING_STD = 0.02
_RING_SAMPLES = {"train": 8192, "test": 2048}
_RING_SEED = {"train": 20232, "test": 20233}


def load(data: Data, image_size: int, part: Part) -> Source:
    """One part of a data set, at the model's size.

    Args:
        data: the settings; only `name` and `root` are read here.
        image_size: side of the square images, in pixels; points ignore it.
        part: "train" or "test"; the two are disjoint.

    Raises:
        DataError: the data is missing or not readable; the message says what to do.
    """
    if part not in ("train", "test"):
        raise ValueError(f'part is "train" or "test", not {part!r}')
    return _READERS[data.name](data, image_size, part)


def prepare(data: Data, image_size: int) -> None:
    """Download missing data if `data.download` asks for that; then check that the data is there.

    Safe when several processes call it at once: one downloads, the others wait.

    Args:
        data: the settings.
        image_size: the model's; an argument so that a data set may check the size.

    Raises:
        DataError: the data is missing, or could not be downloaded.
    """
    if data.name in torchvision_sets.NAMES:
        torchvision_sets.prepare(data)
    elif data.name == "folder":
        folder.scan(data)
    elif data.name == "digits":
        _load_digits()


def _load_digits():
    """scikit-learn's bundled digits. Raises DataError: names the package to install."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("data.name=digits comes with scikit-learn; pip install scikit-learn, or name another") from None
    return load_digits()


def _digits(data: Data, image_size: int, part: Part) -> Source:
    """8 x 8 images with values 0..16; the hold-out is the same for every seed and worker."""
    digits = _load_digits()
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(digits.target))
    held_out = math.ceil(_DIGITS_TEST * len(order))
    chosen = np.sort(order[:held_out] if part == "test" else order[held_out:])
    pixels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)[:, None]  # (n, 1, 8, 8)
    return ImageSource(resize(pixels, image_size), digits.target[chosen], [str(name) for name in digits.target_names])


def _torchvision(data: Data, image_size: int, part: Part) -> Source:
    """MNIST, Fashion-MNIST or CIFAR-10, as torchvision reads them."""
    pixels, labels, classes = torchvision_sets.read(data, part)
    return ImageSource(resize(pixels, image_size), labels, classes)


def _folder(data: Data, image_size: int, part: Part) -> Source:
    """Images in one folder a class."""
    return folder.FolderSource(folder.scan(data), image_size, part)


def _gaussian_ring(data: Data, image_size: int, part: Part) -> Source:
    """Equal numbers around 8 places on a circle of radius 0.8, each with a standard deviation of 0.02.

    Source: Metz et al., "Unrolled Generative Adversarial Networks", 2017, section 3.1, which has radius 2
    and deviation 0.02; scaled here into [-1, 1], with wider modes so that a classifier sees some spread.
    """
    random = np.random.default_rng(_RING_SEED[part])
    labels = np.arange(_RING_SAMPLES[part]) % RING_MODES
    angles = labels * (2 * np.pi / RING_MODES)
    centres = RING_RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (n, 2)
    points = np.clip(centres + RING_STD * random.standard_normal(centres.shape), -1, 1)
    return PointSource(points, labels, [str(mode) for mode in range(RING_MODES)])


_READERS = {
    "digits": _digits,
    "mnist": _torchvision,
    "fashion-mnist": _torchvision,
    "cifar10": _torchvision,
    "folder": _folder,
    "gaussian-ring": _gaussian_ring,
}
