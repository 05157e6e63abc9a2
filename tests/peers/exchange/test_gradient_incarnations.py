"""Exchange of gradients: workers that join, leave or resume, terms that are left out, and the end of a round."""

from __future__ import annotations

import numpy as np
import pytest

from peers.exchange.gradients import BLOCK_VALUES, GradientRule, sum_in_order
from peers.session.meet import Start
from peers.types import Slice
from tests.fleets import contribution, in_threads, integers, make_layout
from tests.lockstep import Lockstep, close, rules

SIZE = 10


@pytest.mark.parametrize(
    ("slack", "own", "is_sync_point"),
    [(1, "immediate", False), (None, "immediate", False), (2, "delayed", False), (2, "delayed", True)],
)
def test_a_joiner_gets_the_rounds_that_its_helper_has_not_had(monkeypatch, slack, own, is_sync_point):
    """Workers 0 and 1 train four rounds, then worker 2 joins by the help of 0. Later means are among three."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, 2), SIZE, rules(slack=slack, own=own), first=[0, 1])
    ones, loaded = np.ones(SIZE, np.float32), {}

    def step(worker, value, round):
        return fleet.exchanges[worker].exchange(ones * value, lambda: is_sync_point and round == 4)

    # The parts have five values each; half of the gradients of two rounds has gathered.
    fleet.together(lambda worker, _: [step(worker, 10 * worker + round, round) for round in (1, 2, 3)], [0, 1])
    if is_sync_point:
        fleet.together(lambda worker, _: step(worker, 10 * worker + 4, 4), [0, 1])
    else:
        step(0, 4, 4)
        step(1, 14, 4)

    def help_out():
        fleet.serve(0, lambda: ({"weights": ones * 7}, {"applied": 3}))

    def come():
        return fleet.join(2, 0, {"weights": SIZE}, lambda vectors, values: loaded.update(vectors, values=values))

    _, at = in_threads([help_out, come])
    assert at == 4 and loaded["values"] == {"applied": 3}
    np.testing.assert_array_equal(loaded["weights"], ones * 7)
    assert fleet.exchanges[0].gate.members() == (1, 2) and fleet.exchanges[1].gate.members() == (0, 2)
    assert fleet.exchanges[2].gate.members() == (0, 1)
    # Part 0 leaves in round 5, part 1 in round 6. They have gathered since round 3, or 4, in workers 0 and 1.
    first, second = np.zeros(SIZE), np.zeros(SIZE)
    first[:5], second[5:] = 1, 1
    said = {
        (0, 3): first * (2 + 3),
        (1, 3): first * (12 + 13),
        (0, 4): second * (3 + 4),
        (1, 4): second * (13 + 14),
        (0, 5): first * (4 + 5),
        (1, 5): first * (14 + 15),
        (2, 5): first * 25,
        (0, 6): second * (5 + 6),
        (1, 6): second * (15 + 16),
        (2, 6): second * (25 + 26),
    }
    if own == "immediate":
        # Worker 0 lacked round 4 of worker 1, so its copy lacks it too. Its copy has all rounds of worker 0.
        expected = {
            (2, 5): 25 + said[1, 4] * 1,
            (0, 5): 5 + said[1, 4] + said[2, 5],
            (1, 5): 15 + said[0, 5] + said[2, 5],
            (2, 6): 26 + said[0, 5] + said[1, 5],
        }
        order = [(2, 5, 25), (0, 5, 5), (1, 5, 15), (2, 6, 26)]
        for worker, round, value in order:
            found = step(worker, value, round)
            close(found, expected[worker, round] / 3)
        return
    for round in (5, 6, 7, 8):
        found = [step(worker, 10 * worker + round, round) for worker in (0, 1, 2)]
        # A sync point applies everything.
        before = [lump for (_, at), lump in said.items() if at == round - 2 > 4 * is_sync_point]
        for values in found:
            close(values, sum(before, np.zeros(SIZE)) / max(1, len(before)))
    assert fleet.dropped() == [{}] * 3


def test_a_worker_that_leaves_alone_sends_its_window_and_a_resumable_one_keeps_it(monkeypatch):
    """A worker that leaves the others empties its window. The window stays where all stop and go on later."""
    for is_resumable in (False, True):
        fleet = Lockstep(monkeypatch, 2, make_layout(SIZE, 4), SIZE, rules(slack=2, reduce="sum"))
        ones = np.ones(SIZE, np.float32)
        fleet.exchanges[0].exchange(ones)
        fleet.exchanges[0].exchange(ones)
        fleet.exchanges[0].leave(is_resumable=is_resumable)
        total = np.zeros(SIZE)
        for _ in range(6):
            total += fleet.exchanges[1].exchange(np.zeros_like(ones))
        expected = np.full(SIZE, 2.0)
        if is_resumable:
            # Part 0 has left with one gradient and part 1 with two; the other parts have not left.
            expected = np.repeat([1.0, 2.0, 0.0], [2, 3, 5])
        close(total, expected)


@pytest.mark.parametrize(("own", "slack", "codec"), [("immediate", 0, "int8"), ("delayed", 1, "raw")])
def test_a_run_goes_on_from_its_checkpoint(monkeypatch, own, slack, codec):
    """The state holds window, feedback and cursors; a fleet that loads it goes on as the first would have."""
    layout, settings = make_layout(SIZE, 4, codec), rules(slack=slack, own=own)
    gradients = integers(np.random.default_rng(0), 9 * 2 * SIZE).reshape(9, 2, SIZE)
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, settings)

    def run(fleet, steps):
        def job(worker, exchange):
            found = [exchange.exchange(gradients[s - 1, worker].copy(), lambda s=s: s == 5) for s in steps]
            return found, exchange.state()

        return fleet.together(job)

    states = [state for _, state in run(fleet, range(1, 6))]
    expected = [found for found, _ in run(fleet, range(6, 10))]
    again = Lockstep(monkeypatch, 2, layout, SIZE, settings, first=[])
    for exchange, (arrays, values) in zip(again.exchanges, states, strict=True):
        assert arrays["window"].any(), "three of four parts have gathered something"
        assert arrays["kept"].any() == (codec != "raw")
        exchange.load_state({name: array.copy() for name, array in arrays.items()}, values)
        assert {peer: cursor.round for peer, cursor in exchange._taken.items()} == {1 - exchange._bus.worker: 5}
    for worker in (0, 1):
        again.exchanges[worker].start(Start("together", 5, again.incarnations([1 - worker])), 5)
    for (found, _), wanted in zip(run(again, range(6, 10)), expected, strict=True):
        close(found, wanted)


# --- one worker, and many -----------------------------------------------------------------------


def test_with_own_delayed_the_last_rounds_of_a_lone_worker_are_applied_at_the_end(monkeypatch):
    """No rounds of peers are there that would show that something is left."""
    fleet = Lockstep(monkeypatch, 1, make_layout(SIZE, 2), SIZE, rules(slack=3, own="delayed"))
    gradients = integers(np.random.default_rng(0), 6 * SIZE).reshape(6, SIZE)
    got = sum(fleet.exchanges[0].exchange(gradient.copy()).copy() for gradient in gradients)
    np.testing.assert_array_equal(got + fleet.finish()[0], gradients.sum(axis=0))


@pytest.mark.parametrize("own", ["immediate", "delayed"])
def test_a_non_finite_gradient_is_left_out_of_the_sum_and_of_the_count(monkeypatch, own):
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=0, own=own))
    values = np.float32([1, 2, 30]).repeat(SIZE).reshape(3, SIZE)
    sent = values.copy()
    sent[2, 3] = np.nan

    def job(worker, exchange):
        return exchange.exchange(sent[worker].copy()).copy(), exchange.exchange(values[worker].copy())

    for first, second in fleet.together(job)[:2]:
        close(first, np.full(SIZE, (1 + 2) / 2))
        close(second, np.full(SIZE, (1 + 2 + 30) / 3))


def test_a_peer_dropped_while_a_checkpoint_awaits_it_shares_nothing(monkeypatch):
    """A bound of one round would let it come later. A checkpoint awaits all peers, and drops this one."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=1))

    def is_sync_point():
        fleet.exchanges[0].gate.drop(2, "its lease has expired")
        return True

    fleet.exchanges[1].exchange(np.full(SIZE, 5, np.float32))
    close(fleet.exchanges[0].exchange(np.ones(SIZE, np.float32), is_sync_point), np.full(SIZE, (1 + 5) / 2))


