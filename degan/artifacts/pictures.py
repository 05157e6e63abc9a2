"""Samples as pictures: grids of images, scatter plots of points, PNG files that are complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TILE_PIXELS = 56  # small images are magnified to at least this; a 28 x 28 digit becomes 56 x 56
GAP = 96  # grey between the tiles
PLOT_PIXELS = 512
PLOT_LIMIT = 1.25  # half the side of a scatter plot, in the units of the points
_INK = np.array([24, 90, 188], dtype=np.float32)
_STRAY = np.array([200, 30, 30], dtype=np.float32)


def to_uint8(samples: torch.Tensor | np.ndarray) -> np.ndarray:
    """Images as bytes: -1 becomes 0, 1 becomes 255, rounded; values outside are clipped, NaN is black.

    Args:
        samples: float (n, channels, height, width) in [-1, 1].

    Returns:
        uint8 (n, height, width, channels).

    Raises:
        ValueError: `samples` does not have four axes.
    """
    values = _numpy(samples)
    if values.ndim != 4:
        raise ValueError(f"to_uint8: expected images (n, channels, height, width), got shape {values.shape}")
    scaled = np.nan_to_num((values + 1) * 127.5, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(scaled.clip(0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)


def grid(samples: torch.Tensor | np.ndarray, columns: int) -> np.ndarray:
    """One picture of many samples.

    Images stand in rows of `columns` with one grey pixel between them; small ones are magnified by a
    whole factor. Points become a scatter plot of [-1.25, 1.25] squared, the first coordinate to the
    right, the second upwards. A point outside is drawn at the edge, in red. `columns` has no effect on points.

    Args:
        samples: float (n, channels, height, width) with 1 or 3 channels, or (n, 2), in [-1, 1]; n >= 1.
        columns: tiles a row, at least 1.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: another shape, no samples, or `columns` below 1.
    """
    values = _numpy(samples)
    images = values.ndim == 4 and values.shape[1] in (1, 3)
    points = values.ndim == 2 and values.shape[1] == 2
    if not (images or points) or len(values) == 0:
        raise ValueError(f"grid: expected images (n, 1 or 3, height, width) or points (n, 2), got {values.shape}")
    if columns < 1:
        raise ValueError(f"grid: columns must be at least 1, got {columns}")
    return _tiles(to_uint8(values), columns) if images else _scatter(values)


def save_png(path: str | Path, array: np.ndarray) -> None:
    """Write `array` as a PNG; a reader sees the old file or the new file, never half of one.

    Args:
        path: the file; its folder must exist.
        array: uint8 (height, width, 3), or (height, width) for grey.

    Raises:
        OSError: the folder is missing, full or read-only. Nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(array).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _numpy(samples: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().to("cpu", torch.float32).numpy()
    return np.asarray(samples, dtype=np.float32)


def _tiles(images: np.ndarray, columns: int) -> np.ndarray:
    factor = max(1, -(-TILE_PIXELS // max(images.shape[1:3])))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), GAP, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image  # one channel spreads over three
    return sheet


def _scatter(points: np.ndarray) -> np.ndarray:
    points = points[np.isfinite(points).all(axis=1)]
    stray = (np.abs(points) > PLOT_LIMIT).any(axis=1)
    sheet = np.full((PLOT_PIXELS, PLOT_PIXELS, 3), 255.0, dtype=np.float32)
    for value in (-1.0, 0.0, 1.0):  # the unit square and the axes
        at = _pixel(np.float32(value))
        sheet[at, :] = sheet[:, PLOT_PIXELS - 1 - at] = 215.0 if value else 235.0
    for chosen, colour in ((~stray, _INK), (stray, _STRAY)):
        # Each point covers a small disc with half its ink, so that dense places are darker.
        clear = np.ones((PLOT_PIXELS, PLOT_PIXELS), dtype=np.float32)
        x, y = _pixel(points[chosen, 0]), PLOT_PIXELS - 1 - _pixel(points[chosen, 1])
        for across in range(-2, 3):
            for down in range(-2, 3):
                if across * across + down * down <= 5:
                    at = (y + down).clip(0, PLOT_PIXELS - 1), (x + across).clip(0, PLOT_PIXELS - 1)
                    np.multiply.at(clear, at, 0.5)
        sheet = sheet * clear[..., None] + colour * (1 - clear[..., None])
    return np.rint(sheet).astype(np.uint8)


def _pixel(values: np.ndarray) -> np.ndarray:
    clipped = np.clip(values, -PLOT_LIMIT, PLOT_LIMIT)
    return np.rint((clipped / PLOT_LIMIT + 1) / 2 * (PLOT_PIXELS - 1)).astype(np.int64)
