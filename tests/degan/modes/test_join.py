"""Joining rounds that go on: the round to begin with, and no two workers that wait for each other."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from degan.modes.leader.join import join
from peers.codecs.exact import CODECS
from peers.errors import LeaseExpiredError, MessageError
from peers.rounds.deadline import Deadline
from peers.rounds.layout import RoundLayout
from peers.rounds.leadership import Leadership
from peers.rounds.rounds import Rounds
from peers.session.meet import Start
from peers.types import Lease
from tests.fleets import memory_buses

SIZE = 8


class Leases:
    """The leases: the furthest round and the term of the peers."""

    def __init__(self, furthest=0, term=0):
        self.found = furthest, term

    def furthest(self, start):
        return self.found


@pytest.fixture
def pair():
    """Worker 0 leads and is in the middle of its rounds; worker 1 has not begun to read."""
    buses = memory_buses(2)
    opened = []
    for bus in buses:
        bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 60.0, lambda old: True)
        layout = RoundLayout(bytes(8), {"result": (SIZE, CODECS["raw"])})
        opened.append(Rounds(*(bus, layout, Leadership([0]), Deadline(0.1, 60.0), 30.0, 20.0, 20.0, lambda line: None)))
    opened[0].start(Start("together", 0, {1: buses[1].incarnation}), 0)
    yield opened
    for thing in (*opened, *buses):
        thing.close()


def announce(leader, rounds, term=1):
    for round in rounds:
        leader.publish("round_start", round, {"term": term})
    leader.drain()


def joining(
    rounds, furthest=0, own=0, may_lead=False, patience_s=20.0, catch_up=lambda *_: None, leases=None, steps=99
):
    start = Start("join", 0, {0: "life-0"}, 0, furthest)
    rounds.start(start, own)
    lines = []
    round, _ = join(rounds, leases or Leases(), start, own, steps, patience_s, may_lead, catch_up, lines.append)
    return round, lines


def test_a_joiner_goes_on_from_the_newest_round_and_not_from_the_first_that_it_reads(pair):
    first, second = pair
    announce(first, [5])
    # The later announcements come after the first has been read.
    later = threading.Timer(0.5, announce, (first, range(6, 41)))
    later.start()
    assert joining(second, furthest=40)[0] >= 39
    later.join()


@pytest.mark.parametrize(("newest", "is_near"), [(8, True), (7, True), (6, False)])
def test_a_worker_in_a_round_has_announced_the_one_before_or_read_it(pair, newest, is_near):
    """An older announcement is the newest that was read, and not the newest that exists."""
    first, second = pair
    announce(first, [newest])
    later = threading.Timer(0.3, announce, (first, [9]))
    later.start()
    assert joining(second, furthest=8, patience_s=1000.0)[0] == (newest if is_near else 9)
    later.join()


def test_a_joiner_does_not_go_on_from_an_older_term_than_that_of_the_leases(pair):
    first, second = pair
    announce(first, [9])
    start, tried = Start("join", 0, {0: "life-0"}, 0, 7, 4), []
    second.start(start, 0)
    second.until(lambda: second.messages.kept("round_start"), lambda: "the old term")
    later = threading.Timer(0.2, announce, (first, [8], 4))
    later.start()

    def catch_up(sender, received):
        tried.append(received.round)

    assert join(second, Leases(), start, 0, 99, 1000.0, False, catch_up, lambda line: None)[0] == 8
    assert tried == [8] and second.leadership.term == 4
    later.join()


def test_where_the_furthest_is_gone_an_older_round_will_do(pair):
    first, second = pair
    announce(first, [7])
    began = time.monotonic()
    assert joining(second, furthest=40, patience_s=0.3)[0] == 7
    assert 0.3 <= time.monotonic() - began < 10


def test_a_model_that_cannot_be_fetched_is_tried_with_the_next_round(pair):
    first, second = pair
    announce(first, [7])
    tried = []

    def catch_up(sender, received):
        tried.append(received.round)
        if len(tried) == 1:
            announce(first, [8])
            raise MessageError("malformed", "nothing there")

    assert joining(second, furthest=7, catch_up=catch_up) == (
        8,
        ["malformed: nothing there; waiting for the next round"],
    )
    assert tried == [7, 8]


@pytest.mark.parametrize(
    ("furthest", "own", "round"),
    [(9, 6, 8), (9, 12, 12), (30, 6, 19)],
    ids=["where the others wait", "its own is newer", "the last one is not left out"],
)
def test_a_lone_leader_leads_the_round_in_which_the_others_wait(pair, furthest, own, round):
    second = pair[1]
    second.leadership.leaders = (1,)
    assert joining(second, own=own, may_lead=True, leases=Leases(furthest, 4), steps=20)[0] == round
    assert second.leadership.term == 4


def test_nobody_waits_for_one_that_was_started_again_and_waits_for_it(pair):
    """The restarted worker looks for workers that train; worker 1 does not train, and takes it for the leader."""
    second = pair[1]
    second.leadership.leaders = (0, 1)
    second.messages.begin_incarnation(0, "life-0")
    start = Start("join", 0, {0: "life-0"}, 0, 5)
    second.start(start, 0)
    assert second.leader() == 0
    second.messages.restarted(0, "another")
    with pytest.raises(LeaseExpiredError, match="were started again"):
        join(second, Leases(5), start, 0, 20, 20.0, False, lambda *_: None, lambda line: None)
    assert join(second, Leases(5), start, 0, 20, 20.0, True, lambda *_: None, lambda line: None) == (4, None)


def test_an_answer_to_the_former_incarnation_of_a_leader_is_none(pair):
    first, second = pair
    second.start(Start("together", 0, {0: "life-0"}), 0)
    first.leadership.claim(0)
    first.leadership.claim(1)
    first.leadership.claim(0)
    second.send(0, "result", 5, np.zeros(SIZE, np.float32), {"term": 1.0})
    first.until(lambda: first.messages.received("result", 1), lambda: "the answer")
    gathered = first.gather("result", 5, [1], 1, 0.2)
    assert gathered.is_void and gathered.missing == (1,)
    first.open("result", 6)
    second.send(0, "result", 6, np.ones(SIZE, np.float32), {"term": 3.0})
    assert list(first.gather("result", 6, [1], 1, 20.0).answers) == [1]
