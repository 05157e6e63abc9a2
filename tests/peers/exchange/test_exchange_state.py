"""The state that an exchange saves, shares with a joiner and publishes beside its rounds, with a slow sender."""

from __future__ import annotations

import numpy as np
import pytest

from peers.errors import StalledError
from peers.exchange.factory import make_rule
from peers.exchange.rule import Outgoing
from peers.session.meet import Start
from peers.types import Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from tests.fleets import contribution, in_threads, integers, make_layout
from tests.lockstep import Lockstep, close, rules

SIZE = 10


def put_off(exchange):
    """Make the sender do nothing until it is drained; its list of jobs."""
    jobs = []

    def drain(timeout_s, log=None):
        while jobs:
            jobs.pop(0)()
        return True

    exchange._session._sender.submit = lambda job, timeout_s=0.0: jobs.append(job)
    exchange._session._sender.drain = drain
    return jobs


def test_the_saved_state_is_that_after_everything_has_been_published(monkeypatch):
    """The values that a codec dropped are known only then."""
    fleet = Lockstep(monkeypatch, 1, make_layout(SIZE, 1, "topk"), SIZE, rules(slack=2))
    (exchange,) = fleet.exchanges
    jobs = put_off(exchange)
    exchange.exchange(np.arange(1, SIZE + 1, dtype=np.float32))
    assert jobs
    arrays, _ = exchange.state()
    # The codec sends one value of ten, the largest.
    np.testing.assert_array_equal(arrays["kept"], [*range(1, SIZE), 0])
    exchange._session._sender.drain = lambda timeout_s, log=None: False
    with pytest.raises(StalledError, match="has not taken everything within"):
        exchange.state()


def test_statistics_are_published_as_they_were(monkeypatch):
    """Without a bound nobody waits for anything, and the caller may change its array again."""
    layout = make_layout(SIZE, state_size=3)
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, rules(slack=None))
    jobs = put_off(fleet.exchanges[0])
    values = np.float32([1, 2, 3])
    np.testing.assert_array_equal(fleet.exchanges[0].average(values), [1, 2, 3])
    values[:] = 99
    for job in jobs:
        job()
    fleet.deliver()
    np.testing.assert_array_equal(fleet.exchanges[1].average(np.float32([3, 4, 8])), [2, 3, 5.5])
    nothing = np.zeros(0, np.float32)
    assert fleet.exchanges[0].average(nothing) is nothing


@pytest.mark.parametrize(("slack", "at"), [(0, 8), (3, 11), (None, 8)])
def test_the_stop_step_is_one_that_every_worker_can_still_reach(monkeypatch, slack, at):
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=slack))
    fleet.exchanges[0].ask_to_stop(7)
    assert [exchange.gate.stop_at for exchange in fleet.exchanges] == [at, at]


