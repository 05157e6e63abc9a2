"""The used contributions: the gate, the offences, and equal decisions of workers with the same state."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.types import Slice
from peers.vectors.partition import Schedule
from peers.vectors.screen import KNOWN, WINDOW, Screen
from tests.fleets import term

PART = Slice(0, 8)


def terms(*norms, incarnation="a"):
    return [term(worker, incarnation, norm) for worker, norm in enumerate(norms)]


def warm(screen, workers=3, rounds=WINDOW, norm=1.0):
    for _ in range(rounds):
        screen.usable(PART, terms(*[norm] * workers))
    return screen


def test_a_term_far_longer_than_usual_is_left_out():
    screen = warm(Screen(0, factor=10))
    assert screen.usable(PART, terms(1, 9.9, 1)) == {0, 1, 2}
    assert screen.usable(PART, terms(1, 10.5, 1)) == {0, 2}
    assert screen.counts == {"gated": 1}
    assert screen.stats() == {"offences": {"1": 1}, "banned": []}


def test_nothing_is_gated_before_enough_is_known():
    screen = Screen(0, factor=10)
    for round in range(KNOWN // 2):
        assert screen.usable(PART, terms(1, 1000)) == {0, 1}, round
    screen = warm(Screen(0, factor=10), workers=2, rounds=KNOWN // 2)
    assert screen.usable(PART, terms(1, 1000)) == {0}


def test_each_part_has_a_measure_of_its_own():
    screen = warm(Screen(0, factor=10))
    assert screen.usable(Slice(8, 16), terms(1, 1000, 1)) == {0, 1, 2}


def test_a_change_of_all_norms_is_no_offence():
    screen = warm(Screen(0, factor=10))
    assert screen.usable(PART, terms(100, 100, 100)) == {0, 1, 2}
    # One of two workers cannot tell which of them is wrong.
    screen = warm(Screen(0, factor=10), workers=2)
    assert screen.usable(PART, terms(1, 100)) == {0}


def test_a_lone_sender_is_not_screened():
    screen = warm(Screen(0, factor=10), workers=1)
    assert screen.usable(PART, terms(1e6)) == {0}


def test_silence_is_no_measure():
    screen = Screen(0, factor=10)
    for _ in range(WINDOW):
        screen.usable(PART, terms(0, 0, 0))
    assert screen.usable(PART, terms(0, 1, 0)) == {0, 1, 2}


def test_our_own_norms_are_a_measure_for_terms_one_by_one():
    screen = Screen(0, factor=10, is_alike=False)
    for _ in range(KNOWN):
        screen.note_own(PART, 1.0)
    assert screen.usable(PART, [term(1, "a", 50.0)]) == set()
    screen.note_own(PART, 40.0)
    assert screen.usable(PART, [term(1, "a", 50.0)]) == {1}


def test_a_non_finite_term_is_left_out_with_the_gate_off_too():
    screen = Screen(0)
    assert screen.usable(PART, terms(1, math.nan, math.inf, 1e30)) == {0, 3}
    assert screen.counts == {"not_finite": 2}


def test_a_sender_is_banned_after_so_many_offences_and_that_is_logged_once():
    lines = []
    screen = Screen(0, most_offences=3, log=lines.append)
    for _ in range(3):
        assert screen.usable(PART, terms(1, math.nan)) == {0}
    assert screen.usable(PART, terms(1, 1)) == {0}
    assert screen.stats() == {"offences": {"1": 3}, "banned": [1]}
    assert screen.counts == {"not_finite": 3, "banned": 1}
    assert len(lines) == 1 and "worker 1 is banned" in lines[0]
    # Another incarnation of the sender begins anew.
    assert screen.usable(PART, terms(1, 1, incarnation="b")) == {0, 1}
    assert screen.stats() == {"offences": {}, "banned": []}


def test_refused_messages_are_offences_and_zero_never_bans():
    screen, alike = Screen(0, most_offences=2, is_alike=False), Screen(0, most_offences=2)
    for _ in range(2):
        screen.note_refused(1, "a")
        alike.note_refused(1, "a")
    assert screen.usable(PART, terms(1, 1)) == {0}
    # Where all decide alike, offences that only one worker may have seen are counted, and ban nobody.
    assert alike.usable(PART, terms(1, 1)) == {0, 1}
    assert alike.stats() == {"offences": {"1": 2}, "banned": []}
    patient = Screen(0, most_offences=0)
    for _ in range(100):
        patient.note_refused(1, "a")
    assert patient.usable(PART, terms(1, 1)) == {0, 1}
    assert patient.stats() == {"offences": {"1": 100}, "banned": []}


def test_our_own_offences_stay_behind_in_another_incarnation():
    screen = Screen(0, most_offences=1)
    screen.usable(PART, [term(0, "", math.nan), term(1, "a", math.nan)])
    schedule = Schedule(16, 2)
    arrays, offences = screen.state(schedule, ())
    again, other = Screen(0, most_offences=1), Screen(2, most_offences=1)
    again.load_state(schedule, arrays, offences)
    other.load_state(schedule, arrays, offences)
    assert again.stats()["offences"] == {"1": 1}
    assert other.stats()["offences"] == {"0": 1, "1": 1}


NORMS = st.one_of(st.floats(0, 1e3), st.sampled_from([1.0, 1.0, 1e9, math.nan, math.inf]))
ROUNDS = st.lists(st.tuples(st.integers(0, 3), st.lists(NORMS, min_size=4, max_size=4)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(ROUNDS, ROUNDS)
def test_a_worker_that_takes_over_a_state_decides_as_its_giver(before, after):
    schedule = Schedule(16, 4)
    slices = schedule.slices
    giver, joiner = Screen(0, 10, 5), Screen(9, 10, 5)
    for part, norms in before:
        giver.usable(slices[part], terms(*norms))
    arrays, offences = giver.state(schedule, (1, 2, 4))
    assert {name: array.size for name, array in arrays.items()} == joiner.sizes(schedule, (1, 2, 4))
    assert all(np.isfinite(array).all() for array in arrays.values())
    joiner.load_state(schedule, arrays, offences)
    for part, norms in after:
        assert giver.usable(slices[part], terms(*norms)) == joiner.usable(slices[part], terms(*norms))
    assert giver.stats() == joiner.stats()