@pytest.mark.parametrize("exchange", ["gradients", "parameters"])
def test_without_a_bound_nobody_is_awaited_for_a_checkpoint_either(monkeypatch, exchange):
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=None, exchange=exchange, stall_timeout_s=0.0))
    for _ in range(3):
        fleet.exchanges[0].exchange(np.ones(SIZE, np.float32), lambda: True)
    assert fleet.exchanges[0].gate.clock(1) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8])
def test_a_sum_goes_in_worker_order_to_the_last_bit_wherever_the_own_term_is(count):
    vectors = np.random.default_rng(0).standard_normal((count, BLOCK_VALUES + 5)).astype(np.float32)
    expected = vectors[0].copy()
    for vector in vectors[1:]:
        expected += vector
    expected /= np.float32(count)
    whole = Slice(0, BLOCK_VALUES + 5)
    for worker in {0, count // 2, count - 1}:
        own = vectors[worker].copy()
        others = [contribution(w, "", 1, whole, vectors[w].copy(), 0) for w in range(count) if w != worker]
        sum_in_order(worker, own, others[::-1], count)
        np.testing.assert_array_equal(own, expected)


def test_a_worker_that_took_over_a_state_reports_its_applied_round():
    """A joiner may ask the worker for its own state at once."""
    for is_published, applied in ((True, 9), (True, 10), (False, 10)):
        rule = GradientRule(2, make_layout(SIZE), SIZE, 1, True, is_published)
        rule.load_shared({}, {}, 0, 10, applied)
        assert rule.applied(10) == applied


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        ({"slack": 0}, 0),
        ({"slack": 0, "own": "delayed"}, 0),
        ({"slack": 2, "own": "delayed"}, 2),
        ({"slack": 0, "exchange": "parameters"}, 0),
        ({"slack": 2, "exchange": "parameters"}, 2),
        ({"slack": 2}, 4),
    ],
)
def test_a_round_is_not_over_before_its_own_term_has_been_published(monkeypatch, settings, free):
    """The array that is lent to the sender may not change, and the own term enters as the others read it."""
    layout = make_layout(SIZE, may_be_whole=True)
    fleet = Lockstep(monkeypatch, 1, layout, SIZE, rules(**settings))
    (exchange,) = fleet.exchanges
    jobs = []
    exchange._session._sender.submit = lambda job, timeout_s=0.0: jobs.append(job)

    def until(is_done, describe, timeout_s=None):
        if not is_done():
            waits.append(describe())
            jobs.pop(0)()
            assert is_done()

    exchange.gate.until = until
    for round in range(1, 5):
        waits = []
        exchange.exchange(np.ones(SIZE, np.float32))
        assert waits == ([f"our own round {round} to be published"] if round > free else [])


