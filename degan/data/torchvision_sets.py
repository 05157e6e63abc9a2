"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision: found, downloaded once, read.

A download goes to a temporary folder under `data.root`. The files are moved one by one when all are complete,
so a process that dies half-way leaves no truncated file that looks like the data.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config.settings.data import Data
from degan.data.files import locked
from degan.errors import DataError

_DOWNLOAD_TIMEOUT_S = 3600.0
_IDX = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


@dataclass(frozen=True)
class _Set:
    reader: str
    folder: str
    files: tuple[str, ...]


_SETS = {
    "mnist": _Set("MNIST", "MNIST/raw", _IDX),
    "fashion-mnist": _Set("FashionMNIST", "FashionMNIST/raw", _IDX),
    "cifar10": _Set("CIFAR10", "cifar-10-batches-py", _BATCHES),
}
NAMES = tuple(_SETS)


def _reader(chosen: _Set) -> type:
    # Imported here, so that the other data sets do not wait for torchvision.
    from torchvision import datasets

    return getattr(datasets, chosen.reader)


def prepare(data: Data) -> None:
    """Download missing files under a file lock, if the settings ask for that; then check that every file is there.

    Raises:
        DataError: a file is missing, or the download failed.
    """
    root = _root(data)
    if data.download and _missing(data, root) is not None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"data.root: cannot make the folder {root} ({error.strerror}); name another") from None
        with locked(root / ".degan-download.lock", _DOWNLOAD_TIMEOUT_S, f"downloading {data.name}"):
            if _missing(data, root) is not None:  # otherwise another process has downloaded the files
                _download(data, root)
    _require(data, root)


def read(data: Data, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One part: pixels uint8 `(n, C, H, W)`, labels `(n,)`, and the classes' names.

    Raises:
        DataError: a file is missing or damaged.
    """
    root = _root(data)
    _require(data, root)
    chosen = _SETS[data.name]
    try:
        with warnings.catch_warnings():
            # CIFAR-10's files are pickles of an old numpy, about which a new numpy warns; torchvision
            # checks their MD5 before it opens them.
            warnings.simplefilter("ignore")
            found = _reader(chosen)(str(root), train=part == "train", download=False)
    except Exception as error:  # a damaged file makes torchvision raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{data.name}: a file in {root / chosen.folder} is damaged ({reason}); remove that folder "
            f"and fetch it again with data.download=true"
        ) from None
    pixels = np.asarray(found.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)  # (n, H, W) or (n, H, W, C)
    classes = [str(digit) for digit in range(10)] if data.name == "mnist" else list(found.classes)
    return np.ascontiguousarray(pixels), np.asarray(found.targets, dtype=np.int64), classes


def _root(data: Data) -> Path:
    """`data.root` with ~ expanded. Raises DataError: names the setting to give."""
    if data.root is None:
        folder = _SETS[data.name].folder
        raise DataError(f"data.root is not set; {data.name} needs the folder that has (or shall get) {folder} in it")
    return Path(data.root).expanduser()


def _missing(data: Data, root: Path) -> Path | None:
    """The first missing file."""
    chosen = _SETS[data.name]
    return next((path for name in chosen.files if not (path := root / chosen.folder / name).is_file()), None)


def _require(data: Data, root: Path) -> None:
    missing = _missing(data, root)
    if missing is not None:
        raise DataError(
            f"{data.name} is not in data.root: looked for {missing}; data.download=true fetches it, "
            f"or set data.root to the folder that has {_SETS[data.name].folder}"
        )


def _download(data: Data, root: Path) -> None:
    """Fetch everything into a temporary folder, then move it into place file by file."""
    chosen = _SETS[data.name]
    try:
        with tempfile.TemporaryDirectory(prefix=".degan-download-", dir=root) as temporary:
            _reader(chosen)(temporary, train=True, download=True)
            target = root / chosen.folder
            target.mkdir(parents=True, exist_ok=True)
            for name in chosen.files:
                os.replace(Path(temporary) / chosen.folder / name, target / name)
    except Exception as error:  # network, disk, checksum: torchvision raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{data.name}: could not download it to {root} ({reason}); try again, or put {chosen.folder} there by hand"
        ) from None
