"""How float32 values become bytes on the wire, and back.

A codec works on one chunk at a time and knows the exact number of bytes a chunk takes, so a
receiver checks the size before it allocates. Chunks hold at most `CHUNK_BYTES`: Redis moves
entries of 0.25 to 1 MiB fastest, and fakeredis' server breaks on far larger replies.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from peers.types import Buffer

CHUNK_BYTES = 256 * 1024


class Codec(Protocol):
    """One way to write float32 values.

    Attributes:
        is_exact: decode(encode(x)) is x, bit for bit.
        chunk_values: how many values a full chunk holds.
    """

    name: str
    is_exact: bool
    chunk_values: int

    def encoded_bytes(self, count: int) -> int:
        """Bytes that `count` values take."""

    def encode(self, values: np.ndarray) -> Buffer:
        """Write float32 (count,); the result may be a view of `values`."""

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        """Read into float32 (count,); the payload has been checked to be `encoded_bytes(count)` long."""


class Raw:
    """float32, little-endian: four bytes a value, exact."""

    name = "raw"
    is_exact = True
    chunk_values = CHUNK_BYTES // 4

    def encoded_bytes(self, count: int) -> int:
        return 4 * count

    def encode(self, values: np.ndarray) -> Buffer:
        return memoryview(np.ascontiguousarray(values, dtype="<f4")).cast("B")

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        out[:] = np.frombuffer(payload, dtype="<f4")


class Float16:
    """IEEE half precision, rounded to nearest even; what is too large is cut to the largest finite value."""

    name = "float16"
    is_exact = False
    chunk_values = CHUNK_BYTES // 2
    largest = float(np.finfo(np.float16).max)

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: np.ndarray) -> Buffer:
        return memoryview(np.clip(values, -self.largest, self.largest).astype("<f2")).cast("B")

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        out[:] = np.frombuffer(payload, dtype="<f2")


class Bfloat16:
    """The upper half of a float32, rounded to nearest even: float32's range with 8 bits of precision."""

    name = "bfloat16"
    is_exact = False
    chunk_values = CHUNK_BYTES // 2

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: np.ndarray) -> Buffer:
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        # Rounding up may not carry a finite value into infinity, nor a NaN's payload into its sign.
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        exponent = bits & np.uint32(0x7F800000)
        rounded = np.where(exponent == 0x7F800000, bits | ((bits & 0xFFFF) != 0) * np.uint32(0x400000), bits + half)
        overflown = (exponent != 0x7F800000) & ((rounded & np.uint32(0x7F800000)) == 0x7F800000)
        rounded = np.where(overflown, bits, rounded)
        return memoryview((rounded >> np.uint32(16)).astype("<u2")).cast("B")

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        out[:] = (np.frombuffer(payload, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4")


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Raw(), Float16(), Bfloat16())}
