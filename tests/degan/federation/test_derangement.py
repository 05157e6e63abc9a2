"""Derangements and the scaling of feedbacks: invariants of pure functions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degan.federation.derangement import derangement
from degan.learners.scaling import scaled, unscaled
from peers.codecs.exact import CODECS


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.sets(st.integers(0, 500), max_size=12), st.randoms())
def test_a_derangement_leaves_nobody_its_own(seed, round, workers, random):
    found = derangement(seed, round, workers)
    assert set(found) == set(found.values()) == (workers if len(workers) > 1 else set())
    assert all(giver != taker for giver, taker in found.items())
    listed = list(workers)
    random.shuffle(listed)
    assert derangement(seed, round, listed) == found


def test_derangements_are_those_of_every_version():
    """All workers of a run have to draw the same derangements, whatever their versions."""
    found = [derangement(seed, round, [5, 0, 2, 1]) for seed, round in ((1, 1), (1, 3), (2, 1))]
    assert found == [{0: 2, 1: 5, 2: 0, 5: 1}, {0: 1, 1: 2, 2: 5, 5: 0}, {0: 2, 1: 0, 2: 5, 5: 1}]


def test_every_derangement_is_equally_likely():
    """Four workers have nine derangements; 2,700 rounds give each about 300 times (five deviations are 82)."""
    seen = Counter(tuple(derangement(7, round, range(4)).values()) for round in range(2700))
    assert len(seen) == 9
    assert all(abs(count - 300) < 82 for count in seen.values())


def test_a_worker_listed_twice_is_an_error():
    with pytest.raises(ValueError, match="listed twice"):
        derangement(1, 1, [1, 2, 1])


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300)
@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_scaling_is_undone_exactly(values):
    values = np.array(values, dtype=np.float32)
    moved, exponent = scaled(values)
    assert moved.dtype == np.float32 and np.abs(moved).max() < 2**15
    largest = np.abs(values).max()
    back = unscaled(moved, float(exponent))
    # Values that stay in float32's range on the way keep every digit.
    kept = np.abs(values) >= largest * np.float32(2.0**-100)
    np.testing.assert_array_equal(back[kept], values[kept])


@pytest.mark.parametrize(
    ("values", "exponent", "expected"),
    [
        # The largest scaled value lies in [2^14, 2^15).
        ([1.0, 0.5], 14, [2.0**14, 2.0**13]),
        ([3.0, -5.0], 12, [12288.0, -20480.0]),
        ([2.0**15, 1.0], -1, [2.0**14, 0.5]),
        ([2.0**-149], 163, [2.0**14]),
        ([2.0**127], -113, [2.0**14]),
        ([0.0, -0.0], 0, [0.0, -0.0]),
        ([1.0, np.inf], 0, [1.0, np.inf]),
        ([np.nan, 8.0], 0, [np.nan, 8.0]),
        ([], 0, []),
    ],
)
def test_scaling_by_hand(values, exponent, expected):
    values = np.array(values, np.float32)
    moved, found = scaled(values)
    assert found == exponent and moved.dtype == np.float32
    np.testing.assert_array_equal(moved, np.array(expected, np.float32))
    np.testing.assert_array_equal(unscaled(moved, float(found)), values)


@settings(max_examples=300)
@given(
    st.lists(st.floats(-1, 1, width=32).filter(lambda x: not x or abs(x) > 2**-20), min_size=1, max_size=20),
    st.integers(-120, 120),
)
def test_scaled_float16_keeps_eleven_bits_wherever_the_values_lie(values, power):
    values = np.ldexp(np.array(values, dtype=np.float32), power)
    moved, exponent = scaled(values)
    found = np.empty_like(moved)
    CODECS["float16"].decode(CODECS["float16"].encode(moved), found)
    back = unscaled(found, float(exponent))
    np.testing.assert_allclose(back, values, rtol=2**-11, atol=float(np.abs(values).max()) * 2**-38)


@pytest.mark.parametrize("exponent", [1e300, -400.0, math.inf, math.nan])
def test_an_exponent_that_cannot_be(exponent):
    with pytest.raises(ValueError, match="an exponent of"):
        unscaled(np.ones(1, np.float32), exponent)
