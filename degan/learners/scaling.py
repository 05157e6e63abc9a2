"""A vector brought into float16's range by a power of two, exactly, and back.

float16 keeps what lies between 2^-24 and 2^16, and gradients at generated samples lie where they will: divided by
the number of samples, and small where the discriminator is sure. Scaled so that the largest is just below 2^15,
everything down to 2^-39 of it is kept.

What always holds: a power of two changes no digit of a float32 that stays in its own range, so what is lost is only
what float16 cannot hold; the way back is exact.
"""

from __future__ import annotations

import numpy as np

TOP_EXPONENT = 15
# Of any finite float32: the largest is below 2^128, the smallest is 2^-149.
MAX_EXPONENT = 163


def scaled(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The values times 2^exponent, float32, and that exponent, which is 0 for zeros and where one is not finite."""
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
