"""Robust rules: the properties of every one of them, the limits of bad vectors, and the norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.vectors import reduce as robust

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
QUICK = settings(max_examples=150, deadline=None)


def vectors(values, most=9):
    """Between 1 and `most` vectors of the same size."""
    return st.tuples(st.integers(1, most), st.integers(1, 12)).flatmap(
        lambda shape: st.lists(
            st.lists(values, min_size=shape[1], max_size=shape[1]).map(lambda row: np.array(row, np.float32)),
            min_size=shape[0],
            max_size=shape[0],
        )
    )


def reach(some):
    """The smallest and the largest value of each coordinate, and the rounding that may be added to them."""
    stack = np.stack(some).astype(np.float64)
    return stack.min(axis=0), stack.max(axis=0), 1e-5 * np.abs(stack).max() + 1e-30


@QUICK
@given(vectors(FINITE), st.sampled_from(["mean", *robust.RULES]), st.integers(0, 4))
def test_a_rule_stays_between_the_vectors_and_changes_none(some, rule, byzantine):
    before = [vector.copy() for vector in some]
    found = robust.build(rule, byzantine)(some)
    assert found.dtype == np.float32 and found.shape == some[0].shape
    for vector, copy in zip(some, before, strict=True):
        np.testing.assert_array_equal(vector, copy)
    low, high, slip = reach(some)
    # A mean of vectors that were cut to a norm is between them and the origin.
    if rule == "clipped_mean":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    assert (found >= low - slip).all() and (found <= high + slip).all()


@QUICK
@given(vectors(FINITE), st.sampled_from(["mean", *robust.RULES]), st.randoms(use_true_random=False))
def test_the_order_matters_only_to_rounding(some, rule, random):
    first = robust.build(rule)(some)
    shuffled = list(some)
    random.shuffle(shuffled)
    slip = 1e-4 * np.abs(np.stack(some)).max() + 1e-30
    np.testing.assert_allclose(robust.build(rule)(shuffled), first, rtol=0, atol=slip)


@QUICK
@given(vectors(FINITE, most=1), st.integers(1, 9), st.sampled_from(["mean", *robust.RULES]))
def test_the_result_of_equal_vectors_is_that_vector(some, count, rule):
    found = robust.build(rule)(some * count)
    np.testing.assert_allclose(found, robust.mean(some * count), rtol=1e-5, atol=1e-30)


@QUICK
@given(vectors(FINITE))
def test_neutral_settings_are_the_mean_bit_by_bit(some):
    expected = robust.mean(some)
    np.testing.assert_array_equal(robust.trimmed_mean(some, 0), expected)
    np.testing.assert_array_equal(robust.clipped_mean(some, math.inf), expected)
    np.testing.assert_array_equal(robust.centered_clip(some, math.inf), expected)


@QUICK
@given(st.data())
def test_fewer_than_half_bad_ones_stay_within_the_honest_values(data):
    honest = data.draw(vectors(FINITE, most=6))
    bad = data.draw(st.integers(0, len(honest) - 1))
    row = st.lists(ANY, min_size=honest[0].size, max_size=honest[0].size)
    some = honest + [np.array(data.draw(row), np.float32) for _ in range(bad)]
    order = data.draw(st.permutations(range(len(some))))
    some = [some[index] for index in order]
    low, high, slip = reach(honest)
    for found in (robust.median(some), robust.trimmed_mean(some, bad)):
        assert (found >= low - slip).all() and (found <= high + slip).all()


@QUICK
@given(vectors(FINITE, most=7), st.integers(1, 4))
def test_by_coordinate_it_is_the_same_in_any_parts(some, parts):
    whole = {rule: robust.build(rule)(some) for rule in ("median", "trimmed_mean")}
    edges = [some[0].size * k // parts for k in range(parts + 1)]
    for rule, expected in whole.items():
        pieces = [
            robust.build(rule)([vector[a:b] for vector in some])
            for a, b in zip(edges, edges[1:], strict=False)
            if a < b
        ]
        np.testing.assert_array_equal(np.concatenate(pieces), expected)


@pytest.mark.parametrize("count", range(1, 18))
def test_the_median_of_large_vectors_is_numpys(count):
    """The vectors span more than one block, and are more than are ever sorted by hand."""
    random = np.random.default_rng(count)
    some = [random.standard_normal(robust.BLOCK_VALUES + 77).astype(np.float32) for _ in range(count)]
    np.testing.assert_allclose(robust.median(some), np.median(some, axis=0), rtol=1e-6, atol=1e-7)
    cut = (count - 1) // 2
    inner = np.sort(some, axis=0)[cut : count - cut].astype(np.float64)
    np.testing.assert_allclose(robust.trimmed_mean(some, 99), inner.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [1e30, np.inf, np.nan])
def test_a_rule_of_norms_bears_a_bad_one(bad):
    random = np.random.default_rng(0)
    honest = [(1 + 0.1 * random.standard_normal(500)).astype(np.float32) for _ in range(4)]
    some = [*honest, np.full(500, bad, np.float32)]
    length = robust.norm(robust.mean(honest))
    for rule in ("clipped_mean", "centered_clip"):
        found = robust.build(rule)(some)
        assert robust.norm(found - robust.mean(honest)) < 0.45 * length, rule
    assert not robust.norm(robust.mean(some) - robust.mean(honest)) < 0.45 * length


def test_the_norm_of_a_clipped_mean_is_at_most_the_median_norm():
    some = [np.full(4, value, np.float32) for value in (1, 2, 3, 400, -5)]
    assert robust.norm(robust.clipped_mean(some)) <= 6.0 + 1e-5


@QUICK
@given(st.lists(ANY, min_size=1, max_size=40))
def test_a_norm_is_finite_exactly_where_all_values_are(values):
    array = np.array(values, np.float32)
    found = robust.norm(array)
    assert math.isfinite(found) == bool(np.isfinite(array).all()) == robust.is_finite(array)
    if math.isfinite(found):
        expected = float(np.linalg.norm(array.astype(np.float64)))
        # The squares of smaller values are lost in float32.
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-18)


def test_a_distance_is_the_norm_of_the_difference():
    random = np.random.default_rng(1)
    one, other = random.standard_normal((2, robust.BLOCK_VALUES + 5)).astype(np.float32)
    assert robust.distance(one, other) == pytest.approx(robust.norm(one - other), rel=1e-6)
    huge = np.full(3, 3e38, np.float32)
    assert robust.distance(huge, -huge) == math.inf
    assert math.isnan(robust.distance(np.array([np.nan], np.float32), np.zeros(1, np.float32)))


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="unknown rule 'krum'"):
        robust.build("krum")
