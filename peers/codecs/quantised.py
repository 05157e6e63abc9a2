"""Blocks of 1,024 values that share a scale: int8 codes, or the sign alone.

A payload is the blocks' scales (float32, little-endian), then the codes of all values. A block
with a value that is not finite gets a scale of NaN, which makes all of its values NaN: the receiver sees the
error instead of plausible values.

Source: Seide et al., Interspeech 2014, and Karimireddy et al., ICML 2019 (sign with a scale, under
error feedback); Alistarh et al., "QSGD", NeurIPS 2017 (stochastic rounding).
"""

from __future__ import annotations

import numpy as np

from peers.codecs.base import CHUNK_BYTES, Codec, as_bytes
from peers.codecs.checksum import checksum
from peers.types import Buffer

BLOCK = 1024
ROUNDINGS = ("nearest", "stochastic")

_SMALLEST = np.finfo(np.float32).tiny


# The eight factors that a byte of signs stands for, (256, 8); a set bit is a minus.
SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), np.float32(-1), np.float32(1))


def blocks_of(count: int) -> int:
    """Blocks that `count` values take; the last may be short."""
    return -(-count // BLOCK)


def spread(operation: np.ufunc, values: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """out = operation(values, scale of the value's block), (count,) with (blocks,)."""
    whole = values.size // BLOCK
    cut = whole * BLOCK
    operation(values[:cut].reshape(whole, BLOCK), scales[:whole, None], out=out[:cut].reshape(whole, BLOCK))
    if cut < values.size:
        operation(values[cut:], scales[whole], out=out[cut:])


class Int8(Codec):
    """A code in [-127, 127] a value, in steps of 1/127 of the largest value of the block.

    Args:
        rounding: "nearest" (half to even) or "stochastic": up or down with a probability that makes the
            expected code the value itself. The random numbers come from the values, so a replay gives the same codes.
    """

    name = "int8"
    chunk_values = CHUNK_BYTES // (BLOCK + 4) * BLOCK

    def __init__(self, rounding: str = "nearest"):
        if rounding not in ROUNDINGS:
            raise ValueError(f"unknown rounding {rounding!r}; there are {', '.join(ROUNDINGS)}")
        self._is_stochastic = rounding == "stochastic"
        # Stochastic rounding may go up from anywhere: this small margin keeps it from going past 127.
        self._steps = np.float32(127 * (1 - 2**-20) if self._is_stochastic else 127)
        # The receiver's 127 x scale must not overflow.
        self._largest = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))

    def encoded_bytes(self, count: int) -> int:
        return 4 * blocks_of(count) + count

    def encode(self, values: np.ndarray) -> Buffer:
        return self._encode(values, np.empty_like(values))[0]

    def encode_and_keep(self, values: np.ndarray, kept: np.ndarray, scratch: np.ndarray | None = None) -> Buffer:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.add(values, kept, out=scratch)
            payload, scales, is_bad = self._encode(values, kept)
            spread(np.multiply, kept, scales, kept)
            np.subtract(values, kept, out=kept)
        if is_bad is not None:
            kept[is_bad] = 0
        return payload

    def _encode(self, values: np.ndarray, codes: np.ndarray) -> tuple[Buffer, np.ndarray, np.ndarray | None]:
        """The payload, the scales, and a mask of the values in blocks that are not finite, None if all are finite.

        Args:
            codes: float32 (count,), receives the codes.
        """
        blocks = blocks_of(values.size)
        written = np.empty(self.encoded_bytes(values.size), dtype=np.uint8)
        scales = written[: 4 * blocks].view("<f4")
        is_bad = None
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if blocks:
                starts = np.arange(0, values.size, BLOCK)
                largest = np.maximum.reduceat(values, starts)
                np.maximum(largest, -np.minimum.reduceat(values, starts), out=largest)
                np.minimum(largest / self._steps, self._largest, out=scales)
                scales[~np.isfinite(largest)] = np.nan
                # A block so small that a step is not a normal number: the feedback keeps all of it until it has grown.
                scales[scales < _SMALLEST] = 0
            spread(np.multiply, values, np.where(scales > 0, 1 / scales, np.float32(0)), codes)
            if np.isnan(scales).any():
                is_bad = np.repeat(np.isnan(scales), BLOCK)[: values.size]
                codes[is_bad] = 0
            if self._is_stochastic:
                codes += dither(values)
            np.rint(codes, out=codes)
            np.copyto(written[4 * blocks :].view(np.int8), codes, casting="unsafe")
        return as_bytes(written), scales, is_bad

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        blocks = blocks_of(out.size)
        scales = np.frombuffer(payload, dtype="<f4", count=blocks)
        codes = np.frombuffer(payload, dtype=np.int8, offset=4 * blocks)
        with np.errstate(over="ignore", invalid="ignore"):
            spread(np.multiply, codes, scales, out)


