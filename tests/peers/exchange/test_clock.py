"""The staleness bound as a pure object, and as a simulation of workers of unequal speed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.exchange.clock import SspClock
from peers.vectors.graph import complete


def member_clock(slack, peers=(1, 2)):
    clock = SspClock(peers, slack)
    for peer in peers:
        clock.admit(peer, 0)
    return clock


def test_slack_zero_awaits_everyone_at_the_same_round():
    clock = member_clock(0)
    assert clock.awaited(1) == [1, 2]
    clock.note(1, 1)
    assert clock.awaited(1) == [2]
    clock.note(2, 1)
    assert clock.awaited(1) == []
    assert clock.awaited(2) == [1, 2]


def test_slack_lets_members_lag_and_none_lets_them_lag_for_ever():
    clock = member_clock(2)
    assert clock.awaited(2) == []
    assert clock.awaited(3) == [1, 2]
    assert clock.awaited(3, slack=0) == [1, 2]
    assert member_clock(None).awaited(10**6) == []


def test_absent_members_are_not_awaited():
    clock = member_clock(0)
    assert clock.drop(1) and not clock.drop(1)
    clock.leave(2)
    assert clock.awaited(5) == []
    assert clock.members() == ()
    clock.admit(1, 7)
    assert clock.awaited(7) == [] and clock.awaited(8) == [1]


def test_a_mean_is_shared_by_the_participants():
    clock = member_clock(0, (1, 2, 3))
    for peer in (1, 2, 3):
        clock.note(peer, 4)
    clock.leave(1)
    clock.drop(2)
    assert clock.contributors(4) == (1, 2, 3), "they were there at round 4"
    assert clock.contributors(5) == (3,)
    clock.admit(2, 10)
    assert clock.contributors(10) == (3,), "a returned peer takes part from its first round on"
    assert clock.contributors(11) == (2, 3)


def test_a_clock_never_goes_back_within_a_membership():
    clock = member_clock(1)
    clock.note(1, 5)
    clock.note(1, 3)
    clock.admit(1, 2)
    assert clock.clock(1) == 5


@given(
    workers=st.integers(2, 5),
    slack=st.integers(0, 4),
    speeds=st.lists(st.integers(1, 20), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_nobody_leads_by_more_than_slack_plus_one(workers, slack, speeds, seed):
    """Workers publish, deliver with delays and pass the bound in any order; the lead stays bounded."""
    rng = random.Random(seed)
    clocks = [SspClock(complete(w, workers), slack) for w in range(workers)]
    for worker, clock in enumerate(clocks):
        for peer in complete(worker, workers):
            clock.admit(peer, 0)
    published, done, in_flight = [0] * workers, [0] * workers, []
    for _ in range(400):
        worker = rng.choices(range(workers), weights=speeds[:workers])[0]
        if published[worker] == done[worker]:
            published[worker] += 1
            in_flight += [(worker, peer, published[worker]) for peer in complete(worker, workers)]
        elif not clocks[worker].awaited(published[worker]):
            done[worker] += 1
        if in_flight and rng.random() < 0.7:
            sender, receiver, round = in_flight.pop(rng.randrange(min(len(in_flight), 4)))
            clocks[receiver].note(sender, round)
            backlog = published[sender] - clocks[receiver].clock(sender)
            assert backlog <= 2 * (slack + 1) + 4
        assert max(done) - min(done) <= slack + 1
    assert max(published) - min(published) <= slack + 2


def test_topology():
    assert complete(1, 3) == (0, 2)
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        complete(3, 3)
