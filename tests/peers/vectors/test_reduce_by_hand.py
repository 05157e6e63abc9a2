"""Robust rules and the screen against numbers worked out by hand; a rule that is nearly right gives other numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peers.types import Slice
from peers.vectors import reduce as robust
from peers.vectors.partition import Schedule
from peers.vectors.screen import KNOWN, WINDOW, Screen
from tests.fleets import term

NAN, INF = float("nan"), float("inf")


def rows(*values):
    """Vectors, one a row."""
    return [np.array(row, np.float32) for row in values]


# --- the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_mean_divides_by_the_number_of_vectors(count):
    some = rows(*[[2.0**k, -k] for k in range(count)])
    np.testing.assert_array_equal(robust.mean(some), np.mean(some, axis=0, dtype=np.float32))
    assert not np.shares_memory(robust.mean(some), some[0])


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        # The norms are 5, 10, 20, 40; the lower of the middle two is 10.
        (rows([3, 4], [6, 8], [12, 16], [24, 32]), (np.array([3, 4]) + 3 * np.array([6, 8])) / 4),
        # The norms are 5 and 10; the smaller counts.
        (rows([3, 4], [-6, 8]), [0, 4]),
        # The middle one of three norms counts; a vector with a smaller norm stays unchanged.
        (rows([1, 0], [0, 4], [0, -80]), [1 / 3, 0]),
        # A non-finite vector counts as zero, and as the longest: 3, 9, inf, inf have 9 in the lower middle ...
        (rows([3, 0], [0, 9], [NAN, 1], [INF, 1]), [0.75, 2.25]),
        # ... and 3, 27, inf have 27.
        (rows([3, 0], [0, 27], [-INF, 1]), [1, 9]),
    ],
)
def test_a_clipped_mean_cuts_to_the_lower_median_norm(some, expected):
    np.testing.assert_allclose(robust.clipped_mean(some), expected, rtol=1e-6)


def test_a_factor_raises_the_norm_of_the_cut():
    some = rows([3, 4], [6, 8], [30, 40])
    np.testing.assert_allclose(robust.clipped_mean(some, 2.5), np.array([3 + 6 + 15, 4 + 8 + 20]) / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "middle"),
    [
        ([5], 5),
        ([1, 4], 2.5),
        ([9, 1, 4], 4),
        ([9, 1, 4, 6], 5),
        ([9, 1, 4, 6, -100], 4),
        # NaN counts as plus infinity, so it is the largest.
        ([NAN, 1, 4], 4),
        ([NAN, NAN, 1, 2, 4], 4),
        ([-INF, 1, 4], 1),
        # The sum of the middle two overflows, and their middle does not.
        ([3e38, 3e38], 3e38),
        ([-3e38, -3e38], -3e38),
        ([1e38, 3e38], 3e38),
    ],
)
def test_a_median_coordinate_by_coordinate(column, middle):
    some = rows(*[[value, 7.0] for value in column])
    np.testing.assert_allclose(robust.median(some), np.array([middle, 7], np.float32), rtol=1e-6)


@pytest.mark.parametrize(
    ("byzantine", "expected"),
    [(0, 23.2), (1, 5), (2, 3), (3, 3), (99, 3)],
)
def test_a_trimmed_mean_leaves_as_many_out_at_either_end(byzantine, expected):
    some = rows([100], [10], [2], [1], [3])
    np.testing.assert_allclose(robust.trimmed_mean(some, byzantine), [expected], rtol=1e-6)
    np.testing.assert_allclose(robust.build("trimmed_mean", byzantine)(some), [expected], rtol=1e-6)
    mirrored = [-vector for vector in some]
    np.testing.assert_allclose(robust.trimmed_mean(mirrored, byzantine), [-expected], rtol=1e-6)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 5.5), (3, 10), (4, 15)])
def test_trimming_leaves_one_of_few_vectors(count, expected):
    some = rows([1], [10], [20], [100])[:count]
    np.testing.assert_allclose(robust.trimmed_mean(some, 2), [expected], rtol=1e-6)


def clip_by_hand(some, rounds, radius=None):
    """Karimireddy et al., algorithm 2, from the median on, in float64; the centre after each round."""
    stack = np.array(some, np.float64)
    centre, trail = np.median(stack, axis=0), []
    for _ in range(rounds):
        away = stack - centre
        lengths = np.linalg.norm(away, axis=1)
        most = np.sort(lengths)[(len(lengths) - 1) // 2] if radius is None else radius
        scales = [min(1, most / length) if length else 1 for length in lengths]
        centre = centre + (away * np.array(scales)[:, None]).mean(axis=0)
        trail.append(centre)
    return trail


@pytest.mark.parametrize("radius", [None, 0.5, 3.0])
@pytest.mark.parametrize("count", [4, 5])
def test_centred_clipping_takes_three_steps_from_the_median(count, radius):
    random = np.random.default_rng(count)
    some = rows(*random.standard_normal((count - 1, 6)), np.full(6, 40))
    trail = clip_by_hand(some, 5, radius)
    np.testing.assert_allclose(robust.centered_clip(some, radius), trail[2], rtol=1e-5, atol=1e-6)
    for rounds in (1, 2, 5):
        np.testing.assert_allclose(robust.centered_clip(some, radius, rounds), trail[rounds - 1], rtol=1e-5, atol=1e-6)
    if radius is None:
        np.testing.assert_allclose(robust.build("centered_clip")(some), trail[2], rtol=1e-5, atol=1e-6)
    steps = [np.linalg.norm(one - other) for one, other in zip(trail, trail[1:], strict=False)]
    assert min(steps) > 5e-4, "so that a number of steps can be told from another"


def test_centred_clipping_takes_a_non_finite_vector_for_the_centre():
    some = rows([0, 0], [2, 0], [0, 3], [NAN, 1])
    # The median takes the NaN for plus infinity: (1, 0.5). The squared distances from there are 1.25 twice, 7.25 and
    # inf.
    found = robust.centered_clip(some, rounds=1)
    moves = np.array([[-1, -0.5], [1, -0.5], np.array([-1, 2.5]) * math.sqrt(1.25 / 7.25), [0, 0]])
    np.testing.assert_allclose(found, np.array([1, 0.5]) + moves.mean(axis=0), rtol=1e-6)


# --- norms -----------------------------------------------------------------------------------------


def test_the_norm_of_values_whose_squares_overflow():
    assert robust.norm(np.array([3e30, 4e30], np.float32)) == pytest.approx(5e30, rel=1e-6)
    assert robust.norm(np.full(4, 3e38, np.float32)) == pytest.approx(6e38, rel=1e-6), "more than a float32 holds"
    assert robust.norm(np.array([1, -INF], np.float32)) == INF
    assert math.isnan(robust.norm(np.array([1, NAN], np.float32)))
    assert robust.norm(np.empty(0, np.float32)) == 0


def test_a_norm_is_taken_from_known_squares():
    values = np.array([3, 4], np.float32)
    assert robust.norm(values) == 5 and robust.norm(values, 144.0) == 12 and robust.norm(values, 0.0) == 0


def test_squares_add_up_from_piece_to_piece():
    values = np.arange(robust.SQUARES_VALUES + 3, dtype=np.float32) % 4
    whole = float(np.square(values, dtype=np.float64).sum())
    assert robust.squares(values) == whole
    assert robust.squares(values[7:], robust.squares(values[:7])) == whole
    assert robust.distance(values + 2, values) == pytest.approx(2 * math.sqrt(values.size), rel=1e-6)


# --- the norm gate ---------------------------------------------------------------------------------

PART, OTHER = Slice(0, 8), Slice(8, 16)


def terms(*norms, incarnation="a"):
    return [term(worker, incarnation, norm) for worker, norm in enumerate(norms)]


def knowing(norms, factor=2.0, **more):
    """A screen of worker 9, to which these norms have been shown, one a round."""
    screen = Screen(9, factor, **more)
    for norm in norms:
        screen._note(PART, norm)
    return screen


@pytest.mark.parametrize(
    ("seen", "limit"),
    [
        ([1.0] * 5 + [100.0] * 4, 2.0),
        # The upper one of the middle two counts in an even number.
        ([1.0] * 4 + [3.0] * 4, 6.0),
        ([1.0] * 5 + [3.0] * 3, 2.0),
    ],
)
def test_the_limit_is_the_factor_times_the_running_median(seen, limit):
    screen = knowing(seen)
    # The others are silent, so that only the earlier norms count.
    assert screen.usable(PART, terms(0.01, limit, 0.01)) == {0, 1, 2}
    screen = knowing(seen)
    assert screen.usable(PART, terms(0.01, limit * 1.001, 0.01)) == {0, 2}


def test_the_limit_follows_the_lower_median_of_the_others_where_that_is_larger():
    for own, accepted in ((12.0, {0, 1, 2, 3}), (12.1, {0, 1, 2})):
        screen = knowing([1.0] * 8)
        # The others of the last one have 5, 6 and 7; the others of each other have 6, 7 and the last one's norm.
        assert screen.usable(PART, terms(5, 6, 7, own)) == accepted, own
    screen = knowing([1.0] * 8)
    # The lower of two others counts, so one worker alone cannot make room for another.
    assert screen.usable(PART, terms(1.0, 50.0, 60.0)) == {0}
    # The silence of another worker is no measure.
    screen = knowing([1.0] * 8)
    assert screen.usable(PART, terms(0.0, 3.0, 3.0)) == {0, 1, 2}


def test_the_gate_is_active_from_the_eighth_norm():
    assert KNOWN == 8
    for count, accepted in ((7, {0, 1}), (8, {0})):
        assert knowing([1.0] * count).usable(PART, terms(1.0, 100.0)) == accepted


def test_a_rejected_norm_is_no_measure_for_later_ones():
    screen = knowing([1.0] * 8)
    for _ in range(40):
        assert screen.usable(PART, terms(1.0, 100.0)) == {0}
    assert screen.counts == {"gated": 40}


def test_a_measure_is_of_the_last_sixty_four():
    assert WINDOW == 64
    screen = knowing([1.0] * 64 + [5.0] * 31)
    assert screen.usable(PART, terms(0.01, 2.1)) == {0}, "33 of the last 64 are ones"
    screen = knowing([1.0] * 64 + [5.0] * 33)
    assert screen.usable(PART, terms(0.01, 9.9)) == {0, 1}


def test_the_ban_after_an_offence_and_the_terms_that_still_count():
    screen = Screen(9, most_offences=2)
    assert screen.usable(PART, terms(1.0, NAN)) == {0} and not screen.is_banned(1)
    assert screen.usable(OTHER, terms(1.0, INF)) == {0} and screen.is_banned(1)
    assert screen.usable(PART, terms(1.0, NAN)) == {0}
    assert screen.counts == {"not_finite": 2, "banned": 1}
    assert screen.stats() == {"offences": {"1": 2}, "banned": [1]}


def test_the_norm_of_a_banned_sender_is_no_measure():
    screen = knowing([1.0] * 8, most_offences=1)
    assert screen.usable(PART, terms(1.0, NAN, 1.0)) == {0, 2}
    # Otherwise the lower median of 30 and 30 would make room for 50.
    assert screen.usable(PART, terms(1.0, 50.0, 50.0, 1.0)) == {0, 3}


def test_one_by_one_the_newest_norm_of_each_sender_counts_until_its_ban():
    screen = knowing([1.0] * 8, most_offences=2, is_alike=False)
    screen.note_own(PART, 30.0)
    assert screen.usable(PART, [term(1, "a", 30.0)]) == {1}
    # The others of worker 2 have 30 and 30; another part has no norms.
    assert screen.usable(PART, [term(2, "a", 60.0)]) == {2}
    for _ in range(2):
        assert screen.usable(PART, [term(2, "a", INF)]) == set()
    assert screen.is_banned(2) and set(screen._newest[PART]) == {1, 9}


def test_without_a_gate_the_own_norm_is_not_noted():
    screen = Screen(9, 0.0, is_alike=False)
    screen.note_own(PART, 1.0)
    assert not screen._newest and not screen._windows
    screen = Screen(9, 1.0, is_alike=False)
    screen.note_own(PART, INF)
    assert not screen._newest and not screen._windows


def test_an_ungated_term_has_only_to_be_finite_and_is_no_measure():
    screen = knowing([1.0] * 8)
    assert screen.usable(PART, terms(1.0, 1000.0, NAN), is_gated=False) == {0, 1}
    assert screen.usable(PART, terms(1.0, 3.0)) == {0}


def test_a_state_has_the_norms_by_part_and_the_offences_by_incarnation():
    schedule = Schedule(8, 4)
    screen = Screen(9, 2.0, most_offences=5)
    parts = [Slice(0, 2), Slice(2, 4), Slice(4, 6), Slice(6, 8)]
    for number, part in enumerate(parts, 1):
        for length in range(number):
            screen.usable(part, [term(3, "b", 10.0 * number + length)])
    screen.usable(parts[0], [term(5, "c", NAN), term(9, "", NAN)])
    arrays, offences = screen.state(schedule, (1, 2, 8))
    assert screen.sizes(schedule, (1, 2, 8)) == {"norms": 64 * 8}
    found = arrays["norms"].reshape(8, 64)
    expected = np.zeros((8, 64), np.float32)
    for number in range(1, 5):
        expected[number - 1, :number] = [10.0 * number + length for length in range(number)]
    np.testing.assert_array_equal(found, expected)
    assert offences == [[5, "c", 1], [9, "", 1]]
    other = Screen(1, 2.0, most_offences=5)
    other.load_state(schedule, arrays, offences)
    again, same = other.state(schedule, (1, 2, 8))
    np.testing.assert_array_equal(again["norms"], arrays["norms"])
    assert same == offences
    # A new incarnation of the offender begins anew; the same incarnation does not.
    other.usable(parts[0], [term(5, "c", 1.0)])
    assert other.stats()["offences"] == {"5": 1, "9": 1}
    other.usable(parts[0], [term(5, "d", 1.0)])
    assert other.stats()["offences"] == {"9": 1}


def test_old_parts_are_forgotten_and_those_in_force_kept():
    screen = Screen(9, 2.0)
    for _ in range(8):
        screen.usable(Slice(0, 8), terms(1.0, 1.0))
        screen.usable(Slice(0, 16), terms(1.0, 1.0))
    screen.reschedule(Schedule(16, 2))
    assert screen.usable(Slice(0, 8), terms(1.0, 9.0)) == {0}
    # The screen learns nothing of parts of another cut.
    for _ in range(30):
        assert screen.usable(Slice(0, 16), terms(1.0, 9.0)) == {0, 1}


def test_a_norm_is_kept_as_a_state_has_it():
    """The screen keeps float32, so that a worker with a state decides as the worker that measured the norm."""
    screen = Screen(9, 2.0)
    for length in (0.1, 1e39, 0.0):
        screen.usable(PART, terms(length))
    assert list(screen._windows[PART]) == [float(np.float32(0.1)), float(np.finfo(np.float32).max)]


def test_a_rule_is_found_by_its_name():
    assert [robust.build(name) for name in ("mean", "sum", "median", "clipped_mean", "centered_clip")] == [
        robust.mean,
        robust.mean,
        robust.median,
        robust.clipped_mean,
        robust.centered_clip,
    ]
    np.testing.assert_array_equal(robust.build("trimmed_mean")(rows([1], [5], [90])), [5])


def test_refused_messages_count_only_where_each_decides_for_itself():
    lines = []
    screen = Screen(9, most_offences=2, is_alike=False, log=lines.append)
    for _ in range(5):
        screen.note_refused(1, "a")
    assert screen.usable(PART, terms(1.0, 1.0)) == {0}
    # A term of a banned sender is no further offence, and a new incarnation begins anew.
    assert screen.stats() == {"offences": {"1": 2}, "banned": [1]} and len(lines) == 1
    screen.note_refused(1, "b")
    assert screen.usable(PART, terms(1.0, 1.0, incarnation="b")) == {0, 1}
    assert screen.stats() == {"offences": {"1": 1}, "banned": []}
