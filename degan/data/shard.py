"""One worker's endless batches: every epoch's order is a pure function of (seed, worker, epoch).

The position is therefore two integers, and a resumed worker continues with exactly the batch that the
stopped worker would have taken next.
"""

from __future__ import annotations

import numpy as np

from degan.data.base import Batch, Source
from degan.errors import DataError

_PURPOSE = 0x5A4D  # keeps this stream of random numbers apart from others drawn from the same seed


class Shard:
    """An infinite iterator over a worker's samples; an epoch's last incomplete batch is dropped.

    Args:
        source: the data.
        indices: integers `(k,)`, the samples of `source` that this worker holds.
        seed: of the experiment, >= 0.
        worker: this worker's number, >= 0.
        batch_size: samples in a batch.

    Raises:
        DataError: the shard holds fewer than `batch_size` samples.
    """

    def __init__(self, source: Source, indices: np.ndarray, seed: int, worker: int, batch_size: int) -> None:
        if batch_size > len(indices):
            raise DataError(
                f"worker {worker} holds {len(indices)} samples, less than one batch of {batch_size}; "
                f"lower data.batch_size, use fewer workers, or choose a data.split that gives it more"
            )
        self._source = source
        self._indices = np.array(indices, dtype=np.int64)
        self._seed, self._worker, self._batch_size = seed, worker, batch_size
        self._epoch, self._batch = 0, 0
        self._order = self._permutation(0)

    def __len__(self) -> int:
        """How many samples this worker holds."""
        return len(self._indices)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch; at least 1."""
        return len(self._indices) // self._batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, from 0."""
        return self._epoch + self._batch // self.batches_per_epoch

    @property
    def drawn(self) -> int:
        """How many samples have been taken in all, earlier epochs included."""
        return (self._epoch * self.batches_per_epoch + self._batch) * self._batch_size

    def next_batch(self) -> Batch:
        """The next samples, float32 `(batch, *sample_shape)` in [-1, 1], with their labels, int64 `(batch,)`."""
        if self._batch == self.batches_per_epoch:
            self._epoch, self._batch = self._epoch + 1, 0
            self._order = self._permutation(self._epoch)
        start = self._batch * self._batch_size
        batch = self._source.batch(self._order[start : start + self._batch_size])
        self._batch += 1
        return batch

    def state(self) -> dict[str, int]:
        """The position as plain integers, with the values that the position depends on."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "batch_size": self._batch_size,
            "samples": len(self._indices),
        }

    def load_state(self, state: dict[str, int]) -> None:
        """Continue at the position of `state`.

        Raises:
            DataError: the state is of another batch size or another number of samples.
        """
        for key, words, mine in (
            ("batch_size", "batches of", self._batch_size),
            ("samples", "a shard of", len(self._indices)),
        ):
            if state[key] != mine:
                raise DataError(
                    f"worker {self._worker}: the checkpoint was made with {words} {state[key]} samples, this run "
                    f"has {words} {mine}; resume with the same data settings or start a new run"
                )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._order = self._permutation(self._epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        """The shard's indices in the order of `epoch`."""
        random = np.random.default_rng(np.random.SeedSequence([self._seed, self._worker, epoch, _PURPOSE]))
        return self._indices[random.permutation(len(self._indices))]
