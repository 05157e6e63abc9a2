"""Incarnations of an exchange: peers that come back or are not awaited, entries that are gone before they are read."""

from __future__ import annotations

import numpy as np
import pytest

from peers.errors import LeaseExpiredError
from peers.exchange.gate import make_gate
from peers.types import Cursor, Entry
from peers.wire.encode import encode_fields
from tests.fleets import in_threads, make_layout
from tests.lockstep import Lockstep, rules

SIZE = 10
ONES = np.ones(SIZE, np.float32)


def join(fleet, worker, helper):
    _, at = in_threads(
        [lambda: fleet.serve(helper, lambda: ({}, {})), lambda: fleet.join(worker, helper, {}, lambda *state: None)]
    )
    return at


def test_a_joiner_does_not_await_a_dropped_peer(monkeypatch):
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=1), first=[0, 1])
    for worker in (0, 1, 0, 1):
        fleet.exchanges[worker].exchange(ONES.copy())
    fleet.exchanges[0].gate.drop(1, "its lease has expired")
    assert join(fleet, 2, 0) == 2
    assert fleet.exchanges[2].gate.members() == (0,) and fleet.exchanges[0].gate.members() == (2,)


def test_the_missing_rounds_of_a_former_incarnation_are_not_missed_in_the_next(monkeypatch):
    """Worker 2 dies after its first round, and joins again when the others have gone on without it."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=1))
    for worker in (2, 0, 1):
        fleet.exchanges[worker].exchange(ONES.copy())
    for worker in (0, 1):
        fleet.exchanges[worker].gate.drop(2, "its lease has expired")
    for _ in range(4):
        for worker in (0, 1):
            fleet.exchanges[worker].exchange(ONES.copy())
    fleet.renew(2)
    assert join(fleet, 2, 0) == 5
    for worker in (2, 0, 1):
        fleet.exchanges[worker].exchange(ONES.copy())
    assert fleet.dropped() == [{}] * 3
    assert [exchange.gate.members() for exchange in fleet.exchanges] == [(1, 2), (0, 2), (0, 1)]


def test_a_joiner_with_a_state_is_not_dropped_by_its_late_greeting(monkeypatch):
    """The proposal of a joiner to one peer and its greeting to all have no order."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=1), first=[0])
    fleet.exchanges[0]._inbox._requests = {1: (fleet.buses[1].incarnation, "token")}
    fleet.buses[0].follow(1, fleet.buses[1].incarnation)
    fleet.exchanges[0].serve(lambda: ({}, {}))
    assert fleet.exchanges[0].gate.members() == (1,)
    fleet.exchanges[1]._session.hello(0, is_joining=True)
    assert fleet.exchanges[0].gate.members() == (1,)


def test_rounds_gone_before_the_first_was_read_are_counted(monkeypatch):
    """The outbox without a bound has the last 4 + 16 entries of a greeting and 50 rounds."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=None, keep_rounds=4))
    fleet.deaf = {1}
    for _ in range(50):
        fleet.exchanges[0].exchange(ONES.copy())
    fleet.deaf = set()
    fleet.deliver()
    assert fleet.exchanges[1]._inbox.dropped() == {"overrun": 30}


def test_a_replay_ends_with_the_newest_entry_of_then(monkeypatch):
    layout = make_layout(SIZE)
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, rules(slack=1), first=[])
    inbox, gate = fleet.exchanges[0]._inbox, fleet.exchanges[0].gate
    inbox.expect_after(1, Cursor("a", 0, 0))
    inbox.replay({1: 5})
    for number, is_replaying in ((4, True), (5, False)):
        ((header, payload),) = encode_fields(layout, "goodbye", 0, {})
        inbox.feed(Entry(1, "a", number, True, header, payload))
        assert gate.is_replaying == is_replaying
    inbox.replay({1: 0})
    assert not gate.is_replaying, "a peer without entries has nothing to read"


# --- the gate of an exchange --------------------------------------------------------------------


def gate_of(peers=(1, 2, 3), **changes):
    gate = make_gate(rules(**changes), peers, make_layout(SIZE), lambda line: None)
    for peer in peers:
        gate.admit(peer, 0)
    return gate


class Waits(Exception):
    pass


def waits(gate, round):
    def until(is_done, describe, timeout_s=None):
        if not is_done():
            raise Waits

    gate.until = until
    try:
        gate.wait(round)
    except Waits:
        return True
    return False


def test_the_bound_is_in_rounds():
    gate = gate_of(slack=3)
    assert not waits(gate, 3) and waits(gate, 4)


def test_a_minority_waits():
    gate = gate_of(slack=3, min_peers=2)
    gate.drop(1, "gone")
    assert not waits(gate, 1)
    gate.drop(2, "gone")
    assert waits(gate, 2)


def test_being_left_behind_takes_a_majority_that_is_more_than_a_minority():
    """The peers that are ahead must be more than half of all, and more than a minority."""
    gate = gate_of(slack=0, min_peers=2)
    for peer in (1, 2, 3):
        gate.note(peer, 1)
    gate.wait(1)
    lead = 0 + 2 + 1
    gate.note(1, 2 + lead + 1)
    gate.note(2, 2 + lead + 1)
    gate.note(3, 2)
    gate.wait(2)
    gate.note(3, 2 + lead + 1)
    with pytest.raises(LeaseExpiredError, match="have not awaited it"):
        gate.wait(2)


def test_the_others_may_be_ahead_during_a_replay():
    gate = gate_of(slack=0)
    gate.is_replaying = True
    for round in (1, 50):
        for peer in (1, 2, 3):
            gate.note(peer, round)
        gate.wait(1)
    gate.is_replaying = False
    for peer in (1, 2, 3):
        gate.note(peer, 50)
    gate.wait(49)
    for peer in (1, 2, 3):
        gate.note(peer, 90)
    with pytest.raises(LeaseExpiredError):
        gate.wait(50)


def test_without_a_bound_one_state_of_each_is_kept():
    gate = gate_of(slack=None)
    for peer, round in ((2, 1), (1, 3), (1, 7)):
        gate.put_state(peer, round, np.full(1, round))
    assert {peer: values[0] for peer, values in gate.wait_states(9).items()} == {2: 1, 1: 7}
    assert len(gate._states) == 2


def test_a_peer_that_comes_back_after_a_goodbye_is_awaited_again():
    gate = gate_of(slack=0, peers=(1,))
    gate.leave(1)
    assert not waits(gate, 5)
    gate.admit(1, 5)
    assert gate.members() == (1,) and waits(gate, 6)
