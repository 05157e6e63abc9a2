"""The parts with threads, one by one: pool, gate, accumulator, inbox."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from peers.errors import LeaseExpiredError, PeersError, StalledError
from peers.exchange.clock import SspClock
from peers.exchange.gate import ClockGate
from peers.exchange.inbox import Inbox
from peers.exchange.window import Accumulator, GradientWindow
from peers.session.sender import SenderThread
from peers.types import Cursor, Entry, Slice
from peers.wire.encode import encode_fields, encode_vector
from tests.fleets import contribution, in_threads, make_layout


def fail_on(error):
    raise AssertionError(f"unexpected: {error!r}")


def test_jobs_run_one_after_another_in_the_order_of_their_submission():
    pool, seen, running = SenderThread(fail_on), [], threading.Semaphore(1)

    def run(n):
        assert running.acquire(blocking=False), "two at once"
        seen.append(n)
        running.release()

    in_threads([lambda k=k: [pool.submit(lambda n=n: run((k, n))) for n in range(60)] for k in range(3)])
    assert pool.drain(10)
    pool.close()
    assert all([n for of, n in seen if of == k] == list(range(60)) for k in range(3))
    assert not pool.submit(lambda: None)


def test_nothing_is_drained_before_the_last_job_has_ended():
    pool, release = SenderThread(fail_on), threading.Event()
    pool.submit(lambda: release.wait(20))
    assert not pool.drain(0.05)
    release.set()
    assert pool.drain(10)
    pool.close()


def test_the_first_failure_ends_the_pool_and_is_told_once():
    told, done, go = [], threading.Event(), threading.Event()

    def tell(error):
        told.append(error)
        done.set()

    pool = SenderThread(tell)
    pool.submit(lambda: go.wait(10) and 1 / 0)
    pool.submit(lambda: told.append("ran"))
    go.set()
    assert done.wait(10) and pool.drain(10)
    assert not pool.submit(lambda: told.append("ran"))
    pool.close()
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_a_full_queue_makes_the_submitter_wait_and_then_fail():
    pool, release = SenderThread(fail_on, limit=2), threading.Event()
    started = threading.Event()
    pool.submit(lambda: (started.set(), release.wait(20)))
    assert started.wait(10)
    pool.submit(lambda: None)
    pool.submit(lambda: None)
    with pytest.raises(StalledError, match="2 jobs"):
        pool.submit(lambda: None, timeout_s=0.05)
    release.set()
    assert pool.submit(lambda: None, timeout_s=10)
    assert pool.drain(10)
    pool.close()


class Time:
    """A clock that moves when it is read."""

    def __init__(self, step_s):
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self):
        self.now_s += self.step_s
        return self.now_s


def make_gate(slack=0, peers=(1, 2), **more):
    lines = []
    gate = ClockGate(SspClock(peers, slack), 100.0, lines.append, **more)
    for peer in peers:
        gate.admit(peer, 0)
    lines.clear()
    return gate, lines


def test_a_wait_ends_when_the_last_clock_arrives():
    gate, _ = make_gate()
    waiter_result = []
    in_threads([lambda: waiter_result.append(gate.wait(1)), lambda: gate.note(1, 1), lambda: gate.note(2, 1)])
    assert waiter_result == [(1, 2)]


def test_waiting_is_logged_and_has_a_deadline():
    gate, lines = make_gate(now=Time(12.0))
    gate.note(2, 1)
    with pytest.raises(StalledError, match=r"waited \d+ s for worker 1 \(its clock is 0, this is round 1\)"):
        gate.wait(1)
    assert lines and all("worker 1" in line and "worker 2" not in line for line in lines)
    assert len(lines) < 8, "said again at growing distances, not at every look"


def test_dropping_and_leaving_end_a_wait_and_are_logged_once():
    gate, lines = make_gate()
    gate.leave(1)
    gate.drop(1, "its lease has expired")
    gate.drop(2, "its lease has expired")
    gate.drop(2, "its lease has expired")
    assert gate.wait(1) == ()
    assert [lines[0], "worker 2 is dropped" in lines[1]] == ["worker 1 has said goodbye", True] and len(lines) == 2


def test_the_first_failure_ends_every_wait():
    gate, _ = make_gate()
    gate.fail(PeersError("first"))
    gate.fail(PeersError("second"))
    with pytest.raises(PeersError, match="first"):
        gate.wait(1)
    with pytest.raises(PeersError, match="first"):
        gate.check()


def test_the_earliest_stop_step_counts():
    gate, _ = make_gate()
    gate.stop(9)
    gate.stop(7)
    gate.stop(8)
    assert gate.stop_at == 7


def test_states_are_kept_until_their_round_is_past():
    gate, _ = make_gate()
    for round in range(10):
        gate.put_state(1, round, np.full(1, round))
        gate.put_state(2, round, np.full(1, round))
    assert {peer: values[0] for peer, values in gate.wait_states(0).items()} == {1: 0, 2: 0}
    assert sorted(gate.wait_states(9)) == [1, 2]
    gate.put_state(1, 5, np.zeros(1))
    assert not gate._states, "nothing is kept of a round that is past"


def test_without_a_bound_the_newest_states_are_taken_and_nobody_is_awaited():
    gate, _ = make_gate(slack=None)
    gate.put_state(1, 3, np.full(1, 3))
    gate.put_state(1, 7, np.full(1, 7))
    assert {peer: values[0] for peer, values in gate.wait_states(5).items()} == {1: 7}


def test_a_state_is_not_awaited_from_a_peer_admitted_with_its_round():
    gate, _ = make_gate()
    gate.drop(1, "gone")
    gate.admit(1, 4)
    gate.put_state(2, 4, np.zeros(1))
    assert sorted(gate.wait_states(4)) == [2]


def ones(sender, round, start=0, stop=4):
    return contribution(sender, "a", round, Slice(start, stop), np.ones(stop - start, dtype=np.float32), round)


def test_nothing_from_the_future_is_taken():
    accumulator = Accumulator()
    for sender, round in ((2, 1), (1, 2), (1, 1), (2, 3)):
        accumulator.add(ones(sender, round))
    taken = accumulator.take(2)
    assert [(item.sender, item.round) for item in taken] == [(1, 1), (1, 2), (2, 1)]
    assert accumulator.take(2) == [] and accumulator.has_any()
    assert [(item.sender, item.round) for item in accumulator.take(3)] == [(2, 3)]
    assert not accumulator.has_any()


def test_takes_and_adds_from_many_threads_lose_and_double_nothing():
    accumulator, taken = Accumulator(), []

    def add(sender):
        for round in range(500):
            accumulator.add(ones(sender, round))

    def take():
        while len(taken) < 1500:
            taken.extend(accumulator.take(1000))

    in_threads([take, *(lambda s=s: add(s) for s in range(3))])
    assert sorted((item.sender, item.round) for item in taken) == [(s, r) for s in range(3) for r in range(500)]


def test_a_window_lets_everything_leave_once():
    window, whole = GradientWindow(6), Slice(0, 6)
    nothing = np.zeros(6, dtype=np.float32)
    first = np.arange(6, dtype=np.float32)
    taken = window.pass_through(whole, first)
    np.testing.assert_array_equal(taken, first)
    assert not np.shares_memory(taken, first)
    np.testing.assert_array_equal(window.pass_through(Slice(0, 0), first), [])
    np.testing.assert_array_equal(window.pass_through(Slice(3, 5), np.ones(6, dtype=np.float32)), [4, 5])
    np.testing.assert_array_equal(window.pass_through(Slice(2, 5), nothing), [3, 0, 0])
    np.testing.assert_array_equal(window.pass_through(Slice(2, 5), nothing), [0, 0, 0])
    saved = window.state()
    np.testing.assert_array_equal(saved, [1, 2, 0, 0, 0, 6])
    other = GradientWindow(6)
    other.load_state(saved)
    np.testing.assert_array_equal(other.pass_through(whole, nothing), saved)


class MessageStore:
    """An inbox with the objects that it feeds, and the entries of a sender."""

    def __init__(self, size=10, slack=0):
        self.layout = make_layout(size, state_size=2)
        self.accumulator = Accumulator()
        self.gate, self.lines = make_gate(slack)
        self.inbox = Inbox(0, self.layout, self.accumulator, self.gate)
        self.sequence = {}

    def publish(self, sender, kind, round, fields=None, incarnation="a", is_direct=False, skip=0):
        if fields is None:
            whole = self.layout.schedule.slice(round) if kind == "part" else Slice(0, 2)
            pairs = encode_vector(self.layout, kind, round, whole, np.full(whole.size, round, dtype=np.float32))
        else:
            pairs = encode_fields(self.layout, kind, round, fields)
        for header, payload in pairs:
            key = (sender, incarnation, is_direct)
            self.sequence[key] = self.sequence.get(key, 0) + 1 + skip
            self.inbox.feed(Entry(sender, incarnation, self.sequence[key], not skip, header, bytes(payload), is_direct))

    def taken(self):
        return [(item.sender, item.round) for item in self.accumulator.take(10**6)]


def test_a_round_published_again_after_a_restart_is_not_applied_twice():
    box = MessageStore()
    box.inbox.expect_after(1, Cursor("a", 0, 0))
    for round in (1, 2, 3):
        box.publish(1, "part", round)
    box.publish(1, "hello", 1, {"is_joining": False, "is_replaying": True}, incarnation="b")
    for round in (2, 3, 4):
        box.publish(1, "part", round, incarnation="b")
    assert box.taken() == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert box.inbox.dropped() == {"replayed": 2}
    assert box.gate.clock(1) == 4


def test_rounds_that_were_gone_before_they_were_read_are_counted():
    box = MessageStore()
    box.inbox.expect_after(1, Cursor("a", 0, 0))
    box.publish(1, "part", 1)
    box.publish(1, "part", 5, skip=3)
    assert box.taken() == [(1, 1), (1, 5)]
    assert box.inbox.dropped() == {"overrun": 3}


def test_a_joining_peer_holds_nobody_up_until_it_is_admitted():
    box = MessageStore()
    box.publish(2, "part", 1)
    box.publish(1, "hello", 0, {"is_joining": True, "is_replaying": False}, incarnation="b")
    assert box.gate.members() == (2,)
    box.publish(1, "want", 0, {"token": "t"}, incarnation="b", is_direct=True)
    assert box.inbox.take_requests() == {1: ("b", "t")} and box.inbox.take_requests() == {}
    box.publish(2, "admit", 6, {"worker": 1, "incarnation": "b"})
    assert box.gate.members() == (1, 2) and box.gate.clock(1) == 6
    box.publish(1, "hello", 6, {"is_joining": False, "is_replaying": False}, incarnation="b")
    box.publish(1, "part", 7, incarnation="b")
    assert box.inbox.dropped() == {} and box.gate.clock(1) == 7


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("hello", {}),
        ("hello", {"is_joining": False}),
        ("admit", {}),
        ("admit", {"worker": "x"}),
        ("admit", {"worker": 99}),
        ("admit", {"worker": [1], "incarnation": "b"}),
        ("admit", {"worker": float("inf"), "incarnation": "b"}),
        ("want", {}),
        ("want", {"token": 3}),
        ("want", {"token": "x" * 100}),
    ],
)
def test_malformed_fields_are_counted(kind, fields):
    box = MessageStore()
    box.publish(1, kind, 3, fields)
    assert box.inbox.dropped() == {"malformed": 1}
    assert box.gate.members() == (1, 2)


def test_a_request_to_join_that_is_read_after_its_admission_drops_nobody():
    box = MessageStore()
    box.publish(2, "admit", 6, {"worker": 1, "incarnation": "b"})
    box.publish(1, "hello", 0, {"is_joining": True, "is_replaying": False}, incarnation="b")
    box.publish(1, "hello", 6, {"is_joining": False, "is_replaying": False}, incarnation="b")
    assert box.gate.members() == (1, 2) and box.gate.clock(1) == 6
    assert not any("dropped" in line for line in box.lines)


def test_after_a_cursor_covered_rounds_are_replayed_and_missing_ones_counted():
    box = MessageStore()
    box.inbox.expect_after(1, Cursor("a", 3, 7))
    for round in (3, 4, 5, 6, 9):
        box.publish(1, "part", round)
    assert box.taken() == [(1, 4), (1, 5), (1, 6), (1, 9)]
    assert box.inbox.dropped() == {"replayed": 1, "overrun": 2}


def test_goodbye_and_states_and_stops_reach_the_gate():
    box = MessageStore()
    box.publish(1, "state", 4)
    box.publish(2, "state", 4)
    assert {peer: list(values) for peer, values in box.gate.wait_states(4).items()} == {1: [4, 4], 2: [4, 4]}
    box.publish(1, "goodbye", 4, {})
    box.publish(2, "stop", 9, {})
    assert box.gate.members() == (2,) and box.gate.stop_at == 9


# --- minorities -----------------------------------------------------------------------------------


def test_a_minority_pauses_until_the_others_are_back():
    gate, lines = make_gate(slack=2, peers=(1, 2, 3), min_peers=2, now=Time(30.0))
    gate.wait(1)
    gate.drop(1, "its lease has expired")
    gate.drop(2, "its lease has expired")
    with pytest.raises(StalledError, match=r"1 more peers, to be no minority \(bus.min_peers 2\)"):
        gate.wait(2)
    # A finished peer is not missed.
    gate.leave(1)
    gate.wait(2)


def test_a_pause_ends_when_somebody_is_back():
    gate, _ = make_gate(slack=2, min_peers=2)
    gate.drop(1, "its lease has expired")
    in_threads([lambda: gate.wait(2), lambda: gate.admit(1, 0)])


def test_a_peer_that_returns_stands_where_it_stood():
    gate, _ = make_gate(slack=0)
    gate.note(1, 5)
    gate.drop(1, "its lease has expired")
    assert not gate.is_member(1)
    gate.returned(1)
    assert gate.is_member(1) and gate.clock(1) == 5


def test_a_worker_that_finds_the_others_too_far_ahead_has_been_dropped():
    gate, _ = make_gate(slack=2, lead=10)
    gate.note(1, 15)
    gate.note(2, 15)
    # The others may be that far ahead during the replay after a restart.
    gate.wait(1)
    gate.wait(5)
    # A single peer that is ahead may be the one that was cut off.
    gate.note(2, 30)
    gate.wait(16)
    gate.note(1, 28)
    with pytest.raises(
        LeaseExpiredError, match="worker 1 is at round 28, this one at 17: the others have not awaited it"
    ):
        gate.wait(17)
    without_a_bound, _ = make_gate(slack=None)
    without_a_bound.note(1, 10**6)
    without_a_bound.wait(1)
    without_a_bound.wait(2)
