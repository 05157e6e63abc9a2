"""Cohorts and weights of federated rounds: worked out by hand, and their invariants."""

from __future__ import annotations

import math
from collections import deque

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degan.federation.cohorts import BalancedState, balanced, cohort_size, quorum, uniform, weights, without_light

SCHEMES = ("exp", "linear", "dirac")
SIGNS = ("divergent_less", "as_released")


def as_histograms(rows):
    return {worker: np.array(row, dtype=np.int64) for worker, row in enumerate(rows)}


def tables(classes=3, most=6):
    """Histograms of workers 0, 1, ..."""
    row = st.lists(st.integers(0, 50), min_size=classes, max_size=classes)
    return st.lists(row, min_size=1, max_size=most).map(as_histograms)


# --- cohorts -----------------------------------------------------------------------------------


def test_a_quorum_is_a_share_of_those_asked_rounded_up():
    assert [quorum(0.5, asked) for asked in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert [quorum(1.0, asked) for asked in (1, 3, 50)] == [1, 3, 50]
    assert quorum(0.01, 3) == 1 and quorum(0.34, 3) == 2 and quorum(0.67, 3) == 3
    # In float64 these products are a little more than the whole number.
    assert (quorum(0.28, 25), quorum(0.14, 50), quorum(0.56, 50)) == (7, 7, 28)


def test_a_cohort_is_a_fraction_of_the_live_and_never_empty():
    assert [cohort_size(0.5, live) for live in (1, 2, 3, 5, 7)] == [1, 1, 2, 2, 4]
    assert cohort_size(0.01, 10) == 1
    assert cohort_size(1.0, 10) == 10
    for fraction, live in ((0.0, 5), (1.1, 5), (0.5, 0), (math.nan, 5)):
        with pytest.raises(ValueError):
            cohort_size(fraction, live)


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**6))
def test_a_cohort_always_fits(fraction, live):
    assert 1 <= cohort_size(fraction, live) <= live


@given(
    live=st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True),
    data=st.data(),
    seed=st.integers(0, 2**63 - 1),
    number=st.integers(0, 2**40),
)
def test_a_uniform_cohort_is_a_function_of_seed_and_round(live, data, seed, number):
    size = data.draw(st.integers(1, len(live)))
    cohort = uniform(live, size, seed, number)
    assert cohort == sorted(set(cohort))
    assert len(cohort) == size
    assert set(cohort) <= set(live)
    assert uniform(data.draw(st.permutations(live)), size, seed, number) == cohort


def test_uniform_cohorts_let_everyone_in_equally_often():
    rounds = 2000
    seen = np.zeros(5)
    for number in range(rounds):
        seen[uniform([0, 1, 2, 3, 4], 2, 1, number)] += 1
    # The counts are binomial with p = 2/5: the standard deviation is sqrt(2000 x 0.24) = 22; the bound is five of it.
    assert np.all(np.abs(seen - rounds * 2 / 5) < 110)
    assert [uniform(range(20), 5, 2, number) for number in range(9)] != [
        uniform(range(20), 5, 1, number) for number in range(9)
    ]


def test_balanced_cohorts_worked_out_by_hand():
    histograms = as_histograms([[10, 0, 0], [0, 5, 5], [0, 0, 20], [4, 4, 0]])
    state = BalancedState.fresh(3)
    rounds = [
        # counts 0 0 0: class 0 is the first of equals, held by 0 and 3: worker 0.   counts 10 0 0
        # class 1 before class 2, held by 1 and 3: worker 1.                         counts 10 5 5
        ([0, 1], (10, 5, 5), (0, 1, -1)),
        # class 1 (5), after worker 1 comes 3.                                       counts 14 9 5
        # class 2 (5), held by 1 and 2, nobody had a turn: worker 1.                 counts 14 14 10
        ([1, 3], (14, 14, 10), (0, 3, 1)),
        # class 2 (10), after worker 1 comes 2.                                      counts 14 14 30
        # class 0 (14), after worker 0 comes 3.                                      counts 18 18 30
        ([2, 3], (18, 18, 30), (3, 3, 2)),
        # class 0 (18), after worker 3 round to 0.                                   counts 28 18 30
        # class 1 (18), after worker 3 round to 1.                                   counts 28 23 35
        ([0, 1], (28, 23, 35), (0, 1, 2)),
    ]
    for expected, counts, turns in rounds:
        cohort, state = balanced([0, 1, 2, 3], 2, histograms, state)
        assert (cohort, state) == (expected, BalancedState(counts, turns))


