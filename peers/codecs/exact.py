"""The codecs by name: the exact one, two kinds of half precision, and those that send far fewer bytes.

| name     | bytes a value | dropped |
| -------- | ------------- | ------- |
| raw      | 4             | nothing |
| float16  | 2             | all but 11 bits; the excess beyond 65,504 |
| bfloat16 | 2             | all but 8 bits |
| int8     | 1.004         | differences finer than 1/127 of the largest of 1,024 values |
| topk     | 6 x fraction  | all but the largest values |
| sign     | 0.129         | all but the signs and the mean size of 1,024 values |

Nothing that a lossy codec drops is lost: `peers.codecs.feedback` sends it later.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peers.codecs.base import Codec, as_bytes, forget_what_is_not_finite
from peers.codecs.quantised import Int8, Sign
from peers.codecs.sparse import TopK
from peers.types import Buffer

# Writes the values of `source` into `target`: float32 to or from float16, or to or from bfloat16, which
# numpy lacks and uint16 stands for. Rounds to nearest even; a value that is too large may become infinite, and a NaN
# may become another NaN.
Cast = Callable[[np.ndarray, np.ndarray], None]

BFLOAT16 = np.dtype("<u2")


def numpy_cast(source: np.ndarray, target: np.ndarray) -> None:
    """The `Cast` that needs nothing but numpy. Slow to float16 and back: numpy converts one value at a time."""
    if target.dtype == BFLOAT16:
        bits = source.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        np.copyto(target, rounded, casting="unsafe")
        # For some NaN the sum overflows, and would make the NaN a zero.
        if np.isnan(source.max(initial=0)):
            target[np.isnan(source)] = 0x7FC0
    elif source.dtype == BFLOAT16:
        np.left_shift(source, np.uint32(16), out=target.view(np.uint32))
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target, source, casting="same_kind")


# Each entry wakes Redis, the reader, and Redis again, so few are better; larger entries than this gained nothing.
RAW_BYTES = 1024 * 1024
# The same number of values in two bytes each.
HALF_BYTES = RAW_BYTES // 2


class Raw(Codec):
    """float32, little-endian: four bytes a value, exact."""

    name = "raw"
    is_exact = True
    chunk_values = RAW_BYTES // 4

    def encoded_bytes(self, count: int) -> int:
        return 4 * count

    def encode(self, values: np.ndarray) -> Buffer:
        return as_bytes(np.ascontiguousarray(values, dtype="<f4"))

    def encode_and_keep(self, values: np.ndarray, kept: np.ndarray, scratch: np.ndarray | None = None) -> Buffer:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.add(values, kept)
        kept[:] = 0
        return self.encode(values)

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        out[:] = np.frombuffer(payload, dtype="<f4")


class Half(Codec):
    """Two bytes a value, rounded to nearest even; a finite value that is too large becomes the largest finite one.

    Args:
        name: float16 or bfloat16 (the upper half of a float32: its range with 8 bits of precision).
        cast: does the conversion; every cast gives the same result.
    """

    chunk_values = HALF_BYTES // 2

    def __init__(self, name: str, cast: Cast = numpy_cast):
        self.name = name
        self._cast = cast
        self._dtype, self._infinity, self._nan = {
            "float16": (np.dtype("<f2"), 0x7C00, 0x7E00),
            "bfloat16": (BFLOAT16, 0x7F80, 0x7FC0),
        }[name]

    def encoded_bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, values: np.ndarray) -> Buffer:
        return as_bytes(self._write(values)[0])

    def encode_and_keep(self, values: np.ndarray, kept: np.ndarray, scratch: np.ndarray | None = None) -> Buffer:
        scratch = np.empty_like(kept) if scratch is None else scratch
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(values, kept, out=kept)
            written, is_finite = self._write(kept)
            self._cast(written, scratch)
            np.subtract(kept, scratch, out=kept)
        if not is_finite:
            forget_what_is_not_finite(kept)
        return as_bytes(written)

    def _write(self, values: np.ndarray) -> tuple[np.ndarray, bool]:
        """The values in half precision, and whether all are finite."""
        written = np.empty(values.size, dtype=self._dtype)
        self._cast(values, written)
        bits = written.view("<u2")
        # Looking for values that are not finite (the largest codes of either sign) costs less than clipping each value.
        is_finite = bits.max(initial=0) < 0x8000 | self._infinity and bits.view("<i2").max(initial=0) < self._infinity
        if not is_finite:
            bits[(bits & 0x7FFF == self._infinity) & np.isfinite(values)] -= 1
            bits[np.isnan(values)] = self._nan
        return written, bool(is_finite)

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        self._cast(np.frombuffer(payload, dtype=self._dtype), out)


def build(name: str, fraction: float = 0.01, rounding: str = "nearest", cast: Cast = numpy_cast) -> Codec:
    """A codec by its name.

    Args:
        fraction: of the values that topk sends, in (0, 1].
        rounding: of int8, "nearest" (half to even) or "stochastic" (unbiased).
        cast: for float16 and bfloat16, where there is a faster one than numpy's.

    Raises:
        ValueError: there is no such codec, fraction or rounding.
    """
    if name == "raw":
        return Raw()
    if name in ("float16", "bfloat16"):
        return Half(name, cast)
    if name == "int8":
        return Int8(rounding)
    if name == "topk":
        return TopK(fraction)
    if name == "sign":
        return Sign()
    raise ValueError(f"unknown codec {name!r}; there are {', '.join(NAMES)}")


NAMES = ("raw", "float16", "bfloat16", "int8", "topk", "sign")
CODECS: dict[str, Codec] = {name: build(name) for name in NAMES}
