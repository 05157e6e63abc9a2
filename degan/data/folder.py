"""A folder of images, one sub-folder a class, as a data set: any size, any mode, decoded when asked for.

Layouts: `root/train/<class>/*` with `root/test/<class>/*` or `root/val/<class>/*`; or `root/<class>/*`
alone. Where no folder is set apart for testing, a tenth of every class is held out: the files whose path's
hash is smallest. So the choice depends neither on the disk's order nor on a seed, and new files change it
little.

An image is turned upright (EXIF), laid on white where it is transparent, cropped to the middle square,
and resized (Lanczos). The data set has 1 channel exactly if the files of all parts are in grey modes.
Decoded images stay in memory as uint8.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from config.settings.data import Data
from degan.data.base import Source, to_floats
from degan.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_HOLD_OUT = 0.1
_LAYOUT = "one sub-folder a class, in data.root itself or in data.root/train (and data.root/test)"
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_HASHED_BYTES = 32 * 1024


@dataclass(frozen=True)
class Listing:
    """The files of both parts: `(path relative to root, label)` each, in a fixed order."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]


def scan(data: Data) -> Listing:
    """List the images below `data.root`, without opening any.

    Raises:
        DataError: no such folder, no class folders, a class without images, or a test class that is
            not a training class.
    """
    if data.root is None:
        raise DataError(f"data.root is not set; data.name=folder needs {_LAYOUT}")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}; it should hold {_LAYOUT}")
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None) if train != root else None
    names = _class_names(train)
    if not names:
        raise DataError(f"data.root: {train} has no sub-folders with images in them; expected {_LAYOUT}")
    classes = tuple(names)
    files = {name: _images(root, train / name) for name in names}
    if test is None:
        chosen = {name: _held_out(paths) for name, paths in files.items()}
        held_out = {name: [path for path in paths if path in chosen[name]] for name, paths in files.items()}
        kept = {name: [path for path in paths if path not in chosen[name]] for name, paths in files.items()}
        return _checked(Listing(root, classes, _labelled(classes, kept), _labelled(classes, held_out)))
    unknown = [name for name in _class_names(test) if name not in names]
    if unknown:
        raise DataError(f"{test / unknown[0]}: there is no class {unknown[0]!r} in {train}; add it or remove this one")
    tested = {name: _images(root, test / name) for name in names}
    return _checked(Listing(root, classes, _labelled(classes, files), _labelled(classes, tested)))


class FolderSource(Source):
    """One part of a folder; an image is decoded when it is first taken, and then kept as uint8.

    Args:
        listing: from `scan`.
        image_size: side of the resulting images, in pixels.
        part: "train" or "test".

    Raises:
        DataError: a file is not a readable image (here, or in `take`).
    """

    def __init__(self, listing: Listing, image_size: int, part: str) -> None:
        files = listing.train if part == "train" else listing.test
        self._root = listing.root
        self._paths = [path for path, _ in files]
        self.labels = np.array([label for _, label in files], dtype=np.int64)
        self.classes = listing.classes
        grey = all(_is_grey(listing.root / path) for path, _ in (*listing.train, *listing.test))
        self.sample_shape = (1 if grey else 3, image_size, image_size)
        # A page of an empty array takes no memory until an image is written there.
        self._pixels = np.empty((len(files), *self.sample_shape), dtype=np.uint8)
        self._decoded = np.zeros(len(files), dtype=bool)

    def take(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        chosen = np.asarray(indices, dtype=np.int64)
        for index in np.unique(chosen[~self._decoded[chosen]]):
            self._pixels[index] = _decode(self._root / self._paths[index], self.sample_shape)
            self._decoded[index] = True
        return to_floats(self._pixels[chosen])

    def _hash_content(self, digest) -> None:
        """Names, sizes, and the files' first and last 32 KiB.

        Image files are compressed, so an edited picture differs in its size or near its end. Reading all
        of a folder of large photographs at every start would take longer than the evaluation.
        """
        for name in self._paths:
            path = self._root / name
            try:
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    digest.update(f"{name}\0{size}\0".encode())
                    file.seek(0)
                    digest.update(file.read(_HASHED_BYTES))
                    if size > _HASHED_BYTES:
                        file.seek(max(_HASHED_BYTES, size - _HASHED_BYTES))
                        digest.update(file.read(_HASHED_BYTES))
            except OSError as error:
                raise _unreadable(path, error) from None


# --- finding files ------------------------------------------------------------------------------


def _class_names(folder: Path) -> list[str]:
    """The sub-folders that have images in them, sorted by name; hidden sub-folders do not count."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and _images(folder, entry, first=True)
    )


def _images(root: Path, folder: Path, first: bool = False) -> list[str]:
    """The images in `folder` and below, as sorted paths relative to `root`; with `first`, at most one."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                found.append((Path(place) / name).relative_to(root).as_posix())
                if first:
                    return found
    return sorted(found)


def _held_out(paths: list[str]) -> set[str]:
    """A tenth of the files; at least one where there are two or more files."""
    count = max(round(_HOLD_OUT * len(paths)), 1 if len(paths) > 1 else 0)
    return set(sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())[:count])


def _labelled(classes: Sequence[str], files: dict[str, list[str]]) -> tuple[tuple[str, int], ...]:
    return tuple((path, label) for label, name in enumerate(classes) for path in files[name])


def _checked(listing: Listing) -> Listing:
    if not listing.test:
        raise DataError(f"data.root: {listing.root} leaves no images for testing; give every class two or more")
    return listing


# --- decoding -----------------------------------------------------------------------------------


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} is not a readable image ({reason}); replace or remove it")


def _is_grey(path: Path) -> bool:
    """Is the file's mode a grey one? Reads only the header."""
    try:
        with Image.open(path) as image:
            return image.mode in _GREY_MODES
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _unreadable(path, error) from None


def _decode(path: Path, sample_shape: tuple[int, ...]) -> np.ndarray:
    """The image as uint8 `(C, size, size)`."""
    channels, size, _ = sample_shape
    try:
        with Image.open(path) as opened:
            opened.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(opened)
            image = _flat(upright, "L" if channels == 1 else "RGB")
            square = ImageOps.fit(image, (size, size), method=Image.Resampling.LANCZOS)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _unreadable(path, error) from None
    pixels = np.asarray(square, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """The image in "L" or "RGB", without transparency; 16-bit greys keep their upper 8 bits."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode in ("La", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return image.convert(mode)