def test_a_class_that_nobody_outside_the_cohort_holds_is_passed_over():
    # Class 0 has the fewest samples, but nobody holds it; class 1 is held by worker 5 alone.
    histograms = {5: np.array([0, 3, 0]), 7: np.array([0, 0, 9]), 6: np.array([0, 0, 0])}
    cohort, state = balanced([7, 6, 5], 2, histograms, BalancedState.fresh(3))
    assert (cohort, state) == ([5, 7], BalancedState((0, 3, 9), (-1, 5, 7)))
    # Worker 6 has no samples and only completes the cohort.
    cohort, state = balanced([7, 6, 5], 3, histograms, state)
    assert (cohort, state) == ([5, 6, 7], BalancedState((0, 6, 18), (-1, 5, 7)))


def test_a_dead_worker_is_passed_over_and_the_turn_goes_on():
    histograms = as_histograms([[1], [1], [1], [1]])
    cohort, state = balanced([0, 1, 2, 3], 1, histograms, BalancedState((0,), (1,)))
    assert cohort == [2]
    cohort, state = balanced([0, 1], 1, histograms, state)
    assert cohort == [0]


@settings(max_examples=200, deadline=None)
@given(histograms=tables(), data=st.data())
def test_balanced_cohorts(histograms, data):
    live = data.draw(st.lists(st.sampled_from(sorted(histograms)), min_size=1, unique=True))
    size = data.draw(st.integers(1, len(live)))
    state = BalancedState(
        tuple(data.draw(st.lists(st.integers(0, 99), min_size=3, max_size=3))),
        tuple(data.draw(st.lists(st.integers(-1, 6), min_size=3, max_size=3))),
    )
    cohort, after = balanced(live, size, histograms, state)
    assert cohort == sorted(set(cohort))
    assert len(cohort) == size
    assert set(cohort) <= set(live)
    held = sum(histograms[worker] for worker in cohort)
    assert np.array_equal(np.array(after.counts) - np.array(state.counts), held)
    assert balanced(data.draw(st.permutations(live)), size, histograms, state) == (cohort, after)
    restored = BalancedState.from_plain(msgpack.unpackb(msgpack.packb(after.to_plain())))
    assert restored == after
    assert balanced(live, size, histograms, restored) == balanced(live, size, histograms, after)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 50), min_size=4, max_size=4), min_size=1, max_size=6), data=st.data())
def test_balanced_sampling_is_the_published_queues_where_these_find_someone(rows, data):
    """The released code has a queue of holders for each class; the cohorts of ten rounds are those of such queues."""
    histograms = as_histograms(rows)
    size = data.draw(st.integers(1, len(rows)))
    queues = [deque(range(len(rows))) for _ in range(4)]
    seen = np.zeros(4, dtype=np.int64)
    state = BalancedState.fresh(4)
    for _ in range(10):
        expected = []
        while len(expected) < size:
            queue = queues[int(seen.argmin())]
            while (worker := queue[0]) in expected:
                queue.rotate(-1)
            queue.rotate(-1)
            expected.append(worker)
            seen += histograms[worker]
        cohort, state = balanced(range(len(rows)), size, histograms, state)
        assert cohort == sorted(expected)
        assert state.counts == tuple(seen)


def test_balanced_sampling_sees_the_classes_more_equally_than_uniform_sampling():
    # Class 1 is held by one worker in eight.
    histograms = as_histograms([[10, 0]] * 7 + [[0, 10]])
    state, plain = BalancedState.fresh(2), np.zeros(2)
    for number in range(100):
        _, state = balanced(range(8), 2, histograms, state)
        plain += sum(histograms[worker] for worker in uniform(range(8), 2, 1, number))
    assert state.counts == (1000, 1000)
    assert plain[1] < 500


