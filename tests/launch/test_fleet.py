"""The launcher's fleet with stand-in processes: the workers that are asked to stop, the signal, and adopted workers."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import UsageError
from launch import fleet as module
from launch import processes
from launch.fleet import Fleet
from launch.folder import RunFolder


class StandInProcess:
    def __init__(self, command: list[str], log):
        self.command, self.log, self.code = command, log.name, None
        log.write(b"begins\n")

    def poll(self) -> int | None:
        return self.code


class Asked:
    """Three workers in a folder, and the calls to the system."""

    def __init__(self, folder: Path, monkeypatch):
        self.pids: dict[int, int] = {}
        self.stopped: list[tuple] = []
        self.signalled: list[tuple] = []
        self.killed: list[int] = []
        monkeypatch.setattr(processes, "start", lambda command, log, one_thread: StandInProcess(command, log))
        monkeypatch.setattr(processes, "live_pid", lambda path: self.pids.get(int(path.parent.name[1:])))
        monkeypatch.setattr(processes, "signal_pid", lambda pid, number: self.signalled.append((pid, number)))
        monkeypatch.setattr(processes, "stop", self.stop)
        plan = SimpleNamespace(
            workers=3, resume=False, worker_command=lambda n, resume: ["worker", str(n), str(resume)]
        )
        self.fleet = Fleet(plan, RunFolder(folder))
        self.fleet.start()

    def stop(self, running, number, grace_s, tick=lambda: False) -> list:
        running = list(running)
        numbers = [worker.number for worker in self.fleet.workers if worker.process in running]
        self.stopped.append((numbers, number, grace_s))
        tick()
        return [self.fleet.workers[number].process for number in self.killed]

    def end(self, number: int, code: int) -> None:
        self.fleet.workers[number].process.code = code


@pytest.fixture
def asked(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"w{number}").mkdir()
        (tmp_path / f"w{number}" / "log.txt").write_text("an earlier incarnation\n")
    return Asked(tmp_path, monkeypatch)


def test_each_worker_has_its_number_its_folder_and_its_log(asked, tmp_path):
    workers = asked.fleet.workers
    assert [worker.process.command for worker in workers] == [["worker", str(n), "False"] for n in range(3)]
    assert [worker.by_hand for worker in workers] == [f"worker {n} True" for n in range(3)]
    for number, worker in enumerate(workers):
        assert worker.process.log == str(tmp_path / f"w{number}" / "log.txt")
        # The lines of an earlier incarnation stay in the log, and are not shown as the end of this one.
        assert worker.log.read_text() == "an earlier incarnation\nbegins\n" and worker.last_lines() == ["begins"]


def test_a_folder_that_cannot_be_written_names_the_worker(asked, monkeypatch):
    monkeypatch.setattr(processes, "start", lambda *words, **more: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(UsageError, match="cannot start worker 0: no room"):
        asked.fleet.start()


def test_an_end_is_told_once(asked):
    fleet = asked.fleet
    assert fleet.newly_ended() == [] and len(fleet.running) == 3
    asked.end(1, 0)
    asked.end(2, -9)
    assert fleet.newly_ended() == fleet.workers[1:] and fleet.newly_ended() == []
    asked.end(0, 1)
    assert fleet.newly_ended() == [fleet.workers[0]] and fleet.running == []


@pytest.mark.parametrize(
    ("pids", "ended", "number"),
    [
        ({0: 10, 1: 11, 2: 12}, {}, signal.SIGUSR2),
        ({0: 10, 2: 12}, {}, signal.SIGTERM),  # worker 1 does not listen yet
        ({0: 10, 2: 12}, {1: 0}, signal.SIGUSR2),  # a worker that has ended need not listen
        ({}, {}, signal.SIGTERM),
    ],
)
def test_all_workers_are_asked_together_only_if_all_listen(asked, pids, ended, number):
    asked.pids = pids
    for worker, code in ended.items():
        asked.end(worker, code)
    asked.killed = [2]
    assert asked.fleet.stop_together(60.0, lambda: False) == [asked.fleet.workers[2]]
    assert asked.stopped == [([n for n in range(3) if n not in ended], number, 60.0)] and asked.signalled == []


def test_each_is_asked_by_itself(asked):
    asked.pids = {0: 10, 1: 11, 2: 12}
    assert asked.fleet.terminate(10.0, lambda: False) == []
    assert asked.stopped == [([0, 1, 2], signal.SIGTERM, 10.0)]


def test_a_worker_restarted_by_hand_is_asked_too_and_waited_for(asked, monkeypatch):
    asked.end(1, -9)
    asked.pids = {0: 10, 1: 77, 2: 12}
    assert [worker.number for worker in asked.fleet.adopted] == [1]
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            del asked.pids[1]

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 5.0, sleep=nap))
    asked.fleet.stop_together(60.0, lambda: False)
    assert asked.signalled == [(77, signal.SIGUSR2)] and asked.stopped[0][0] == [0, 2] and len(naps) == 3
    asked.pids[1] = 78
    asked.fleet.terminate(60.0, lambda: True)
    assert asked.signalled[1:] == [(78, signal.SIGTERM)] and len(naps) == 3, "a hurry ends the waiting"
    asked.fleet.terminate(0.0, lambda: False)
    assert len(naps) == 3, "and so does its deadline"


def test_all_of_ours_are_killed_at_the_end(asked):
    asked.end(0, 0)
    asked.fleet.kill()
    assert asked.stopped == [([0, 1, 2], None, 0.0)]
