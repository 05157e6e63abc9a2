"""The ways in which workers find each other: together, by replay, by joining; and the workers that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import msgspec
import pytest

from peers.bus.memory import MemoryHub
from peers.errors import AbsentError, DisagreementError, DuplicateError, LeaseExpiredError
from peers.session.meet import Rendezvous
from peers.session.processes import is_dead, process_birth, this_host
from peers.types import Lease
from peers.vectors.graph import complete
from tests.fleets import in_threads


class Town:
    """Workers of one run on one hub."""

    def __init__(self, workers=2):
        self.hub, self.workers, self.lines, self.open = MemoryHub(), workers, [], []

    def worker(self, number, incarnation="a", agreed=None, lease_s=5.0, timeout_s=10.0):
        bus = self.hub.bus(number, complete(number, self.workers), f"{incarnation}{number}")
        meeting = Rendezvous(bus, agreed or {"seed": 1}, lease_s, timeout_s, self.lines.append, self.fail)
        self.open.append(meeting)
        return meeting

    def fail(self, error):
        self.lines.append(f"failed: {error}")

    def close(self):
        for meeting in self.open:
            meeting.close()


@pytest.fixture
def town():
    town = Town()
    yield town
    town.close()


def come(meeting, checkpoints=(), followed=None):
    meeting.claim(list(checkpoints))
    return meeting.meet(list(checkpoints), followed or {})


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait(30)
    return child.pid


def leave_a_dead_lease(town, number, phase="training", seen=None, host=None, since=0):
    """The left-over of a killed worker: a lease that has not expired yet."""
    bus = town.hub.bus(number, complete(number, town.workers), f"ghost{number}")
    bus.claim(
        Lease(number, f"ghost{number}", host or this_host(), dead_process(), "1", phase, 40, since, 0, seen or {}),
        60,
        lambda old: False,
    )
    return bus


def test_all_start_together_at_the_beginning(town):
    starts = in_threads([lambda w=w: come(town.worker(w)) for w in range(2)])
    assert [(start.kind, start.step) for start in starts] == [("together", 0)] * 2
    assert [start.incarnations for start in starts] == [{1: "a1"}, {0: "a0"}]


def test_all_resume_from_the_newest_step_that_all_have(town):
    starts = in_threads([lambda: come(town.worker(0), [20, 40, 60]), lambda: come(town.worker(1), [20, 40])])
    assert [start.step for start in starts] == [40, 40]


def test_a_step_that_not_all_have_is_refused(town):
    first, second = town.worker(0), town.worker(1)

    def refused(meeting, steps):
        with pytest.raises(DisagreementError, match="checkpoints of steps"):
            come(meeting, steps)

    in_threads([lambda: refused(first, [60]), lambda: refused(second, [])])


def test_workers_that_train_something_else_name_the_key(town):
    meetings = [town.worker(w, agreed={"seed": 1, "mode.slack": w}) for w in range(2)]

    def refused(meeting):
        with pytest.raises(DisagreementError, match=r"mode\.slack is \d here and \d there"):
            come(meeting)

    in_threads([lambda m=m: refused(m) for m in meetings])


def test_a_peer_that_does_not_come_is_named(town):
    with pytest.raises(AbsentError, match=r"worker 0 waited 0\.3 s for worker 1, which did not come"):
        come(town.worker(0, timeout_s=0.3))


def test_a_living_worker_keeps_its_number(town):
    first = town.worker(0)
    first.claim([])
    with pytest.raises(DuplicateError, match=f"already running on .* as process {os.getpid()}"):
        town.worker(0, incarnation="b").claim([])


def test_a_dead_process_on_this_host_gives_its_number_up_at_once(town):
    leave_a_dead_lease(town, 0)
    town.worker(0).claim([])
    assert town.hub.leases[0][0].incarnation == "a0"


def test_a_lease_of_another_host_is_waited_for(town):
    bus = town.hub.bus(0, (1,), "far0")
    bus.claim(Lease(0, "far0", "elsewhere", 1, ""), 1.0, lambda old: False)
    town.worker(0, lease_s=3.0).claim([])
    assert any("waiting up to 3 s for its lease to end" in line for line in town.lines)
    assert town.hub.leases[0][0].incarnation == "a0"


def test_a_dead_runs_leases_are_not_taken_for_peers_that_train(town):
    for number in range(2):
        leave_a_dead_lease(town, number, seen={0: "ghost0", 1: "ghost1"})
    starts = in_threads([lambda w=w: come(town.worker(w)) for w in range(2)])
    assert [start.kind for start in starts] == ["together"] * 2


def start_training(town, number, seen, step=50):
    """A worker in the middle of a run."""
    meeting = town.worker(number, incarnation="old")
    meeting.claim([])
    meeting.lease.show(phase="training", step=step, seen=seen)
    return meeting


def test_a_late_worker_joins_the_most_advanced(town):
    town.workers = 3
    start_training(town, 0, {2: "gone"}, step=50)
    start_training(town, 1, {2: "gone"}, step=51)
    start = come(town.worker(2))
    assert (start.kind, start.helper) == ("join", 1)
    assert start.incarnations == {0: "old0", 1: "old1"}


def test_the_steps_of_the_peers_are_asked_anew_when_nobody_leads(town):
    """A lease has the step of its worker at the last renewal, and rounds are shorter than the renewal period."""
    town.workers = 3
    running = start_training(town, 0, {2: "gone"}, step=50)
    other = start_training(town, 1, {2: "gone"}, step=51)
    joining = town.worker(2)
    start = come(joining)
    assert start.furthest == 51
    running.lease.progress(60)
    running.lease.follow_term(4)
    other.lease.progress(58)
    assert joining.furthest(start) == (60, 4)
    # A worker that has left is not awaited.
    running.close()
    other.lease.progress(70)
    other.lease.follow_term(5)
    assert joining.furthest(start) == (70, 5)


def test_a_worker_that_replaces_its_own_lease_replays_the_readable_entries(town):
    running = start_training(town, 0, {1: "ghost1"})
    running._bus.publish([(b"h", b"x")] * 5)
    leave_a_dead_lease(town, 1)
    start = come(town.worker(1), [20, 40], {0: ("old0", 3)})
    assert (start.kind, start.step) == ("replay", 40)


def test_a_checkpoint_of_an_older_line_is_not_replayed(town):
    """The worker died, joined again, and died before its next checkpoint. The old line is not that of the run."""
    running = start_training(town, 0, {1: "ghost1"})
    running._bus.publish([(b"h", b"x")] * 5)
    leave_a_dead_lease(town, 1, since=35)
    assert come(town.worker(1), [20, 30], {0: ("old0", 3)}).kind == "join"


def test_a_worker_that_had_said_goodbye_does_not_replay(town):
    running = start_training(town, 0, {1: "ghost1"})
    running._bus.publish([(b"h", b"x")] * 5)
    leave_a_dead_lease(town, 1, phase="leaving")
    assert come(town.worker(1), [20, 40], {0: ("old0", 3)}).kind == "join"


def test_a_worker_that_comes_when_the_run_is_ending_is_told(town):
    start_training(town, 0, {1: "ghost1"}).lease.show(phase="leaving")
    with pytest.raises(AbsentError, match="worker 1 came too late: worker 0 is ending the run"):
        come(town.worker(1, timeout_s=0.3))


def test_a_dead_lease_of_another_host_is_nobody_to_join(town):
    """Both hosts died and start again at once. Each sees the other's old lease, which nobody renews."""
    ghost = town.hub.bus(1, (0,), "ghost1")
    ghost.claim(Lease(1, "ghost1", "elsewhere", 1, "", "training", 40), 1.5, lambda old: False)
    first, second = town.worker(0, timeout_s=5.0), town.worker(1, timeout_s=5.0)
    starts = in_threads([lambda: come(first), lambda: come(second)])
    assert [start.kind for start in starts] == ["together"] * 2