@pytest.mark.parametrize(
    ("live", "size", "histograms", "classes", "words"),
    [
        ([0, 0], 1, {0: np.array([1])}, 1, "listed twice"),
        ([0], 0, {0: np.array([1])}, 1, "a cohort of 0 out of 1"),
        ([0], 2, {0: np.array([1])}, 1, "a cohort of 2 out of 1"),
        ([], 1, {}, 1, "a cohort of 1 out of 0"),
        ([0, 4], 1, {0: np.array([1])}, 1, "no label histogram of worker 4"),
        ([0], 1, {0: np.array([1])}, 2, "seen 2 classes, the histograms have 1"),
        ([0], 1, {0: np.array([-1])}, 1, "histogram of worker 0"),
        ([0], 1, {0: np.array([1.5])}, 1, "histogram of worker 0"),
        ([0, 1], 1, {0: np.array([1]), 1: np.array([1, 2])}, 1, "histogram of worker 1"),
    ],
)
def test_balanced_sampling_refuses_impossible_arguments(live, size, histograms, classes, words):
    with pytest.raises(ValueError, match=words):
        balanced(live, size, histograms, BalancedState.fresh(classes))


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"counts": [0]},
        {"counts": [0], "turns": [-1], "more": 1},
        {"counts": [], "turns": []},
        {"counts": [0, 0], "turns": [-1]},
        {"counts": "00", "turns": [-1, -1]},
        {"counts": [0.0], "turns": [-1]},
        {"counts": [True], "turns": [-1]},
        {"counts": [-1], "turns": [-1]},
        {"counts": [2**63], "turns": [-1]},
        {"counts": [0], "turns": [-2]},
    ],
)
def test_nonsense_is_no_state(plain):
    with pytest.raises(ValueError, match="balanced sampling"):
        BalancedState.from_plain(plain)


# --- weights -----------------------------------------------------------------------------------

# Everybody together: 16 and 16, total 32. KL to that of workers 0 and 1: 1 x log(1 / 0.5) = log 2; of worker 2: 0.
# Scores: log 2 x 8 / 32 = log(2) / 4 twice, and 0.
HAND = as_histograms([[8, 0], [0, 8], [8, 8]])


@pytest.mark.parametrize(
    ("scheme", "sign", "expected"),
    [
        # exp(-log(2) / 4) = 2^-0.25 = 0.8408964, twice, and 1: 2.6817928 together.
        ("exp", "divergent_less", [0.3135575, 0.3135575, 0.3728849]),
        # 2^0.25 = 1.1892071, twice, and 1: 3.3784142 together.
        ("exp", "as_released", [0.3520016, 0.3520016, 0.2959969]),
        # 8 / (1 + log 2) = 4.7249295, twice, and 16 / 1: 25.4498590 together.
        ("linear", "divergent_less", [0.1856564, 0.1856564, 0.6286872]),
        # The weights are the scores themselves: log(2) / 4, twice, and 0.
        ("linear", "as_released", [0.5, 0.5, 0.0]),
        # The weights are those of exp: none is under half of a third.
        ("dirac", "divergent_less", [0.3135575, 0.3135575, 0.3728849]),
        ("dirac", "as_released", [0.3520016, 0.3520016, 0.2959969]),
    ],
)
def test_weights_by_divergence_worked_out_by_hand(scheme, sign, expected):
    found = weights("kl", scheme, sign, [0, 1, 2], {}, HAND)
    assert list(found) == [0, 1, 2]
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)


def test_the_global_histogram_is_of_everybody_known_and_the_weights_of_those_that_answered():
    # The weights above without worker 1's answer: 2^-0.25 = 0.8408964 and 1, 1.8408964 together.
    found = weights("kl", "exp", "divergent_less", [2, 0], {}, HAND)
    assert list(found) == [0, 2]
    assert found[0] == pytest.approx(0.4567864, abs=1e-6)
    # Without worker 1 the global histogram is 16 and 8 of 24. The KL of worker 0 is log(1 / (2/3)) = 0.4054651, its
    # score x 1/3; the KL of worker 2 is 0.5 log(0.5 / (2/3)) + 0.5 log(0.5 / (1/3)) = -0.1438410 + 0.2027326 =
    # 0.0588915, its score x 2/3.
    without = weights("kl", "exp", "divergent_less", [2, 0], {}, {0: HAND[0], 2: HAND[2]})
    assert without[0] / without[2] == pytest.approx(math.exp(-0.1351550 + 0.0392610), abs=1e-6)


