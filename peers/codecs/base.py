"""The contract of a codec: float32 values to bytes of a size that is known before, and back.

A codec works on one chunk at a time and knows the exact number of bytes a chunk takes, so a
receiver checks the size before it allocates. Chunks hold about `CHUNK_BYTES`: Redis moves
entries of 0.25 to 1 MiB fastest, and fakeredis' server breaks on far larger replies. Codecs have
no state: any number of threads may use one, and the same values always give the same bytes, so a
round that is replayed has the same bytes as before.
"""

from __future__ import annotations

import abc

import numpy as np

from peers.types import Buffer

CHUNK_BYTES = 256 * 1024


class Codec(abc.ABC):
    """One way to write float32 values.

    Attributes:
        name: as in settings and on the wire.
        is_exact: decode(encode(x)) is x, bit for bit.
        chunk_values: how many values a full chunk holds.
    """

    name: str
    is_exact: bool = False
    chunk_values: int

    @abc.abstractmethod
    def encoded_bytes(self, count: int) -> int:
        """Bytes that `count` values take."""

    @abc.abstractmethod
    def encode(self, values: np.ndarray) -> Buffer:
        """Write float32 (count,), at most `chunk_values` of them; the result may be a view of `values`."""

    @abc.abstractmethod
    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        """Read into float32 (count,); the caller has checked that the payload has `encoded_bytes(count)` bytes.

        Raises:
            MessageError: no encoder writes such a payload; `out` is as it was.
        """

    @abc.abstractmethod
    def encode_and_keep(self, values: np.ndarray, kept: np.ndarray, scratch: np.ndarray | None = None) -> Buffer:
        """Write the sum of `values` and `kept`, and leave in `kept` the part of the sum that the codec drops.

        A value that is not finite is sent, so that the receiver sees it, and not kept, so that it is not sent for ever.

        Args:
            values, kept: float32 (count,); only `kept` is changed.
            scratch: float32 (count,) with any content, or None: new memory costs page faults.
        """


def forget_what_is_not_finite(kept: np.ndarray) -> None:
    """Put zero where `kept` is infinite or NaN."""
    is_finite = np.isfinite(kept)
    if not is_finite.all():
        kept[~is_finite] = 0


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.view(np.uint8).data
