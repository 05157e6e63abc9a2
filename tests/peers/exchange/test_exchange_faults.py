"""Faults in an exchange: contributions that are far too long, misplaced, late, malformed or absent."""

from __future__ import annotations

import numpy as np
import pytest

from peers.errors import MessageError, StalledError
from peers.exchange.inbox import Inbox
from peers.exchange.parameters import ParameterRule
from peers.exchange.window import Accumulator
from peers.session.meet import Start
from peers.types import Entry, Slice
from peers.wire.encode import encode_fields, encode_vector
from tests.fleets import contribution, make_layout
from tests.lockstep import Lockstep, close, rules

SIZE = 10
WHOLE = Slice(0, SIZE)
ONES, ZEROS = np.ones(SIZE, np.float32), np.zeros(SIZE, np.float32)


@pytest.mark.parametrize("slack", [0, 1])
def test_with_own_delayed_an_overlong_gradient_is_left_out_by_all_even_its_sender(monkeypatch, slack):
    settings = rules(slack=slack, own="delayed", norm_gate=10.0)
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, settings)

    def job(worker, exchange):
        found = []
        for step in range(12):
            value = 1000 if (worker, step) == (2, 9) else worker + 1
            found.append(exchange.exchange(ONES * value)[0])
        return found

    expected = [0] * slack + [2] * 9 + [1.5] + [2] * (2 - slack)
    for found in fleet.together(job):
        close(found, expected)
    assert fleet.dropped() == [{"gated": 1}] * 3


@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_weights_are_measured_by_their_distance_from_the_reference(monkeypatch, codec):
    """The size of the weights is no measure: with weights of 100, a step of 5 is fifty times as long as usual."""
    layout = make_layout(SIZE, 1, codec, may_be_whole=True)
    initial = np.full(SIZE, 100, np.float32)
    settings = rules(slack=0, exchange="parameters", norm_gate=10.0)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, settings, initial)

    def job(worker, exchange):
        mine = initial.copy()
        for step in range(10):
            mine += np.float32(5 if (worker, step) == (2, 9) else 0.1)
            exchange.exchange(mine)
        return mine

    # The mean lacks the rejected difference. Its sender follows the others, except for the error that its codec kept.
    for mine in fleet.together(job)[:2]:
        close(mine, np.full(SIZE, 101), 1e-3)
    assert fleet.dropped() == [{"gated": 1}] * 3


def item(round, values, part=WHOLE):
    return contribution(1, "a", round, part, values, 1)


def test_a_misplaced_or_late_contribution_is_counted_and_changes_nothing():
    rule = ParameterRule(0, make_layout(SIZE), ZEROS, 0)
    rule.begin(5)
    mine = ONES.copy()
    list(rule.encoder.encode(rule.offer(6, WHOLE, mine), {}))
    rule.collect(6, mine, [item(3, 9 * ONES), item(6, 9 * ONES[:4], Slice(0, 4))], 1)
    np.testing.assert_array_equal(mine, ONES)
    assert rule.counts == {"late": 1, "misaligned": 1}


@pytest.mark.parametrize(("broken", "is_whole"), [([3, 5], True), ([0, 4], True), ([4, 5], False), ([0, 2], False)])
def test_a_part_that_overlaps_a_differing_one_is_sent_whole(broken, is_whole):
    """The parts may have changed since the difference was seen."""
    layout = make_layout(SIZE, 1, "int8", may_be_whole=True)
    rule = ParameterRule(0, layout, ZEROS, 0)
    rule.load_state({"reference": ZEROS}, {"broken": [broken]})
    assert rule.offer(1, Slice(2, 4), ONES).is_whole == is_whole
    assert not rule.offer(2, Slice(2, 4), ONES).is_whole


