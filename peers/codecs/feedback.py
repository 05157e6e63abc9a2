"""Error feedback: the values that a lossy codec drops are added when the same part leaves next.

So nothing is lost over a run: the delivered values plus the values kept here are the produced values.

Source: Seide et al., "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes
SignSGD and other Gradient Compression Schemes", ICML 2019.
"""

from __future__ import annotations

import numpy as np

from peers.codecs.base import Codec
from peers.types import Buffer, Slice


class ErrorFeedback:
    """A codec with a memory of its dropped values. Used by one thread at a time.

    Args:
        codec: the codec; an exact one needs and gets no memory.
        size: number of values in the vector.
    """

    def __init__(self, codec: Codec, size: int):
        self.codec = codec
        self._kept = None if codec.is_exact else np.zeros(size, dtype=np.float32)
        self._scratch = np.empty(0 if codec.is_exact else min(size, codec.chunk_values), dtype=np.float32)

    def encode(self, chunk: Slice, values: np.ndarray) -> Buffer:
        """Write float32 (chunk.size,), which belongs at `chunk` of the vector; `values` is not changed."""
        if self._kept is None:
            return self.codec.encode(values)
        return self.codec.encode_and_keep(values, self._kept[chunk.start : chunk.stop], self._scratch[: chunk.size])

    def state(self) -> np.ndarray:
        """The dropped values that have not been sent yet, float32 (size,) or (0,) for an exact codec."""
        return np.zeros(0, dtype=np.float32) if self._kept is None else self._kept.copy()

    def load_state(self, values: np.ndarray) -> None:
        if self._kept is not None and values.size:
            self._kept[:] = values
