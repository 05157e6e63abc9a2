"""The codecs under property tests: sizes, closeness, non-finite values, error feedback, malformed payloads."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degan.learners.casts import torch_cast
from peers.codecs import checksum as checksums
from peers.codecs.checksum import checksum
from peers.codecs.exact import CODECS, NAMES, RAW_BYTES, build
from peers.codecs.feedback import ErrorFeedback
from peers.errors import MessageError
from peers.types import Slice

FLOAT32 = np.finfo(np.float32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Every way to build a codec that changes its result; the casts must not change it.
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
    """A float32 vector of shape (size,): a few drawn values among pseudo-random ones of any magnitude."""
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
    """The measure of each block of 1,024 values, repeated for each value; float64."""
    pieces = [values[start : start + 1024].astype(np.float64) for start in range(0, values.size, 1024)]
    return np.concatenate([np.full(piece.size, measure(piece)) for piece in pieces] or [np.zeros(0)])


def allowed_error(name, codec, values):
    """The allowed error of each decoded value, and the values that it refers to."""
    size = np.abs(values.astype(np.float64))
    if name == "raw":
        return np.zeros(values.size), values
    if name == "float16":
        clipped = np.clip(values, -65504, 65504)
        return np.maximum(np.abs(clipped) * 2.0**-11, 2.0**-25), clipped
    if name == "bfloat16":
        # Half a unit in the last of 8 bits, or a whole one where rounding up would have left the finite range.
        return np.maximum(size * 2.0**-8, 1e-40), values
    if name == "int8":
        step = blockwise(values, lambda piece: np.abs(piece).max()) / 127
        part = 1.0 if codec._is_stochastic else 0.5
        return np.where(step < FLOAT32.tiny * 1.001, 128 * step, step * (part + 1e-4)), values
    raise AssertionError(name)


@pytest.mark.parametrize("name", VARIANTS)
@settings(deadline=None)
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
    assert codec.encoded_bytes(codec.chunk_values) <= RAW_BYTES
    assert codec.encoded_bytes(0) == 0
    assert np.corrcoef(values, roundtrip(codec, values))[0, 1] > 0.2


def test_an_unknown_codec_is_refused():
    assert tuple(CODECS) == NAMES
    assert all(codec.name == name for name, codec in CODECS.items())
    for name, wrong in (
        ("int4", {}),
        ("int8", {"rounding": "up"}),
        ("topk", {"fraction": 0.0}),
        ("topk", {"fraction": 2}),
    ):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values()), name))):
            build(name, **wrong)


# Infinities, and the NaNs with the lowest and the highest bits: rounding may neither end nor overturn them.
BAD = np.array([0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)


@pytest.mark.parametrize("bad", BAD.view(np.float32), ids=map(hex, BAD))
@pytest.mark.parametrize("name", VARIANTS)
def test_a_non_finite_value_stays_visible(name, bad):
    codec = VARIANTS[name]
    values = np.ones(2100, dtype=np.float32)
    values[1500] = bad
    out = roundtrip(codec, values)
    if codec.name in ("int8", "sign"):
        assert np.isnan(out[1024:2048]).all(), "a block that cannot be trusted is no number as a whole"
        out[1024:2048] = 1
    else:
        np.testing.assert_array_equal(out[1500], bad)
        out[1500] = 1
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", LOSSY)
@settings(deadline=None)
@given(values=vectors(max_size=200, elements=st.floats(width=32)))
def test_a_non_finite_value_is_sent_and_not_kept(name, values):
    codec, whole = LOSSY[name], Slice(0, values.size)
    lossy = ErrorFeedback(codec, values.size)
    out = np.empty_like(values)
    codec.decode(lossy.encode(whole, values.copy()), out)
    assert np.isfinite(out).all() == np.isfinite(values).all()
    assert np.isfinite(lossy.state()).all()
    codec.decode(lossy.encode(whole, np.zeros_like(values)), out)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_many_non_finite_values_do_not_poison_the_error_feedback(name, bad):
    values = np.linspace(-1, 1, 3000, dtype=np.float32)
    values[::2] = bad
    lossy = ErrorFeedback(LOSSY[name], 3000)
    lossy.encode(Slice(0, 3000), values)
    assert np.isfinite(lossy.state()).all()


@pytest.mark.parametrize("name", VARIANTS)
@settings(deadline=None)
@given(steps=st.lists(vectors(max_size=200, elements=st.floats(-(2.0**99), 2.0**99, width=32)), min_size=1, max_size=8))
def test_error_feedback_loses_nothing(name, steps):
    codec, size = VARIANTS[name], max(step.size for step in steps)
    lossy, whole = ErrorFeedback(codec, size), Slice(0, size)
    delivered, produced, allowed = np.zeros(size), np.zeros(size), np.zeros(size)
    kept = np.zeros(size, dtype=np.float32)
    for step in steps:
        values = np.zeros(size, dtype=np.float32)
        values[: step.size] = np.clip(step, -(2.0**99), 2.0**99)
        produced += values
        total, out = values.copy() if codec.is_exact else values + kept, np.empty_like(values)
        payload = bytes(lossy.encode(whole, values))
        assert payload == bytes(codec.encode(total)), "what is kept is added, and nothing else"
        codec.decode(payload, out)
        delivered += out
        kept = lossy.state() if lossy.state().size else np.zeros_like(kept)
        # One rounding comes from adding the kept error, and one from subtracting the sent value.
        allowed += (np.abs(total.astype(np.float64)) + np.abs(kept)) * 2.0**-24
    assert (np.abs(delivered + kept - produced) <= allowed * 1.001).all()


@pytest.mark.parametrize("name", LOSSY)
def test_a_run_continues_from_the_state_of_error_feedback(name):
    values = np.random.default_rng(1).standard_normal((2, 3000)).astype(np.float32)
    whole, first, second = Slice(0, 3000), ErrorFeedback(LOSSY[name], 3000), ErrorFeedback(LOSSY[name], 3000)
    first.encode(whole, values[0].copy())
    second.load_state(first.state())
    assert bytes(first.encode(whole, values[1].copy())) == bytes(second.encode(whole, values[1].copy()))
    np.testing.assert_array_equal(first.state(), second.state())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-4, 4).filter(bool), min_size=1, max_size=20), st.sampled_from([0.01, 0.2, 0.5, 1.0]))
def test_topk_sends_every_position_in_the_end(gradient, fraction):
    codec, gradient = build("topk", fraction=fraction), np.array(gradient, dtype=np.float32)
    size, produced = gradient.size, np.abs(gradient).sum()
    sent = codec.encoded_bytes(size) // 6
    # The largest values take at least the share sent / size of everything kept, so the kept sum converges to this
    # bound.
    bound = produced * (size / sent - 1)
    rounds = int(bound + produced) + 1
    lossy, whole = ErrorFeedback(codec, size), Slice(0, size)
    delivered, out, is_sent = np.zeros(size), np.empty_like(gradient), np.zeros(size, dtype=bool)
    for _ in range(rounds):
        codec.decode(lossy.encode(whole, gradient.copy()), out)
        delivered += out
        is_sent |= out != 0
        assert np.abs(lossy.state()).sum() <= bound
    assert is_sent.all()
    np.testing.assert_array_equal(delivered + lossy.state(), rounds * gradient)


@pytest.mark.parametrize("kind", ["normal", "equal", "few", "falling", "in step", "bad"])
@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.3])
def test_topk_is_exact_on_whole_chunks(kind, fraction):
    codec, rng = build("topk", fraction=fraction), np.random.default_rng(2)
    values = rng.standard_normal(codec.chunk_values).astype(np.float32)
    if kind == "equal":
        values = np.sign(values)
    elif kind == "few":
        values[rng.random(values.size) < 0.999] = 0
    elif kind == "falling":
        values = np.sort(values)
    elif kind == "in step":
        # All large values lie where the sample looks, and nowhere else.
        values[::17] *= 1e6
    elif kind == "bad":
        values[::3] = np.nan
    count = codec.encoded_bytes(values.size) // 6
    order = np.lexsort((np.arange(values.size), -np.where(np.isnan(values), np.inf, np.abs(values))))
    expected = np.zeros_like(values)
    expected[order[:count]] = values[order[:count]]
    np.testing.assert_array_equal(roundtrip(codec, values), expected)


@pytest.mark.parametrize("positions", [[1, 1, 2], [2, 1, 3], [0, 1, 100], [0, 1, 65535], [65535, 0, 1]])
def test_topk_refuses_impossible_positions(positions):
    codec, out = build("topk", fraction=0.03), np.full(100, 7, dtype=np.float32)
    payload = np.ones(3, dtype="<f4").tobytes() + np.array(positions, dtype="<u2").tobytes()
    assert len(payload) == codec.encoded_bytes(100)
    with pytest.raises(MessageError) as caught:
        codec.decode(payload, out)
    assert caught.value.reason == "malformed"
    assert (out == 7).all()


@pytest.mark.parametrize("name", VARIANTS)
@settings(deadline=None)
@given(count=st.integers(0, 3000), seed=st.integers(0, 2**32), ones=st.booleans(), start=st.binary(max_size=64))
def test_any_payload_of_the_right_size_is_read_or_refused(name, count, seed, ones, start):
    codec, out = VARIANTS[name], np.zeros(count, dtype=np.float32)
    size_bytes = codec.encoded_bytes(count)
    payload = start + (b"\xff" * size_bytes if ones else np.random.default_rng(seed).bytes(size_bytes))
    try:
        codec.decode(payload[:size_bytes], out)
    except MessageError as error:
        assert codec.name == "topk" and error.reason == "malformed"
    else:
        assert out.shape == (count,)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=100), st.integers(0, 2**32))
def test_a_cast_changes_nothing_but_the_time(name, bits, seed):
    numpys, torchs = build(name), build(name, cast=torch_cast)
    rng = np.random.default_rng(seed)
    # Bit patterns of every sort, NaNs and subnormals too, and the neighbours of the largest values of both halves.
    near = np.array([65504.0, 65519.0, 65520.0, 3.38953e38, 3.3961775e38], dtype=np.float32).view(np.uint32)
    many = np.concatenate(
        [np.array(bits, dtype=np.uint32), near, near | 0x80000000, rng.integers(0, 2**32, 300, np.uint32)]
    )
    many[-100:] &= 0x807FFFFF  # These are subnormal.
    values = many.view(np.float32)
    assert bytes(numpys.encode(values)) == bytes(torchs.encode(values))
    kept = rng.standard_normal((1, values.size)).astype(np.float32).repeat(2, axis=0)
    assert bytes(numpys.encode_and_keep(values.copy(), kept[0])) == bytes(
        torchs.encode_and_keep(values.copy(), kept[1])
    )
    np.testing.assert_array_equal(kept[0], kept[1])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_half_is_read_the_same_by_both_casts(name):
    payload, outs = np.arange(2**16, dtype="<u2").tobytes(), np.zeros((2, 2**16), dtype=np.float32)
    build(name).decode(payload, outs[0])
    build(name, cast=torch_cast).decode(payload, outs[1])
    np.testing.assert_array_equal(outs[0], outs[1])
    is_number = ~np.isnan(outs[0])
    np.testing.assert_array_equal(np.signbit(outs[0])[is_number], np.signbit(outs[1])[is_number])
    # A value that is a half already is written unchanged.
    written = np.frombuffer(build(name).encode(outs[0]), dtype="<u2")
    np.testing.assert_array_equal(written[is_number], np.arange(2**16)[is_number])


@pytest.mark.parametrize("value", [0.0, 0.01, 0.25, 0.5, -0.75, 63.9, -126.6])
def test_stochastic_rounding_is_unbiased_and_repeats(value):
    codec = VARIANTS["int8 stochastic"]
    values = np.full((255, 1024), value, dtype=np.float32)
    values[:, 0] = 127
    out = roundtrip(codec, values.ravel())
    np.testing.assert_array_equal(out, roundtrip(build("int8", rounding="stochastic"), values.ravel().copy()))
    rest = out.reshape(255, 1024)[:, 1:].astype(np.float64)
    assert set(np.rint(np.unique(rest))) <= {np.floor(value), np.ceil(value)}
    share = value - np.floor(value)
    assert abs(rest.mean() - value) <= 5 * math.sqrt(share * (1 - share) / rest.size) + 2e-4
    if share:
        # The rounding has no pattern: neighbours are up or down independently.
        is_up = (rest > value) - share
        assert abs((is_up[:, 1:] * is_up[:, :-1]).mean()) <= 5 * share * (1 - share) / math.sqrt(rest.size)


@settings(deadline=None)
@given(st.binary(max_size=9000))
def test_the_checksum_is_that_of_zlib(payload):
    assert checksum(payload) == zlib.crc32(payload)
    whole = np.frombuffer(payload, dtype=np.uint8).copy()
    for view in (memoryview(payload), whole.data, whole[len(payload) // 3 :].data, memoryview(bytearray(payload))):
        assert checksum(view) == zlib.crc32(view)
    floats = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert checksum(memoryview(floats)) == zlib.crc32(floats.tobytes())


def test_the_checksum_is_the_fast_one_where_it_is_installed():
    pytest.importorskip("zlib_ng")
    assert "zlib_ng" in checksums.crc32.__module__