def test_a_malformed_message_is_an_offence_and_a_damaged_one_is_none(monkeypatch):
    layout = make_layout(SIZE)
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, rules(slack=2))
    fleet.buses[1].publish(encode_fields(layout, "admit", 1, {"worker": "x"}))
    fleet.deliver()
    fleet.exchanges[0].exchange(ONES.copy())
    fleet.exchanges[1].exchange(ONES.copy())
    fleet.exchanges[0].exchange(ONES.copy())
    assert fleet.exchanges[0].stats()["offences"] == {"1": 1}
    refused = []
    inbox = Inbox(0, layout, Accumulator(), fleet.exchanges[0].gate, refused=lambda *who: refused.append(who))
    ((header, payload),) = encode_vector(layout, "part", 1, WHOLE, ONES)
    damaged = Entry(1, "a", 1, True, header, bytes(payload)[:-1] + b"\x01")
    assert not inbox.feed(damaged, may_come_again=True) and inbox.dropped() == {}
    assert inbox.feed(damaged) and inbox.dropped() == {"checksum": 1} and not refused
    ((header, payload),) = encode_vector(make_layout(SIZE + 1), "part", 1, Slice(0, SIZE + 1), np.ones(SIZE + 1, "f4"))
    assert inbox.feed(Entry(1, "a", 2, True, header, bytes(payload))) and refused == [(1, "a")]


def test_a_peer_that_does_not_finish_is_awaited_until_the_time_out_and_counted(monkeypatch):
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=2, reduce="sum", finish_timeout_s=7.0))
    first, waited = fleet.exchanges[0], []
    first.exchange(ONES.copy())
    fleet.exchanges[1].exchange(5 * ONES)

    def until(is_done, describe, timeout_s=None):
        if not is_done():
            waited.append((describe(), timeout_s))
            raise StalledError("waited")

    first.gate.until = until
    left = first.finish(ZEROS.copy())
    assert waited == [("workers 2 to finish", 7.0)]
    close(left, 5 * ONES)
    assert first.stats()["dropped"] == {"unfinished": 1}
    assert any("ending without what is left of them" in line for line in fleet.lines)


@pytest.mark.parametrize("meta", [{}, {"round": "x"}, {"round": 3, "applied": 3, "cursors": [], "stop_at": None}])
def test_a_state_without_sense_is_malformed(monkeypatch, meta):
    """The error is none of our own, so that the worker asks another peer."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=1), first=[0])
    monkeypatch.setattr("peers.exchange.exchange.ask", lambda *args: ({}, meta))
    with pytest.raises(MessageError, match="the state of worker 0"):
        fleet.join(1, 0, {}, lambda *state: None)


def test_a_replaying_worker_reads_and_publishes_again_the_rounds_since_its_checkpoint(monkeypatch):
    """Worker 1 goes on from step 4 while the other is at step 6. Nothing is applied twice, and it ends as before."""
    layout, settings = make_layout(SIZE, 2), rules(slack=1, own="delayed")
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, settings)
    gradients = np.random.default_rng(0).integers(-9, 10, (7, 2, SIZE)).astype(np.float32)

    def job(worker, exchange):
        found, state = [], None
        for step in range(1, 7):
            found.append(exchange.exchange(gradients[step - 1, worker].copy(), lambda step=step: step == 4))
            state = exchange.state() if step == 4 else state
        return found, state

    (_, _), (found, state) = fleet.together(job)
    fleet.renew(1)
    fleet.buses[0].follow(1, fleet.buses[1].incarnation)
    again = fleet.exchanges[1]
    again.load_state(*state)
    assert again.start(Start("replay", 4, fleet.incarnations([0])), 4) == 4
    # The worker reads all published entries of the other, which may be ahead by more than the bound until then.
    assert again.gate.is_replaying
    assert fleet.exchanges[0].gate.members() == (1,) and fleet.exchanges[0].gate.clock(1) == 6
    for step in (5, 6):
        np.testing.assert_array_equal(again.exchange(gradients[step - 1, 1].copy()), found[step - 1])
    assert not again.gate.is_replaying
    assert fleet.dropped() == [{"replayed": 2}, {}]
    # The run goes on: in step 7 both apply step 6.
    last = [fleet.exchanges[worker].exchange(gradients[6, worker].copy()) for worker in (0, 1)]
    np.testing.assert_array_equal(last[0], last[1])
