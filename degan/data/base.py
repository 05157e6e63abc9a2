"""A loaded data set: labels, and samples in [-1, 1] by index."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

_RESIZE_CHUNK = 2000


class Batch(NamedTuple):
    """The samples and labels of one local step.

    Attributes:
        samples: float32 (batch, *sample_shape) in [-1, 1].
        labels: int64 (batch,), each in `range(classes)`.
    """

    samples: torch.Tensor
    labels: torch.Tensor


class Source(ABC):
    """One part (training or test) of a data set, at the model's size.

    Attributes:
        labels: int64 `(n,)`, each in `range(len(classes))`.
        classes: the classes' names, in label order.
        sample_shape: `(C, H, W)` of an image, or `(2,)` of a point.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_image(self) -> bool:
        """Are the samples images (else points)?"""
        return len(self.sample_shape) == 3

    @abstractmethod
    def take(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """The samples at `indices`, in that order: float32 `(k, *sample_shape)` in [-1, 1], on the CPU.

        Raises:
            IndexError: an index is out of range.
            DataError: a sample's file has become unreadable.
        """

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The samples at `indices`, in that order, with their labels. Raises as `take`."""
        return Batch(self.take(indices), torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)]))

    @abstractmethod
    def _hash_content(self, digest) -> None:
        """Feed everything that determines the samples' values into `digest`."""

    def digest(self) -> str:
        """SHA-256 of the samples, labels, class names and shape: equal exactly for equal data."""
        digest = hashlib.sha256(repr((self.classes, self.sample_shape, len(self))).encode())
        digest.update(np.ascontiguousarray(self.labels))
        self._hash_content(digest)
        return digest.hexdigest()


class ImageSource(Source):
    """Images held as uint8; `take` converts them to floats.

    Args:
        pixels: uint8 `(n, C, H, W)`.
        labels: integers `(n,)`.
        classes: the classes' names.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
        self._pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.sample_shape = tuple(pixels.shape[1:])

    def take(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        return to_floats(self._pixels[np.asarray(indices, dtype=np.int64)])

    def _hash_content(self, digest) -> None:
        digest.update(self._pixels)


class PointSource(Source):
    """Points held as float32 `(n, 2)` in [-1, 1]."""

    def __init__(self, points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
        self._points = np.ascontiguousarray(points, dtype=np.float32)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.sample_shape = tuple(points.shape[1:])

    def take(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._points[np.asarray(indices, dtype=np.int64)])

    def _hash_content(self, digest) -> None:
        digest.update(self._points)


def to_floats(pixels: np.ndarray) -> torch.Tensor:
    """uint8 0..255 to float32 -1..1, of the same shape."""
    return torch.from_numpy(pixels).to(torch.float32).div_(127.5).sub_(1.0)


def resize(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 `(n, C, H, W)` to uint8 `(n, C, image_size, image_size)`: bilinear, antialiased, rounded."""
    if pixels.shape[2:] == (image_size, image_size):
        return pixels
    out = np.empty((*pixels.shape[:2], image_size, image_size), dtype=np.uint8)
    with torch.no_grad():
        for start in range(0, len(pixels), _RESIZE_CHUNK):
            chunk = torch.from_numpy(pixels[start : start + _RESIZE_CHUNK]).to(torch.float32)
            sized = F.interpolate(chunk, size=(image_size, image_size), mode="bilinear", antialias=True)
            out[start : start + _RESIZE_CHUNK] = sized.round_().clamp_(0, 255).to(torch.uint8).numpy()
    return out
