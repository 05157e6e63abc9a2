"""The codecs under property tests: sizes, closeness, what is not finite, error feedback, hostile payloads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degan.casts import torch_cast
from peers.codec import CHUNK_BYTES, CODECS, build

FLOAT32 = np.finfo(np.float32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Every way to build a codec that changes what it does; the casts must not.
VARIANTS = {
    **CODECS,
    "float16 by torch": build("float16", cast=torch_cast),
    "bfloat16 by torch": build("bfloat16", cast=torch_cast),
    "int8 stochastic": build("int8", rounding="stochastic"),
    "topk of a third": build("topk", fraction=1 / 3),
    "topk of all": build("topk", fraction=1.0),
}
LOSSY = {name: codec for name, codec in VARIANTS.items() if not codec.is_exact}


@st.composite
def vectors(draw, max_size=3000, elements=FINITE):
    """float32 (size,), a few values drawn one by one and spread among pseudo-random ones of any magnitude."""
    size = draw(
        st.one_of(st.integers(0, 20), st.sampled_from([1023, 1024, 1025, 2048, 2500]), st.integers(0, max_size))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 1e-44, 1e-38, 1e-3, 1.0, 1e4, 1e38]))
    values = (np.clip(rng.standard_normal(size), -3, 3) * scale).astype(np.float32)
    if size:
        for value in draw(st.lists(elements, max_size=20)):
            values[rng.integers(size)] = value
    return values


def roundtrip(codec, values):
    payload = codec.encode(values)
    assert memoryview(payload).nbytes == codec.encoded_bytes(values.size)
    out = np.full_like(values, 12345.0)
    codec.decode(bytes(payload), out)
    return out


def blockwise(values, measure):
    """A measure of each block of 1,024, repeated for each of its values; float64."""
    pieces = [values[start : start + 1024].astype(np.float64) for start in range(0, values.size, 1024)]
    return np.concatenate([np.full(piece.size, measure(piece)) for piece in pieces] or [np.zeros(0)])


def allowed_error(name, codec, values):
    """How far each decoded value may be off, and the values that it is off from."""
    size = np.abs(values.astype(np.float64))
    if name == "raw":
        return np.zeros(values.size), values
    if name == "float16":
        clipped = np.clip(values, -65504, 65504)
        return np.maximum(np.abs(clipped) * 2.0**-11, 2.0**-25), clipped
    if name == "bfloat16":
        # Half of the last of 8 bits, or a whole one where rounding up would have left the finite range.
        return np.maximum(size * 2.0**-8, 1e-40), values
    if name == "int8":
        step = blockwise(values, lambda piece: np.abs(piece).max()) / 127
        part = 1.0 if codec._is_stochastic else 0.5
        return np.where(step < FLOAT32.tiny * 1.001, 128 * step, step * (part + 1e-4)), values
    raise AssertionError(name)


@pytest.mark.parametrize("name", VARIANTS)
@given(values=vectors())
def test_codecs_state_their_size_and_stay_close(name, values):
    codec = VARIANTS[name]
    before = values.copy()
    out = roundtrip(codec, values)
    np.testing.assert_array_equal(values, before, err_msg="encoding changes nothing")
    assert np.isfinite(out).all()
    if codec.name == "sign":
        size = blockwise(values, lambda piece: np.abs(piece).mean())
        np.testing.assert_allclose(np.abs(out), size, rtol=1e-5, atol=1e-44)
        assert (np.signbit(out) == np.signbit(values)).all()
    elif codec.name == "topk":
        count = codec.encoded_bytes(values.size) // 6
        assert count == (values.size and max(1, math.ceil(codec.fraction * values.size)))
        is_sent = np.zeros(values.size, dtype=bool)
        is_sent[np.lexsort((np.arange(values.size), -np.abs(values)))[:count]] = True
        np.testing.assert_array_equal(out, np.where(is_sent, values, 0))
    else:
        allowed, expected = allowed_error(codec.name, codec, values)
        assert (np.abs(out.astype(np.float64) - expected) <= allowed).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_full_chunk_fits(name):
    codec = VARIANTS[name]
    values = np.random.default_rng(0).standard_normal(codec.chunk_values).astype(np.float32)
    assert codec.encoded_bytes(codec.chunk_values) <= CHUNK_BYTES
    assert codec.encoded_bytes(0) == 0
    assert np.corrcoef(values, roundtrip(codec, values))[0, 1] > 0.2
