"""The largest values alone, each with its position.

A payload is the k values (float32), then their k positions in the chunk (uint16, ascending), all
little-endian. Chunks of 65,536 values make a position two bytes; distances between positions of a
whole vector would need four, or a code of varying size that no receiver could check beforehand.

Source: Aji and Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017;
Stich et al., "Sparsified SGD with Memory", NeurIPS 2018.
"""

from __future__ import annotations

import math

import numpy as np

from peers.codecs.base import CHUNK_BYTES, Codec, as_bytes, forget_what_is_not_finite
from peers.errors import MessageError
from peers.types import Buffer

ENTRY_BYTES = 6
MAX_POSITIONS = 2**16
STRIDE = 17


class TopK(Codec):
    """Exactly ceil(fraction x count) values of a chunk: the largest by size, of equal ones the first.

    A value that is not finite counts as larger than every finite one.

    Args:
        fraction: of the values of a chunk, in (0, 1]; no header carries it, so sender and receiver must agree on it.
    """

    name = "topk"

    def __init__(self, fraction: float = 0.01):
        if not 0 < fraction <= 1:
            raise ValueError(f"topk sends a fraction of the values in (0, 1], not {fraction}")
        self.fraction = fraction
        self.chunk_values = min(MAX_POSITIONS, int(CHUNK_BYTES // ENTRY_BYTES / fraction))

    def sent(self, count: int) -> int:
        """How many of `count` values travel."""
        return min(count, max(1, math.ceil(self.fraction * count)))

    def encoded_bytes(self, count: int) -> int:
        return ENTRY_BYTES * self.sent(count)

    def encode(self, values: np.ndarray) -> Buffer:
        return self._write(values, largest(values, self.sent(values.size)))

    def encode_and_keep(self, values: np.ndarray, kept: np.ndarray, scratch: np.ndarray | None = None) -> Buffer:
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(values, kept, out=kept)
        positions = largest(kept, self.sent(kept.size))
        payload = self._write(kept, positions)
        is_finite = np.isfinite(kept[positions]).all()
        kept[positions] = 0
        if not is_finite:
            forget_what_is_not_finite(kept)
        return payload

    def _write(self, values: np.ndarray, positions: np.ndarray) -> Buffer:
        cut = 4 * positions.size
        written = np.empty(ENTRY_BYTES * positions.size, dtype=np.uint8)
        written[:cut].view("<f4")[:] = values[positions]
        written[cut:].view("<u2")[:] = positions
        return as_bytes(written)

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        count = self.sent(out.size)
        values = np.frombuffer(payload, dtype="<f4", count=count)
        positions = np.frombuffer(payload, dtype="<u2", offset=4 * count)
        if count and not (positions[-1] < out.size and (positions[1:] > positions[:-1]).all()):
            raise MessageError("malformed", f"the positions of topk do not ascend below {out.size}")
        out[:] = 0
        out[positions] = values


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Ascending positions of the `count` largest by size, of equal ones the first, int64 (count,).

    Partitioning a whole chunk is slow. Most of its values are far too small to be among the largest, and a look at
    every 17th value shows which; where the sample misleads, all values are partitioned, so the result is exact.
    """
    if count == values.size:
        return np.arange(count)
    # As integers, the sizes of floats are in order, and those of infinities and NaN come last.
    sizes = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    positions = np.flatnonzero(sizes >= likely_bound(sizes, count))
    if positions.size < count:
        positions = np.arange(values.size)
    sizes = sizes[positions]
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    is_sent = sizes > least
    equal = np.flatnonzero(sizes == least)
    is_sent[equal[: count - np.count_nonzero(is_sent)]] = True
    sent: np.ndarray = positions[is_sent]
    return sent


def likely_bound(sizes: np.ndarray, count: int) -> np.uint32:
    """A size that most likely `count` values, and only a few more, reach."""
    # An odd stride, so that the sample does not align with the rows of a weight matrix.
    sample = sizes[::STRIDE]
    expected = count / STRIDE
    rank = min(sample.size, math.ceil(expected + 4 * math.sqrt(expected)) + 1)
    bound: np.uint32 = np.partition(sample, sample.size - rank)[sample.size - rank]
    return bound
