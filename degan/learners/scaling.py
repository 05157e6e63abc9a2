"""A vector is scaled into float16's range by a power of two, exactly, and back.

float16 holds values between 2^-24 and 2^16. Gradients at generated samples can have any size: they are divided by
the number of samples, and small where the discriminator is sure. The scale puts the largest value just below 2^15;
then every value down to 2^-39 of the largest is kept.

What always holds: a power of two changes no digit of a float32 that stays in its own range. So the only loss is the
precision that float16 does not have; the way back is exact.
"""

from __future__ import annotations

import numpy as np

TOP_EXPONENT = 15
# Bounds the exponent of any finite float32: the largest is below 2^128, the smallest is 2^-149.
MAX_EXPONENT = 163


def scaled(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The values times 2^exponent, float32, and the exponent: 0 for zeros, and where a value is not finite."""
    largest = float(np.abs(values).max(initial=0.0))
    if not largest or not np.isfinite(largest):
        return values, 0
    exponent = TOP_EXPONENT - int(np.frexp(largest)[1])
    return np.ldexp(values, exponent), exponent


def unscaled(values: np.ndarray, exponent: float) -> np.ndarray:
    """The inverse of `scaled`.

    Raises:
        ValueError: no float32 has such an exponent.
    """
    if not abs(exponent) <= MAX_EXPONENT:
        raise ValueError(f"an exponent of {exponent}")
    return np.ldexp(values, -int(exponent)) if exponent else values