def test_size_and_uniform_weights():
    assert weights("size", "exp", "as_released", [3, 1], {1: 30, 2: 99, 3: 10}, None) == {1: 0.75, 3: 0.25}
    assert weights("uniform", "exp", "as_released", [3, 1, 4, 0], {}, None) == dict.fromkeys((0, 1, 3, 4), 0.25)
    assert weights("size", "exp", "as_released", [0, 1], {0: 0, 1: 0}, None) == {0: 0.5, 1: 0.5}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sign", SIGNS)
def test_workers_whose_data_are_alike_weigh_the_same_exactly(scheme, sign):
    found = weights("kl", scheme, sign, range(3), {}, as_histograms([[7, 1, 3]] * 3))
    assert set(found.values()) == {1 / 3}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_without_samples_disturbs_nothing(scheme, sign):
    found = weights("kl", scheme, sign, [0, 1, 2], {}, as_histograms([[0, 0], [5, 0], [0, 9]]))
    assert all(math.isfinite(weight) for weight in found.values())
    assert sum(found.values()) == pytest.approx(1)
    assert weights("kl", scheme, sign, [0, 1], {}, as_histograms([[0, 0], [0, 0]])) == {0: 0.5, 1: 0.5}


def test_dirac_drops_what_is_under_half_of_the_uniform_share():
    # The sum is 4, the uniform share 1, half of it 0.5.
    assert without_light(np.array([0.499, 0.5, 1.501, 1.5])).tolist() == [0.0, 0.5, 1.501, 1.5]
    assert without_light(np.array([1e-300, 1.0])).tolist() == [0.0, 1.0]
    assert without_light(np.array([2.0])).tolist() == [2.0]


@settings(max_examples=300, deadline=None)
@given(
    histograms=tables(),
    weighting=st.sampled_from(["uniform", "size", "kl"]),
    scheme=st.sampled_from(SCHEMES),
    sign=st.sampled_from(SIGNS),
    data=st.data(),
)
def test_weights_are_shares_of_those_that_answered(histograms, weighting, scheme, sign, data):
    answered = data.draw(st.lists(st.sampled_from(sorted(histograms)), min_size=1, unique=True))
    sizes = {worker: int(row.sum()) for worker, row in histograms.items()}
    found = weights(weighting, scheme, sign, answered, sizes, histograms)
    assert list(found) == sorted(answered)
    assert all(weight >= 0 for weight in found.values())
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    # The weights are the same bits for any order, so leader and successor agree.
    other = dict(data.draw(st.permutations(list(histograms.items()))))
    assert weights(weighting, scheme, sign, data.draw(st.permutations(answered)), sizes, other) == found
    if weighting == "kl" and scheme != "linear":
        assert max(found.values()) <= min(found.values()) * math.exp(1 / math.e) * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(3, 100), more=st.integers(0, 9))
def test_the_sign_decides_whether_the_more_divergent_weighs_more(size, more):
    # Workers 0 and 1 hold equal numbers; worker 0 is nearly like the whole, worker 1 has one class only.
    histograms = as_histograms([[size, size, size], [3 * size, 0, 0], [more, 3 * size, 3 * size]])
    for scheme in SCHEMES:
        less = weights("kl", scheme, "divergent_less", [0, 1], {}, histograms)
        more = weights("kl", scheme, "as_released", [0, 1], {}, histograms)
        assert less[0] > less[1] and more[0] < more[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("kl", "exp", "as_released", [], {}, HAND), "nobody answered"),
        (("kl", "exp", "as_released", [0, 0], {}, HAND), "listed twice"),
        (("kl", "exp", "as_released", [0], {}, None), "share_histograms: true"),
        (("kl", "exp", "as_released", [9], {}, HAND), "no label histogram of worker 9"),
        (("size", "exp", "as_released", [9], {0: 1}, None), "no sample count of worker 9"),
        (("size", "exp", "as_released", [0], {0: -1}, None), "no sample count of worker 0"),
        (("kl", "sharp", "as_released", [0], {}, HAND), "no scheme 'sharp'"),
        (("kl", "exp", "up", [0], {}, HAND), "no sign 'up'"),
        (("even", "exp", "as_released", [0], {}, HAND), "no weighting 'even'"),
    ],
)
def test_impossible_weights_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        weights(*arguments)
