"""The two sides of partial exchange: our values that have not left, and the peers' values that have not been applied.

`GradientWindow` gathers every gradient of this worker and is emptied part by part. Ako keeps the
sum of the last p gradients; a running vector that is zeroed slice by slice as it leaves is the
same thing with one copy instead of p.

`Accumulator` keeps the arrived contributions, per sender and round, until the main thread takes them. No shared
array gets additions from two threads, and a take is atomic: a contribution is taken exactly
once, never before its round, and always summed in worker order, so that synchronous runs repeat
bit by bit.
"""

from __future__ import annotations

import threading

import numpy as np

from peers.types import Received, Slice
from peers.vectors.buffers import BufferPool


class GradientWindow:
    """The sum of the gradients of each part since the part last left. Owned by the main thread.

    Args:
        size: number of values in the vector.
        buffers: the buffer pool for leaving parts.

    Attributes:
        is_dirty: whether any gradient may have gathered; with one part every gradient leaves at once.
    """

    def __init__(self, size: int, buffers: BufferPool | None = None):
        self._buffers = buffers or BufferPool()
        self._values = np.zeros(size, dtype=np.float32)
        self.is_dirty = False

    def pass_through(self, part: Slice, gradient: np.ndarray) -> np.ndarray:
        """Add a gradient to the window and take out the sum of one part, in one pass over memory.

        Args:
            part: the slice of the vector that leaves.
            gradient: float32 (size,); not changed, not kept.

        Returns:
            float32 (part.size,), the caller's own; the window is zero there afterwards.
        """
        leaving = gradient[part.start : part.stop]
        view = self._values[part.start : part.stop]
        taken = self._buffers.take(part.size)
        if self.is_dirty:
            np.add(view, leaving, out=taken)
            view[:] = 0
        else:
            taken[:] = leaving
        if part.size < gradient.size:
            self.is_dirty = True
            self._values[: part.start] += gradient[: part.start]
            self._values[part.stop :] += gradient[part.stop :]
        return taken

    def state(self) -> np.ndarray:
        """The whole window, float32 (size,), for a checkpoint."""
        return self._values.copy()

    def load_state(self, values: np.ndarray) -> None:
        self._values[:] = values
        self.is_dirty = bool(values.any())


class Accumulator:
    """Contributions of the peers that have not been applied yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Received] = []

    def add(self, contribution: Received) -> None:
        with self._lock:
            self._waiting.append(contribution)

    def take(self, through: int) -> list[Received]:
        """Remove and return the contributions up to round `through`, in worker and round order."""
        with self._lock:
            taken: list[Received] = []
            kept: list[Received] = []
            for item in self._waiting:
                (taken if item.round <= through else kept).append(item)
            self._waiting = kept
        return sorted(taken, key=lambda item: (item.sender, item.round))

    def has_any(self) -> bool:
        """Whether any contribution waits."""
        with self._lock:
            return bool(self._waiting)
