"""A worker's lease at each turn of its incarnation, and the decisions of the others."""

from __future__ import annotations

import os

import msgpack
import msgspec
import pytest

from peers.bus.memory import MemoryHub
from peers.errors import BusError, DisagreementError, LeaseExpiredError
from peers.session import meet
from peers.session.meet import Rendezvous, heartbeat_s
from peers.session.processes import this_host
from peers.types import Lease
from peers.vectors.graph import complete
from tests.fleets import in_threads

AGREED = {"seed": 1}


class Played:
    """A worker played by hand: a lease and a hello on the hub."""

    def __init__(self, town, number, phase="training", step=50, checkpoints=(), agreed=AGREED, peer_info=None, **more):
        self.town, self.number, self.incarnation = town, number, f"p{number}"
        self.bus = town.hub.bus(number, complete(number, town.workers), self.incarnation)
        self.peer_info = {"samples": number} if peer_info is None else peer_info
        self.put_hello({"agreed": agreed, "checkpoints": list(checkpoints), "peer_info": self.peer_info})
        host = more.pop("host", this_host())
        self.lease = Lease(number, self.incarnation, host, os.getpid(), "", phase, step, **more)
        self.bus.claim(self.lease, 60, lambda old: True)

    def put_hello(self, hello):
        self.bus.put_state({"hello": msgpack.packb(hello)}, 60)


class Town:
    """One product worker and some played workers, on one hub."""

    def __init__(self, workers):
        self.hub, self.workers, self.lines, self.failures, self.open = MemoryHub(), workers, [], [], []

    def worker(self, number=0, timeout_s=20.0, lease_s=20.0, **more):
        bus = self.hub.bus(number, complete(number, self.workers), f"life{number}")
        found = Rendezvous(bus, AGREED, lease_s, timeout_s, self.lines.append, self.failures.append, **more)
        self.open.append(found)
        return found

    def lease(self, number=0):
        return self.hub.leases[number][0]

    def close(self):
        for one in self.open:
            one.close()


@pytest.fixture
def town():
    found = Town(3)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(meet, "SEEN_S", 0.0)


def said(lease):
    return lease.phase, lease.step, lease.since, lease.seen


def test_workers_that_start_together_lease_the_common_step_and_their_peers(town):
    town.workers = 2
    meetings = [town.worker(w, peer_info={"samples": 5 + w}) for w in range(2)]
    checkpoints = [[20, 40, 60], [20, 40]]

    def come(w):
        meetings[w].claim(checkpoints[w])
        return meetings[w].meet(checkpoints[w], {})

    starts = in_threads([lambda w=w: come(w) for w in range(2)])
    for w, start in enumerate(starts):
        assert (start.kind, start.step, start.helper, start.incarnations) == (
            "together",
            40,
            None,
            {1 - w: f"life{1 - w}"},
        )
        assert start.peer_infos == {1 - w: {"samples": 5 + (1 - w)}}
        assert said(town.lease(w)) == ("training", 40, 40, {1 - w: f"life{1 - w}"})


def test_a_joiner_asks_the_furthest_and_of_equals_the_first(town):
    for number, step, term in ((1, 50, 7), (2, 50, 3)):
        Played(town, number, step=step, term=term)
    joining = town.worker()
    joining.claim([10])
    start = joining.meet([10], {})
    assert (start.kind, start.step, start.helper, start.furthest, start.term) == ("join", 0, 1, 50, 7)
    assert start.incarnations == {1: "p1", 2: "p2"}
    assert start.peer_infos == {1: {"samples": 1}, 2: {"samples": 2}}
    assert said(town.lease())[:3] == ("joining", 0, 0)
    joining.lease.joined(55)
    assert said(town.lease())[:3] == ("training", 55, 55)
    joining.lease.progress(57)
    joining.lease.follow_term(9)
    joining.lease._renew()
    assert said(town.lease())[:3] == ("training", 57, 55) and town.lease().term == 9
    joining.lease.leaving()
    assert said(town.lease())[:3] == ("leaving", 57, 55)