def test_the_lease_of_a_worker_that_was_away_for_longer_has_expired(town):
    failures, failed = [], threading.Event()
    town.fail = lambda error: (failures.append(error), failed.set())
    meeting = town.worker(0, lease_s=1.0)
    meeting.claim([])
    with town.hub.changed:
        # The state is that after a freeze: the lease is gone, and the last renewal is older than the lease.
        meeting.lease._renewed_at -= 10.0
        town.hub.leases.clear()
    assert failed.wait(10)
    assert isinstance(failures[0], LeaseExpiredError)
    assert not town.hub.leases


@pytest.mark.parametrize(
    "followed", [{}, {0: ("another", 3)}, {0: ("old0", 9)}], ids=["no cursors", "another incarnation", "gone"]
)
def test_a_worker_that_cannot_replay_joins(town, followed):
    running = start_training(town, 0, {1: "ghost1"})
    running._bus.publish([(b"h", b"x")] * 5)
    leave_a_dead_lease(town, 1)
    assert come(town.worker(1), [20, 40], followed).kind == "join"


def test_a_worker_whose_number_is_taken_over_stops(town):
    failed = threading.Event()
    town.fail = lambda error: (town.lines.append(str(error)), failed.set())
    meeting = town.worker(0, lease_s=1.0)
    meeting.claim([])
    thief = town.hub.bus(0, (1,), "thief")
    thief.claim(msgspec.structs.replace(meeting.lease._lease, incarnation="thief"), 60, lambda old: True)
    assert failed.wait(10)
    assert "someone else has taken over worker 0" in town.lines[-1]


def test_processes_are_told_apart():
    mine = Lease(0, "a", this_host(), os.getpid(), process_birth(os.getpid()))
    assert not is_dead(mine)
    assert not is_dead(msgspec.structs.replace(mine, host="elsewhere", pid=dead_process()))
    assert is_dead(msgspec.structs.replace(mine, pid=dead_process()))
    assert is_dead(msgspec.structs.replace(mine, birth="1")), "the pid has been used again"
