"""The launcher's supervision of workers: the error that is the cause, the reports and their times, and exit codes."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import local, processes
from launch.interrupts import Interrupted, Interrupts
from launch.plan import Limits
from launch.supervise import Ending, Supervisor


class StandInWorker:
    """A worker whose process ends by the script."""

    def __init__(self, number: int):
        self.number, self.log, self.by_hand = number, Path(f"w{number}/log.txt"), f"restart {number}"
        self.code: int | None = None
        self.adopted_pid: int | None = None

    def last_lines(self) -> list[str]:
        return [f"the end of {self.number}"]


class StandInFleet:
    """A stand-in for `launch.fleet.Fleet`; `when_stopped` has the exit codes of workers that run until a stop."""

    def __init__(self, workers: int):
        self.workers = [StandInWorker(number) for number in range(workers)]
        self.calls: list[str] = []
        self.when_stopped: dict[int, int] = {}
        self.killed: list[int] = []
        self.hurried: list[bool] = []
        self._told: set[int] = set()

    @property
    def running(self):
        return [worker for worker in self.workers if worker.code is None]

    @property
    def adopted(self):
        return [worker for worker in self.workers if worker.adopted_pid is not None]

    def newly_ended(self):
        ended = [w for w in self.workers if w.code is not None and w.number not in self._told]
        self._told.update(worker.number for worker in ended)
        return ended

    def _stop(self, what: str, grace_s: float, tick) -> list[StandInWorker]:
        self.calls.append(f"{what} {grace_s:g}")
        self.hurried.append(tick())
        for worker in self.running:
            worker.code = self.when_stopped.get(worker.number, 0)
        return [self.workers[number] for number in self.killed]

    def stop_together(self, grace_s, tick):
        return self._stop("together", grace_s, tick)

    def terminate(self, grace_s, tick):
        return self._stop("terminate", grace_s, tick)


class Script:
    """A supervisor over stand-ins: `at` has the events of each of its looks, from 1."""

    def __init__(self, workers: int, at: dict[int, object]):
        self.fleet, self.at, self.said, self.looks = StandInFleet(workers), at, [], 0
        self.servers = SimpleNamespace(newly_dead=self.newly_dead)
        self.dead: list = []
        self.interrupts = Interrupts()
        self.interrupts.wait = self.wait
        voice = SimpleNamespace(log=self.said.append)
        limits = Limits(together_s=60, terminate_s=10)
        self.supervisor = Supervisor(self.fleet, self.servers, self.interrupts, voice, limits, self.look)

    def look(self) -> None:
        self.looks += 1

    def newly_dead(self) -> list:
        dead, self.dead = self.dead, []
        return dead

    def wait(self, seconds: float) -> None:
        assert self.looks < 20, "nobody ends this"
        self.happen(self.at.get(self.looks, {}))

    def happen(self, what) -> None:
        for number, code in what.items():
            if number == "signal":
                self.interrupts._came.append(code)
            else:
                self.fleet.workers[number].code = code

    def run(self) -> Ending:
        self.happen(self.at.get(0, {}))
        return self.supervisor.run()

    def ended(self) -> tuple[int, int | None]:
        """The exit code, and the number of the worker whose error it was."""
        ending = self.run()
        return ending.exit_code, ending.failed.number if ending.failed else None


# --- the cause of a failure ---------------------------------------------------------------------


def test_all_go_well():
    one = Script(3, {1: {0: 0}, 2: {1: 0}, 4: {2: 0}})
    assert one.ended() == (0, None) and one.said == [] and one.fleet.calls == [] and one.looks == 4


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ({0: 1, 1: 2, 2: 1}, (2, 1)),  # an error that a person can fix explains the failures of the others
        ({0: 1, 2: 1}, (1, 0)),
        ({1: 1, 2: 2, 0: 2}, (2, 0)),
        ({0: 3, 1: 1}, (3, 0)),
        ({0: 0, 1: 1}, (1, 1)),
        ({0: -9, 1: 1}, (1, 1)),
    ],
)
def test_the_cause_is_shown_of_several_errors_in_one_look(codes, cause):
    one = Script(4, {2: codes})
    assert one.ended() == cause
    how = f"worker {cause[1]} failed (exit code {cause[0]}); the others are being stopped"
    died = ["worker 0 died: killed by SIGKILL; the others go on. Its log: w0/log.txt\nrestart it with: restart 0"]
    assert one.said == (died if -9 in codes.values() else []) + [how]
    assert one.fleet.calls == ["terminate 10"]


def test_the_first_error_is_the_cause_whatever_follows():
    one = Script(3, {1: {2: 1}, 2: {0: 2}})
    one.fleet.when_stopped = {0: 2, 1: -15}
    assert one.ended() == (1, 2) and one.said == ["worker 2 failed (exit code 1); the others are being stopped"]


def test_an_error_counts_more_than_a_request_to_stop():
    one = Script(2, {1: {0: 2, "signal": signal.SIGINT}})
    assert one.ended() == (2, 0) and one.fleet.calls == ["terminate 10"]
    # The earlier request does not hurry; another one does.
    assert one.fleet.hurried == [False]


# --- deaths ---------------------------------------------------------------------------------------


def test_a_death_is_reported_when_it_happens_and_again_at_the_end():
    one = Script(3, {1: {1: -signal.SIGKILL}, 3: {0: 0, 2: 0}})
    assert one.ended() == (1, None)
    assert one.said == [
        "worker 1 died: killed by SIGKILL; the others go on. Its log: w1/log.txt\nrestart it with: restart 1",
        "worker 1 had died: killed by SIGKILL",
    ]


def test_the_death_of_the_last_one_leaves_no_others():
    one = Script(2, {1: {0: 0}, 2: {1: -signal.SIGSEGV}})
    assert one.ended() == (1, None)
    assert one.said[0].startswith("worker 1 died: killed by SIGSEGV. Its log: w1/log.txt\n")


def test_a_worker_restarted_by_hand_is_awaited_and_reported_once():
    one = Script(2, {})
    first, second = one.fleet.workers

    def at(look: int) -> None:
        if look == 1:
            first.code, second.code, first.adopted_pid = 0, -9, 77
        elif look == 5:
            first.adopted_pid, second.adopted_pid = None, 88
        elif look == 7:
            second.adopted_pid = None

    one.interrupts.wait = lambda seconds: at(one.looks)
    assert one.ended() == (1, None) and one.looks == 7
    assert [line.partition(".")[0] for line in one.said] == [
        "worker 1 died: killed by SIGKILL",
        "worker 0 (pid 77), restarted by hand, still runs; the Redis servers stay up for it",
        "worker 1 (pid 88), restarted by hand, still runs; the Redis servers stay up for it",
        "worker 1 had died: killed by SIGKILL",
    ]


def test_the_end_of_a_server_is_reported_with_the_end_of_its_log():
    one = Script(1, {2: {0: 0}})
    lines = ["one", "two", "three", "four"]
    process = SimpleNamespace(returncode=-9)
    server = SimpleNamespace(url="redis://x", process=process, log="its.log", last_lines=lambda: lines)
    one.dead = [server]
    assert one.ended() == (0, None)
    said = "the Redis server at redis://x has ended (killed by SIGKILL); its log: its.log\n  two\n  three\n  four"
    assert one.said == [said]


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_stopping_together_names_each_that_did_not_end_well():
    one = Script(7, {1: {0: -9, 5: -signal.SIGTERM, 6: 0}, 2: {"signal": signal.SIGTERM}})
    one.fleet.when_stopped = {1: 0, 2: -signal.SIGTERM, 3: 1, 4: -signal.SIGKILL}
    one.fleet.killed = [4]
    assert one.ended() == (143, None) and one.fleet.calls == ["together 60"] and one.fleet.hurried == [False]
    # A worker that ended before the request is not measured by it.
    assert one.said[2:] == [
        "SIGTERM: the workers agree on a last step and save (up to 60 s); a second Ctrl-C kills them at once",
        "worker 2 was still starting; it had nothing to save",
        "worker 3 did not end cleanly (exit code 1); its log: w3/log.txt",
        "worker 4 was killed: it had not ended within 60 s; its newest checkpoint stands",
    ]


def test_a_second_ctrl_c_hurries():
    one = Script(2, {1: {"signal": signal.SIGINT}})
    one.look = lambda: one.interrupts._came.append(signal.SIGTERM) if one.fleet.calls else Script.look(one)
    one.supervisor._update = lambda: one.look()
    one.fleet.killed, one.fleet.when_stopped = [1], {0: -signal.SIGUSR2, 1: -9}
    assert one.ended() == (130, None) and one.fleet.hurried == [True]
    assert one.said[0].startswith("Ctrl-C: ") and one.said[1:] == [
        "worker 0 was still starting; it had nothing to save",
        "worker 1 was killed: on request; its newest checkpoint stands",
    ]


def test_a_worker_restarted_by_hand_outlives_the_launcher():
    one = Script(2, {1: {1: 0, "signal": signal.SIGINT}})
    one.fleet.workers[1].adopted_pid = 5
    assert one.ended()[0] == 130
    assert one.said[-1] == "worker 1 (pid 5), restarted by hand, still runs; its Redis server goes now"


def test_signals_by_their_names_and_exit_codes():
    for number, name, code in ((signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143), (1, "SIGHUP", 129)):
        with Interrupts() as interrupts:
            interrupts.check()
            assert interrupts.count == 0
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)
            assert (interrupts.count, interrupts.name, interrupts.exit_code) == (2, name, code)
            with pytest.raises(Interrupted, match=f"interrupted by {signal.Signals(number).name}") as found:
                interrupts.check()
            assert found.value.exit_code == code


def test_how_a_process_ended():
    codes = (0, 2, -9, -15, -64, -99)
    assert [processes.how_it_ended(code) for code in codes] == [
        *("exit code 0", "exit code 2", "killed by SIGKILL", "killed by SIGTERM", "killed by SIGRTMAX"),
        "killed by signal 99",
    ]


# --- the report at the end ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "has_checkpoint", "said"),
    [
        (0, True, []),
        (1, True, []),
        (128, True, []),
        (130, True, ["to go on: go on like this"]),
        (
            143,
            False,
            ["no worker had saved a checkpoint; to begin again in the same folder: go on like this"],
        ),
    ],
)
def test_the_way_to_go_on_is_reported_after_a_signal(tmp_path, monkeypatch, code, has_checkpoint, said):
    order = conclude(tmp_path, monkeypatch, Ending(code), has_checkpoint)
    assert order == ["read", "table of all rows", "report", *said]


def test_the_error_is_the_last_word(tmp_path, monkeypatch):
    order = conclude(tmp_path, monkeypatch, Ending(2, StandInWorker(3)), True)
    last = "error: worker 3 failed (exit code 2); the end of its log w3/log.txt:\n  the end of 3"
    assert order == ["read", "table of all rows", "report", last]


def conclude(tmp_path, monkeypatch, ending: Ending, has_checkpoint: bool) -> list[str]:
    """All events of the end, in order."""
    order: list[str] = []
    if has_checkpoint:
        (tmp_path / "w1" / "checkpoints" / "000004").mkdir(parents=True)
    board = SimpleNamespace(update=lambda: order.append("read"), rows="all rows")
    voice = SimpleNamespace(log=order.append, error=lambda text: order.append(f"error: {text}"))
    plan = SimpleNamespace(go_on="go on like this")
    monkeypatch.setattr(local, "_report", lambda *words: order.append("report"))
    monkeypatch.setattr(local.table, "aligned", lambda rows: f"table of {rows}")
    local._conclude(plan, SimpleNamespace(path=tmp_path), board, voice, None, ending)
    return order