@pytest.mark.parametrize(("first", "second", "helper"), [(50, 49, 1), (49, 50, 2)])
def test_the_helper_is_the_furthest_peer(town, first, second, helper):
    Played(town, 1, step=first, term=3)
    Played(town, 2, step=second, term=8)
    joining = town.worker()
    joining.claim([])
    start = joining.meet([], {})
    assert (start.helper, start.furthest, start.term) == (helper, 50, 8)


def test_a_peer_on_another_host_is_joined_once_its_lease_has_been_renewed(town):
    """Until then the peer may be dead, and its lease a left-over."""
    town.workers = 2
    peer, joining, looks = Played(town, 1, host="elsewhere"), town.worker(), []
    leases = joining._bus.leases

    def look(server):
        looks.append(server)
        if len(looks) == 3:
            peer.bus.renew(msgspec.structs.replace(peer.lease, beat=1), 60)
        return leases(server)

    joining._bus.leases = look
    joining.claim([])
    assert joining.meet([], {}).kind == "join" and len(looks) == 3


# --- replay ----------------------------------------------------------------------------------------


def replace(town, **changes):
    """Leave a lease of worker 0 by a dead process, and begin its next incarnation."""
    peer_info = {"phase": "training", "step": 40, "since": 10, "seen": {1: "p1", 2: "p2"}}
    ghost = town.hub.bus(0, (1, 2), "ghost")
    # No process has this birth.
    ghost.claim(Lease(0, "ghost", this_host(), os.getpid(), "0", **{**peer_info, **changes}), 60, lambda old: True)
    return town.worker(may_replay=changes.pop("may_replay", True))


@pytest.fixture
def others(town):
    found = [Played(town, number, step=50) for number in (1, 2)]
    for one in found:
        one.bus.publish([(b"h", b"x")] * 5)
    return found


FOLLOWED = {1: ("p1", 3), 2: ("p2", 5)}


def come(meeting, checkpoints=(20, 40), followed=FOLLOWED):
    meeting.claim(list(checkpoints))
    return meeting.meet(list(checkpoints), followed)


def test_a_replaying_worker_stays_on_its_line(town, others):
    start = come(replace(town))
    assert (start.kind, start.step, start.incarnations) == ("replay", 40, {1: "p1", 2: "p2"})
    assert said(town.lease()) == ("training", 40, 10, {1: "p1", 2: "p2"})


def test_a_worker_without_a_checkpoint_replays_from_the_beginning_of_its_line(town, others):
    start = come(replace(town, since=0), (), {})
    assert (start.kind, start.step) == ("replay", 0)


@pytest.mark.parametrize(
    ("changes", "checkpoints", "followed"),
    [
        ({"since": 41}, (20, 40), FOLLOWED),
        ({"since": 1}, (), {}),
        ({"since": 0, "seen": {1: "p1", 2: "gone"}}, (), {}),
        ({"since": 0, "seen": {1: "p1"}}, (), {}),
        ({"phase": "joining"}, (20, 40), FOLLOWED),
        ({"phase": "ready"}, (20, 40), FOLLOWED),
        ({}, (20, 40), {1: ("p1", 3)}),
        ({}, (20, 40), {1: ("p1", 3), 2: ("other", 5)}),
        ({}, (20, 40), {1: ("p1", 3), 2: ("p2", 6)}),
    ],
)
def test_a_worker_that_cannot_replay_from_every_peer_joins(town, others, changes, checkpoints, followed):
    assert come(replace(town, **changes), checkpoints, followed).kind == "join"


def test_a_checkpoint_of_the_very_step_of_the_line_is_replayed(town, others):
    assert come(replace(town, since=40)).kind == "replay"


def test_a_worker_that_may_not_replay_joins(town, others):
    meeting = replace(town)
    meeting._may_replay = False
    assert come(meeting).kind == "join"
    assert town.worker(may_replay=False)._may_replay is False


