"""Whose contributions are used: the gate, the strikes, and that whoever has the same state decides alike."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.types import Slice
from peers.vectors.partition import Schedule
from peers.vectors.screen import KNOWN, WINDOW, Judge, Term

PART = Slice(0, 8)


def terms(*norms, life="a"):
    return [Term(worker, life, norm) for worker, norm in enumerate(norms)]


def warm(judge, workers=3, rounds=WINDOW, norm=1.0):
    for _ in range(rounds):
        judge.judge(PART, terms(*[norm] * workers))
    return judge


def test_what_is_far_longer_than_usual_is_left_out():
    judge = warm(Judge(0, factor=10))
    assert judge.judge(PART, terms(1, 9.9, 1)) == {0, 1, 2}
    assert judge.judge(PART, terms(1, 10.5, 1)) == {0, 2}
    assert judge.counts == {"gated": 1}
    assert judge.stats() == {"strikes": {"1": 1}, "muted": []}


def test_nothing_is_gated_before_enough_is_known():
    judge = Judge(0, factor=10)
    for round in range(KNOWN // 2):
        assert judge.judge(PART, terms(1, 1000)) == {0, 1}, round
    judge = warm(Judge(0, factor=10), workers=2, rounds=KNOWN // 2)
    assert judge.judge(PART, terms(1, 1000)) == {0}


def test_each_part_has_a_measure_of_its_own():
    judge = warm(Judge(0, factor=10))
    assert judge.judge(Slice(8, 16), terms(1, 1000, 1)) == {0, 1, 2}


def test_where_all_are_longer_it_is_the_measure_that_is_off():
    judge = warm(Judge(0, factor=10))
    assert judge.judge(PART, terms(100, 100, 100)) == {0, 1, 2}
    # And one of two cannot say which of them is.
    judge = warm(Judge(0, factor=10), workers=2)
    assert judge.judge(PART, terms(1, 100)) == {0}


def test_who_is_alone_is_not_judged():
    judge = warm(Judge(0, factor=10), workers=1)
    assert judge.judge(PART, terms(1e6)) == {0}


def test_silence_is_no_measure():
    judge = Judge(0, factor=10)
    for _ in range(WINDOW):
        judge.judge(PART, terms(0, 0, 0))
    assert judge.judge(PART, terms(0, 1, 0)) == {0, 1, 2}


def test_our_own_norms_are_a_measure_for_what_comes_one_by_one():
    judge = Judge(0, factor=10, is_alike=False)
    for _ in range(KNOWN):
        judge.note_own(PART, 1.0)
    assert judge.judge(PART, [Term(1, "a", 50.0)]) == set()
    judge.note_own(PART, 40.0)
    assert judge.judge(PART, [Term(1, "a", 50.0)]) == {1}


def test_what_is_not_finite_is_left_out_with_the_gate_off_too():
    judge = Judge(0)
    assert judge.judge(PART, terms(1, math.nan, math.inf, 1e30)) == {0, 3}
    assert judge.counts == {"not_finite": 2}


def test_after_so_many_strikes_a_sender_is_muted_and_that_is_said_once():
    lines = []
    judge = Judge(0, most_strikes=3, say=lines.append)
    for _ in range(3):
        assert judge.judge(PART, terms(1, math.nan)) == {0}
    assert judge.judge(PART, terms(1, 1)) == {0}
    assert judge.stats() == {"strikes": {"1": 3}, "muted": [1]}
    assert judge.counts == {"not_finite": 3, "muted": 1}
    assert len(lines) == 1 and "worker 1 is muted" in lines[0]
    # Another life of it begins anew.
    assert judge.judge(PART, terms(1, 1, life="b")) == {0, 1}
    assert judge.stats() == {"strikes": {}, "muted": []}


def test_refused_messages_are_strikes_and_zero_never_mutes():
    judge, alike = Judge(0, most_strikes=2, is_alike=False), Judge(0, most_strikes=2)
    for _ in range(2):
        judge.note_refused(1, "a")
        alike.note_refused(1, "a")
    assert judge.judge(PART, terms(1, 1)) == {0}
    # Where all decide alike, what only one may have seen is shown, and mutes nobody.
    assert alike.judge(PART, terms(1, 1)) == {0, 1}
    assert alike.stats() == {"strikes": {"1": 2}, "muted": []}
    patient = Judge(0, most_strikes=0)
    for _ in range(100):
        patient.note_refused(1, "a")
    assert patient.judge(PART, terms(1, 1)) == {0, 1}
    assert patient.stats() == {"strikes": {"1": 100}, "muted": []}


def test_our_own_strikes_stay_behind_in_another_life():
    judge = Judge(0, most_strikes=1)
    judge.judge(PART, [Term(0, "", math.nan), Term(1, "a", math.nan)])
    schedule = Schedule(16, 2)
    arrays, strikes = judge.state(schedule, ())
    again, other = Judge(0, most_strikes=1), Judge(2, most_strikes=1)
    again.load_state(schedule, arrays, strikes)
    other.load_state(schedule, arrays, strikes)
    assert again.stats()["strikes"] == {"1": 1}
    assert other.stats()["strikes"] == {"0": 1, "1": 1}


NORMS = st.one_of(st.floats(0, 1e3), st.sampled_from([1.0, 1.0, 1e9, math.nan, math.inf]))
ROUNDS = st.lists(st.tuples(st.integers(0, 3), st.lists(NORMS, min_size=4, max_size=4)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(ROUNDS, ROUNDS)
def test_who_takes_over_the_state_decides_as_its_giver(before, after):
    schedule = Schedule(16, 4)
    slices = schedule.slices
    giver, joiner = Judge(0, 10, 5), Judge(9, 10, 5)
    for part, norms in before:
        giver.judge(slices[part], terms(*norms))
    arrays, strikes = giver.state(schedule, (1, 2, 4))
    assert {name: array.size for name, array in arrays.items()} == joiner.sizes(schedule, (1, 2, 4))
    assert all(np.isfinite(array).all() for array in arrays.values())
    joiner.load_state(schedule, arrays, strikes)
    for part, norms in after:
        assert giver.judge(slices[part], terms(*norms)) == joiner.judge(slices[part], terms(*norms))
    assert giver.stats() == joiner.stats()
