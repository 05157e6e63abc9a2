"""Arrays that are used again instead of allocated anew: fresh memory costs a page fault every 4 KiB.

A round's vectors live shortly, are made in one thread and dropped in another, and are large, so that the
allocator gives their memory back to the system each time; faulting 17 MB in again takes longer than
copying them.
"""

from __future__ import annotations

import threading

import numpy as np


class BufferPool:
    """float32 arrays by size. Thread-safe.

    Args:
        most: how many arrays are kept at most; an array that is given beyond that is dropped.
    """

    def __init__(self, most: int = 8):
        self._most = most
        self._lock = threading.Lock()
        self._arrays: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """float32 (size,) with any content; the array belongs to the caller."""
        with self._lock:
            for index, array in enumerate(self._arrays):
                if array.size == size:
                    return self._arrays.pop(index)
        return np.empty(size, dtype=np.float32)

    def give(self, array: np.ndarray) -> None:
        """Take an array back that has no other user any more. Views of other arrays are not kept."""
        if array.base is not None:
            return
        with self._lock:
            self._arrays.append(array)
            # The oldest arrays go first, so that sizes without any demand do not stay.
            del self._arrays[: -self._most]
