"""Who holds which samples: a pure function of the labels, the number of workers and the seed.

Every worker computes the whole table from the same arguments and takes its own row. Parts are disjoint
and, together, everything (for `classes`: everything of the classes that some worker lists); no part is
empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config.settings import Classes, Dirichlet, Iid, Own, Shards
from degan.errors import DataError

Split = Iid | Classes | Dirichlet | Shards

MAX_REDRAWS = 1000
_PURPOSE = 0x5B17  # keeps this stream of random numbers apart from others drawn from the same seed


def split(kind: Split, labels: np.ndarray, workers: int, seed: int) -> list[np.ndarray]:
    """Share the samples out.

    Args:
        kind: `settings.data.split`.
        labels: int64 `(n,)`, >= 0.
        workers: how many, >= 1.
        seed: of the experiment, >= 0.

    Returns:
        For each worker the sorted indices of its samples, int64 `(k,)`, k >= 1. With `own` these are all
        samples: another worker's indices mean its own files, which are not here.

    Raises:
        DataError: a group names a class that the data does not have, or some worker would get nothing
            (for `dirichlet`: fewer than `min_samples`).

    Source: `dirichlet`, Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution",
    2019, in the per-class form of Yurochkin et al. 2019; `shards`, McMahan et al. 2017, section 3.
    """
    if isinstance(kind, Own):
        return [np.arange(len(labels))] * workers
    if len(labels) < workers:
        raise DataError(f"{len(labels)} samples cannot be shared out between {workers} workers; use fewer workers")
    random = np.random.default_rng(np.random.SeedSequence([seed, _PURPOSE]))
    if isinstance(kind, Iid):
        parts = np.array_split(random.permutation(len(labels)), workers)
    elif isinstance(kind, Classes):
        parts = _by_classes(kind, labels, workers, random)
    elif isinstance(kind, Dirichlet):
        parts = _by_dirichlet(kind, labels, workers, random)
    elif isinstance(kind, Shards):
        parts = _by_shards(kind, labels, workers, random)
    else:
        raise TypeError(f"no split {type(kind).__name__}; add it to degan/data/splits.py")
    for worker, part in enumerate(parts):
        if len(part) == 0:
            raise DataError(f"data.split leaves worker {worker} of {workers} without samples; use fewer workers")
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def class_counts(labels: np.ndarray, parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """How many samples of each class each worker holds: int64 `(workers, classes)`.

    Args:
        labels: int64 `(n,)`, each below `classes`.
        parts: indices into `labels`, one array a worker.
        classes: how many classes there are.
    """
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts]).astype(np.int64)


def _by_classes(kind: Classes, labels: np.ndarray, workers: int, random: np.random.Generator) -> list[np.ndarray]:
    """Each class, shuffled, in equal shares for the workers whose group lists it."""
    present = np.unique(labels)
    if not kind.groups:
        raise DataError("data.split.groups is empty; list at least one group of classes")
    for number, group in enumerate(kind.groups):
        if not group:
            raise DataError(f"data.split.groups[{number}] is empty; give it a class or remove it")
        for name in group:
            if name not in present:
                raise DataError(
                    f"data.split.groups[{number}] names class {name}, but the data has {_classes_in_words(present)}"
                )
    parts: list[list[np.ndarray]] = [[] for _ in range(workers)]
    for name in present:
        holders = [worker for worker in range(workers) if name in kind.groups[worker % len(kind.groups)]]
        if not holders:
            continue
        shares = np.array_split(random.permutation(np.flatnonzero(labels == name)), len(holders))
        for position, share in enumerate(shares):
            # The first shares are the larger ones by at most one: do not always give them to the same worker.
            parts[holders[(position + int(name)) % len(holders)]].append(share)
    return [np.concatenate(part) for part in parts]


def _by_dirichlet(kind: Dirichlet, labels: np.ndarray, workers: int, random: np.random.Generator) -> list[np.ndarray]:
    """Per class, contiguous pieces in proportions from Dir(alpha); drawn again until all have enough."""
    if workers * kind.min_samples > len(labels):
        raise DataError(
            f"data.split.min_samples={kind.min_samples} for each of {workers} workers needs more than the "
            f"{len(labels)} samples that there are; lower it or use fewer workers"
        )
    members = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    sizes = np.array([len(member) for member in members])
    for _ in range(MAX_REDRAWS):
        shares = random.dirichlet(np.full(workers, kind.alpha), size=len(members))  # (classes, workers)
        cuts = np.rint(np.cumsum(shares, axis=1)[:, :-1] * sizes[:, None]).astype(np.int64)
        cuts = np.minimum(cuts, sizes[:, None])
        edges = np.concatenate([np.zeros_like(sizes)[:, None], cuts, sizes[:, None]], axis=1)
        if np.diff(edges, axis=1).sum(axis=0).min() >= kind.min_samples:
            break
    else:
        raise DataError(
            f"data.split: in {MAX_REDRAWS} draws with alpha={kind.alpha:g} some of the {workers} workers always had "
            f"fewer than min_samples={kind.min_samples}; raise alpha, lower min_samples, or use fewer workers"
        )
    pieces = [np.split(random.permutation(member), cut) for member, cut in zip(members, cuts, strict=True)]
    return [np.concatenate([piece[worker] for piece in pieces]) for worker in range(workers)]


def _by_shards(kind: Shards, labels: np.ndarray, workers: int, random: np.random.Generator) -> list[np.ndarray]:
    """Contiguous cuts of the samples in label order, dealt out at random."""
    count = kind.per_worker * workers
    if count > len(labels):
        raise DataError(
            f"data.split.per_worker={kind.per_worker} for {workers} workers makes {count} cuts of only "
            f"{len(labels)} samples; lower it or use fewer workers"
        )
    cuts = np.array_split(np.argsort(labels, kind="stable"), count)
    dealt = random.permutation(count).reshape(workers, kind.per_worker)
    return [np.concatenate([cuts[number] for number in row]) for row in dealt]


def _classes_in_words(present: np.ndarray) -> str:
    """ "classes 0 to 9", or the list where there are gaps."""
    if len(present) == present[-1] - present[0] + 1:
        return f"classes {present[0]} to {present[-1]}"
    return "classes " + ", ".join(str(name) for name in present)