def test_the_own_norms_are_a_measure_as_late_as_the_bound_allows(monkeypatch):
    """The progress of the sender decides nothing: under slack 2 the terms of two rounds ago are known for sure."""
    fleet = Lockstep(monkeypatch, 1, make_layout(SIZE), SIZE, rules(slack=2, norm_gate=10.0))
    screen, known = fleet.exchanges[0]._rule.screen, []
    for value in range(1, 6):
        fleet.exchanges[0].exchange(np.full(SIZE, value, np.float32))
        known.append([round(length / SIZE**0.5) for window in screen._windows.values() for length in window])
    assert known == [[], [], [1], [1, 2], [1, 2, 3]]


@pytest.mark.parametrize("exchange", ["gradients", "parameters"])
def test_a_contribution_is_screened_as_one_of_the_incarnation_that_sent_it(monkeypatch, exchange):
    """A restarted worker has left its offences behind, so the screen has to know the incarnation."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=1, norm_gate=10.0, exchange=exchange))
    screen, incarnations = fleet.exchanges[0]._rule.screen, set()
    whole = screen.usable

    def noted(part, terms, **named):
        incarnations.update((term.sender, term.incarnation) for term in terms if term.sender)
        return whole(part, terms, **named)

    screen.usable = noted
    for _ in range(4):
        for worker in (1, 0):
            fleet.exchanges[worker].exchange(np.ones(SIZE, np.float32))
    assert incarnations == {(1, "life-1")}
