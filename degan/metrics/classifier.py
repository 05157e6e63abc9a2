"""The feature network of the metrics: a small classifier, trained once on the data set's own training part.

Its penultimate layer gives the features of the Frechet distance, its answers the label shares. Inception was
trained on photographs, and its features mean little for 28 x 28 digits or points in a plane. The features of a network
that has learned this data set do. Such a network needs no download, and is small enough for one CPU thread. Its
distances compare only with distances from the same classifier: runs on the same data, at the same image size.

Training is deterministic on one kind of machine: own seed, one thread, the CPU. The result is kept in
`$DEGAN_CACHE` (else `~/.cache/degan`) under a hash of all its inputs, and checked when a process reads it. One
process trains while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from degan.data.base import Source
from degan.data.files import cache_folder, locked, write_whole
from degan.errors import CacheError, DataError

log = logging.getLogger(__name__)

VERSION = 1  # of the architecture and the training below; raise the number when either changes
FEATURES = 64

_SEED = 977
_LARGEST_SIDE = 32
_BATCH_SIZE = 128
_SAMPLES_SEEN = 160_000  # in all epochs together, within the bounds of the next line
_EPOCHS = (2, 25)
_LARGEST_EPOCH = 100_000
_LEARNING_RATE = 4e-3
_LOCK_TIMEOUT_S = 1800.0
_INFERENCE_BATCH = 500


class Classifier(nn.Module):
    """Three strided convolutions and a dense layer; for points, two dense layers.

    Args:
        sample_shape: `(C, H, W)` or `(2,)`; larger images are first averaged down to 32 x 32.
        classes: number of classes.
    """

    def __init__(self, sample_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.sample_shape, self.classes = tuple(sample_shape), classes
        if len(sample_shape) == 3:
            channels, side = sample_shape[0], min(sample_shape[1], _LARGEST_SIDE)
            layers: list[nn.Module] = []
            for maps in (16, 32, 64):
                layers += [
                    nn.Conv2d(channels, maps, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(maps),
                    nn.ReLU(),
                ]
                channels, side = maps, math.ceil(side / 2)
            layers += [nn.Flatten(), nn.Linear(channels * side * side, FEATURES, bias=False)]
            self.trunk = nn.Sequential(*layers, nn.BatchNorm1d(FEATURES), nn.ReLU())
        else:
            hidden = 64
            self.trunk = nn.Sequential(
                nn.Linear(sample_shape[0], hidden), nn.ReLU(), nn.Linear(hidden, FEATURES), nn.ReLU()
            )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """Penultimate layer: float32 `(batch, *sample_shape)` in [-1, 1] to float32 `(batch, 64)`, >= 0."""
        if samples.ndim == 4 and samples.shape[-1] > _LARGEST_SIDE:
            samples = F.interpolate(samples, size=(_LARGEST_SIDE, _LARGEST_SIDE), mode="area")
        return self.trunk(samples)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Class scores: float32 `(batch, *sample_shape)` to float32 `(batch, classes)`."""
        return self.head(self.features(samples))

    @torch.no_grad()
    def accuracy(self, source: Source) -> float:
        """The share of `source` that is classified correctly."""
        device = self.head.weight.device
        right = 0
        for start in range(0, len(source), _INFERENCE_BATCH):
            chosen = np.arange(start, min(start + _INFERENCE_BATCH, len(source)))
            answers = self(source.take(chosen).to(device)).argmax(dim=1).cpu().numpy()
            right += int((answers == source.labels[chosen]).sum())
        return right / len(source)


def obtain(train: Source) -> Classifier:
    """The classifier of this data: from the cache, or trained now and put into the cache.

    Several processes may ask at once: one trains, the others wait and read. For a damaged cache
    file the classifier is trained again. The caller's random state, grad mode and thread count are neither used nor
    changed.

    Args:
        train: the data set's whole training part.

    Returns:
        The classifier, on the CPU, in evaluation mode, its parameters frozen.

    Raises:
        CacheError: the cache folder cannot be written, or another process holds it for half an hour.
        DataError: a sample cannot be read.
    """
    path = cache_folder("classifiers") / f"{_key(train)}.safetensors"
    with locked(path.with_suffix(".lock"), _LOCK_TIMEOUT_S, "training the classifier"):
        classifier = _read(path, train)
        if classifier is None:
            classifier = train_classifier(train)
            try:
                write_whole(path, lambda temporary: _write(temporary, classifier))
            except OSError as error:
                raise CacheError(f"cannot write {path} ({error}); set DEGAN_CACHE to a folder with room") from None
    return classifier


def train_classifier(train: Source) -> Classifier:
    """Train a classifier on `train`, without the cache; see `obtain`.

    Raises:
        DataError: fewer than 2 samples.
    """
    if len(train) < 2:
        raise DataError(f"the metrics' classifier cannot learn from {len(train)} training samples; add some")
    log.info("training the classifier for the metrics on %d samples (once)", len(train))
    random = np.random.default_rng(_SEED)
    per_epoch = min(len(train), _LARGEST_EPOCH)
    epochs = min(max(round(_SAMPLES_SEEN / per_epoch), _EPOCHS[0]), _EPOCHS[1])
    batches = [batch for _ in range(epochs) for batch in _batches(random.permutation(len(train))[:per_epoch])]
    with _own_torch_state():
        classifier = Classifier(train.sample_shape, len(train.classes)).train()
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
        for step, batch in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = _LEARNING_RATE * _schedule(step / len(batches))
            loss = F.cross_entropy(classifier(train.take(batch)), torch.from_numpy(train.labels[batch]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return _frozen(classifier)


def _batches(order: np.ndarray) -> list[np.ndarray]:
    """Equal batches; a last incomplete batch is dropped, unless it is the only one."""
    whole = len(order) // _BATCH_SIZE
    return np.split(order[: whole * _BATCH_SIZE], whole) if whole else [order]


def _schedule(progress: float) -> float:
    """Learning rate as a share of the largest: up over the first fifth, then down to zero."""
    return progress / 0.2 if progress < 0.2 else (1 - progress) / 0.8


@contextmanager
def _own_torch_state() -> Iterator[None]:
    """Set an own seed, grad mode and a single thread; the caller's are restored afterwards."""
    threads = torch.get_num_threads()
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        torch.set_num_threads(1)  # another order of a sum gives other weights
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _frozen(classifier: Classifier) -> Classifier:
    return classifier.eval().requires_grad_(False)


# --- the cache ----------------------------------------------------------------------------------


def _key(train: Source) -> str:
    """A hash of everything that determines the weights."""
    return hashlib.sha256(f"{VERSION}:{FEATURES}:{train.digest()}".encode()).hexdigest()[:32]


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape)]).encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()


def _write(path: Path, classifier: Classifier) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in classifier.state_dict().items()}
    save_file(tensors, path, metadata={"checksum": _checksum(tensors)})


def _read(path: Path, train: Source) -> Classifier | None:
    """The classifier in the cache, or None where the file is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("checksum")
        tensors = load_file(path)
        if _checksum(tensors) != expected:
            raise ValueError("checksum differs")
        with torch.device("meta"):  # no random numbers, no work: the values come from the file
            classifier = Classifier(train.sample_shape, len(train.classes))
        classifier.load_state_dict(tensors, assign=True)
    except Exception as error:  # a new training replaces any damaged file
        log.warning("%s is damaged (%s); training the classifier again", path, " ".join(str(error).split()))
        return None
    return _frozen(classifier)