def dither(values: np.ndarray) -> np.ndarray:
    """Uniform numbers in (-0.5, 0.5) with mean 0, float32 (count,), the same for the same values."""
    dice = np.random.SFC64(checksum(as_bytes(values))).random_raw(-(-values.size // 4))
    # Four odd 16-bit numbers a draw: symmetric about zero, and never exactly half a step.
    dice |= np.uint64(0x0001_0001_0001_0001)
    return np.multiply(dice.view(np.int16)[: values.size], np.float32(2**-16), dtype=np.float32)


class Sign(Codec):
    """A bit a value: plus or minus the mean size of the values of its block."""

    name = "sign"
    # Far fewer than an entry could hold, so that a chunk's values fit in a processor's cache.
    chunk_values = CHUNK_BYTES

    def encoded_bytes(self, count: int) -> int:
        return 4 * blocks_of(count) + -(-count // 8)

    def encode(self, values: np.ndarray) -> Buffer:
        return self._encode(values, np.empty_like(values))[0]

    def encode_and_keep(self, values: np.ndarray, kept: np.ndarray, scratch: np.ndarray | None = None) -> Buffer:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.add(values, kept, out=scratch)
            payload, scales = self._encode(values, kept)
            self.decode(payload, kept)
            np.subtract(values, kept, out=kept)
        if np.isnan(scales).any():
            kept[np.isnan(kept)] = 0
        return payload

    def _encode(self, values: np.ndarray, sizes: np.ndarray) -> tuple[Buffer, np.ndarray]:
        """The payload and the scales; `sizes` is scratch memory, float32 (count,)."""
        blocks = blocks_of(values.size)
        written = np.empty(self.encoded_bytes(values.size), dtype=np.uint8)
        scales = written[: 4 * blocks].view("<f4")
        if blocks:
            starts = np.arange(0, values.size, BLOCK)
            counts = np.minimum(values.size - starts, BLOCK).astype(np.float32)
            np.abs(values, out=sizes)
            with np.errstate(over="ignore", invalid="ignore"):
                np.divide(np.add.reduceat(sizes, starts), counts, out=scales)
                if not np.isfinite(scales).all():
                    # The sum has overflowed although the values are finite.
                    scales[:] = np.add.reduceat(sizes, starts, dtype=np.float64) / counts
                    scales[~np.isfinite(scales)] = np.nan
        written[4 * blocks :] = np.packbits(np.signbit(values))
        return as_bytes(written), scales

    def decode(self, payload: Buffer, out: np.ndarray) -> None:
        blocks = blocks_of(out.size)
        scales = np.frombuffer(payload, dtype="<f4", count=blocks)
        signs = np.frombuffer(payload, dtype=np.uint8, offset=4 * blocks)
        whole = out.size // 8
        # The eight signs of a byte at once, from a table.
        np.take(SIGNS, signs[:whole], axis=0, out=out[: 8 * whole].reshape(whole, 8), mode="clip")
        if out.size % 8:
            out[8 * whole :] = SIGNS[signs[whole], : out.size % 8]
        with np.errstate(invalid="ignore"):
            spread(np.multiply, out, scales, out)