# --- agreement -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agreed", "named"),
    [
        ({"seed": 2}, "seed is 1 here and 2 there"),
        ({"seed": 1, "mode.slack": 2}, "mode.slack is None here and 2 there"),
        ({}, "seed is 1 here and None there"),
        (
            {"seed": 1, "d": 1, "c": 1, "b": 1, "a": 1},
            "a is None here and 1 there; b is None here and 1 there; c is None",
        ),
    ],
)
def test_a_setting_of_only_one_of_two_workers_is_a_difference(town, agreed, named):
    Played(town, 1, agreed=agreed)
    Played(town, 2)
    meeting = town.worker()
    meeting.claim([])
    with pytest.raises(DisagreementError) as caught:
        meeting.meet([], {})
    assert (
        "worker 0 and worker 1" in str(caught.value)
        and named in str(caught.value)
        and "; d is" not in str(caught.value)
    )


def test_peer_info_can_be_asked_for_by_incarnation(town):
    peer = Played(town, 1)
    meeting = town.worker()
    assert meeting.peer_info(1, "p1") == {"samples": 1}
    assert meeting.peer_info(1, "another") == {} and meeting.peer_info(2, "p2") == {}
    peer.put_hello({"agreed": AGREED, "peer_info": [1]})
    assert meeting.peer_info(1, "p1") == {}


# --- the heartbeat ---------------------------------------------------------------------------------


def test_a_lease_is_renewed_four_times_in_its_term_and_at_least_every_five_seconds():
    assert [heartbeat_s(lease_s) for lease_s in (1.0, 8.0, 20.0, 300.0)] == [0.25, 2.0, 5.0, 5.0]


def test_each_renewal_counts_a_beat_and_lasts_a_whole_lease(town):
    now = [100.0]
    town.hub.clock = lambda: now[0]
    meeting = town.worker(lease_s=20.0)
    meeting._bus.claim(meeting.lease._lease, 20.0, lambda old: True)
    for beat in (1, 2, 3):
        now[0] += 7.0
        meeting.lease._renew()
        lease, until_s = town.hub.leases[0]
        assert (lease.beat, until_s) == (beat, now[0] + 20.0)


def test_a_redis_that_lost_its_keys_gets_the_lease_and_the_hello_again(town):
    meeting = town.worker()
    meeting.claim([4])
    hello = town.hub.states[0, "life0"]["hello"]
    with town.hub.changed:
        town.hub.leases.clear()
        town.hub.states.clear()
    meeting.lease._renew()
    assert town.lease().incarnation == "life0" and town.hub.states[0, "life0"]["hello"] == hello
    assert town.failures == []


def test_an_outage_is_logged_once_and_does_not_end_an_incarnation(town):
    meeting = town.worker()
    meeting.claim([])
    renew = meeting._bus.renew
    asked = []

    def away(lease, ttl_s, may_restore=True):
        asked.append(may_restore)
        raise BusError("cannot renew the lease: refused")

    meeting._bus.renew = away
    for _ in range(3):
        meeting.lease._renew()
    assert town.lines == ["cannot renew the lease: refused; trying again"] and town.failures == []
    # The outage is longer than the lease: the others have dropped this worker by now, so it may not write its lease
    # anew.
    meeting.lease._renewed_at -= 20.1
    meeting.lease._renew()
    assert asked == [True, True, True, False]
    meeting._bus.renew = renew
    meeting.lease._renew()
    assert town.failures == [], "nobody has let it end meanwhile"
    meeting._bus.renew = away
    meeting.lease._renew()
    assert len(town.lines) == 2 and asked[-1] is True


def test_a_worker_whose_lease_expired_or_was_replaced_is_told_and_renews_no_more(town):
    for state, kind, text in (
        ("expired", LeaseExpiredError, "worker 0 was away for longer than its lease of 20 s"),
        ("taken", BusError, "someone else has taken over worker 0"),
    ):
        meeting = town.worker()
        meeting._bus.renew = lambda *_, state=state: state
        meeting.lease._renew()
        (error,) = town.failures
        assert type(error) is kind and text in str(error) and meeting.lease._closing.is_set()
        with pytest.raises(kind):
            meeting.meet([], {})
        town.failures.clear()