def changed(monkeypatch):
    """Two workers after step 17, in four parts since step 16."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, "auto"), SIZE, rules(slack=1), first=[0, 1])
    for exchange in fleet.exchanges:
        exchange._auto.measure = lambda *args: None
        exchange._auto._proposal = 4
    gradients = integers(np.random.default_rng(0), 24 * 3 * SIZE).reshape(24, 3, SIZE)

    def job(worker, exchange):
        for step in range(1, 18):
            exchange.exchange(gradients[step - 1, worker].copy(), lambda step=step: step == 17)
        return exchange.state()

    return fleet, gradients, fleet.together(job, [0, 1])


def test_the_parts_in_force_are_saved(monkeypatch):
    _, _, states = changed(monkeypatch)
    again = Lockstep(monkeypatch, 2, make_layout(SIZE, "auto"), SIZE, rules(slack=1), first=[])
    for worker, exchange in enumerate(again.exchanges):
        exchange.load_state(*states[worker])
        exchange.start(Start("together", 17, again.incarnations([1 - worker])), 17)
        assert exchange.stats()["parts"] == 4
        # These parts began after step 16, so the second part leaves in step 18.
        exchange.exchange(np.zeros(SIZE, np.float32))
    assert again.dropped() == [{}] * 2
    window = again.exchanges[0].state()[0]["window"]
    assert not window[2:5].any() and window[5:].any()


def test_a_joiner_has_the_parts_in_force_and_the_step_at_which_all_stop(monkeypatch):
    fleet, _, _ = changed(monkeypatch)
    fleet.exchanges[0].gate.stop(30)
    fleet.exchanges[1].gate.stop(30)
    _, at = in_threads(
        [
            lambda: fleet.serve(0, lambda: ({}, {})),
            lambda: fleet.join(2, 0, {}, lambda vectors, values: None),
        ]
    )
    joined = fleet.exchanges[2]
    assert at == 17 and joined.stats()["parts"] == 4 and joined.gate.stop_at == 30
    # All workers send the second part, and understand it.
    found = [exchange.exchange(np.full(SIZE, 3, np.float32)) for exchange in fleet.exchanges]
    close(found[2][2:5] * 3 - 3, fleet_sum(fleet))
    assert fleet.dropped() == [{}] * 3


def fleet_sum(fleet):
    """The sum of the second parts that the two others sent in step 18, as the third worker read them."""
    sent = np.zeros(3)
    for bus in fleet.buses[:2]:
        *_, (_, _, payload) = fleet.buses[2]._hub.streams[bus.worker, bus.incarnation, -1].entries
        sent += np.frombuffer(payload, "<f4")
    return sent


def test_a_state_is_given_for_two_leases_and_then_taken_away(monkeypatch):
    """The state stays that long, because a joiner reads it piece by piece."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=1, lease_s=30.0), first=[0])
    clock = Clock()
    monkeypatch.setattr("peers.exchange.joining.time", clock)
    hub = fleet.buses[0]._hub
    in_threads(
        [
            lambda: fleet.serve(0, lambda: ({"weights": np.ones(3, np.float32)}, {})),
            lambda: fleet.join(1, 0, {"weights": 3}, lambda vectors, values: None),
        ]
    )
    for now_s, is_there in ((59.0, True), (61.0, False)):
        clock.now_s = now_s
        fleet.exchanges[0].serve(lambda: ({}, {}))
        assert bool(hub.states[0, fleet.buses[0].incarnation]) == is_there


class Clock:
    now_s = 0.0

    def monotonic(self):
        return self.now_s


def test_a_peer_that_published_its_last_round_is_awaited_no_more(monkeypatch):
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=1))
    gate = fleet.exchanges[0].gate
    gate.note(1, 4)
    gate.note(2, 5)
    assert [gate.unfinished(round) for round in (4, 5, 6)] == [[], [1], [1, 2]]
    gate.leave(1)
    assert gate.unfinished(6) == [2]


def test_the_oldest_remembered_round_goes_without_a_bound():
    outgoing = Outgoing(3)
    for round in range(1, 6):
        outgoing.add(contribution(0, "", round, Slice(0, 1), np.zeros(1, np.float32)))
    assert [round for round in range(1, 6) if outgoing.get(round)] == [3, 4, 5]


def test_changed_parts_begin_with_their_first():
    """The step of the change makes no difference."""
    schedule = Schedule(9, 8).changed(3, 16)
    assert [schedule.slice(step) for step in (17, 18, 19, 20)] == [(0, 3), (3, 6), (6, 9), (0, 3)]


@pytest.mark.parametrize(
    ("changes", "is_alike"),
    [
        ({"own": "immediate", "slack": 0}, False),
        ({"own": "delayed", "slack": 2}, True),
        ({"exchange": "parameters", "slack": 2}, True),
        ({"exchange": "parameters", "slack": None}, False),
        ({"own": "immediate", "slack": None}, False),
    ],
)
def test_all_screen_alike_where_all_screen_the_same(changes, is_alike):
    """In other settings our own norm is no measure for the terms that the others see."""
    rule = make_rule(rules(**changes), 0, make_layout(SIZE), np.zeros(SIZE, np.float32), BufferPool())
    rule.screen.note_refused(1, "a")
    for _ in range(9):
        rule.screen.note_refused(1, "a")
    rule.screen.usable(Slice(0, SIZE), [])
    # A refused message leads to a ban only where the workers need not decide alike.
    assert rule.screen.is_banned(1) != is_alike
