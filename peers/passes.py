"""One pass over memory: checksum, conversion and length of a chunk, a block at a time, each block still in the cache.

A chunk is larger than a processor's own cache. Done one after the other for the whole of it, each of the three would
read it from memory again, and on a machine whose cores are all at it that is most of what they cost.
"""

from __future__ import annotations

import numpy as np

from peers.checksum import checksum
from peers.codec import Codec
from peers.robust import SQUARES_VALUES, squares
from peers.types import Buffer


def decode_chunk(codec: Codec, payload: Buffer, out: np.ndarray, before: int, total: float) -> tuple[int, float]:
    """Read a chunk.

    Args:
        out: float32 (count,); written even if the checksum will turn out to be another.
        before: the checksum that goes before the payload's.
        total: the sum of the squares that goes before.

    Returns:
        The checksum with the payload, and the sum of the squares with the chunk's.

    Raises:
        MessageError: no encoder writes this.
    """
    before = checksum(payload, before)
    codec.decode(payload, out)
    return before, squares(out, total)


def look_through(payload: Buffer, values: np.ndarray, before: int, total: float) -> tuple[int, float]:
    """The same for a chunk of our own: the checksum with the payload, and the sum of the squares with the values."""
    return checksum(payload, before), squares(values, total)


def read_back(payloads: list[Buffer], codec: Codec, size: int) -> tuple[np.ndarray, float]:
    """What a reader makes of our own payloads, float32 (size,), and the sum of the squares as it adds them up."""
    found, start, total = np.empty(size, dtype=np.float32), 0, 0.0
    for payload in payloads:
        chunk = found[start : start + codec.chunk_values]
        codec.decode(payload, chunk)
        total = squares(chunk, total)
        start += codec.chunk_values
    return found, total


def squares_of(values: np.ndarray, codec: Codec) -> float:
    """The sum of the squares of a whole message of an exact codec, float32 (size,), as a reader adds it up."""
    total = 0.0
    for start in range(0, values.size, codec.chunk_values):
        total = squares(values[start : start + codec.chunk_values], total)
    return total
