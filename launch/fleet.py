"""The run's worker processes: their start, state and signals; with the workers restarted by hand."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from config import UsageError
from degan.runs.folder import STATS
from degan.runs.lines import Tail
from launch import processes
from launch.folder import RunFolder
from launch.plan import Plan


class Worker:
    """One worker's process, its folder and its log."""

    def __init__(self, plan: Plan, number: int, folder: Path) -> None:
        self.number, self.folder, self.log = number, folder, folder / "log.txt"
        # Before the start: the lines of an earlier incarnation are not this one's.
        self.stats = Tail(folder / STATS, from_end=True)
        self.by_hand = shlex.join(plan.worker_command(number, resume=True))
        with open(self.log, "ab") as log:
            self._log_start = log.tell()
            self.process = processes.start(plan.worker_command(number, plan.resume), log, one_thread=True)

    @property
    def code(self) -> int | None:
        """The exit code; -n for signal n; None while it runs."""
        return self.process.poll()

    @property
    def live_pid(self) -> int | None:
        """The process in the file `pid` of this worker: the launcher's child, or one restarted by hand."""
        return processes.live_pid(self.folder / "pid")

    @property
    def adopted_pid(self) -> int | None:
        """The process of a worker that was restarted by hand after the launcher's child had ended."""
        return self.live_pid if self.code is not None else None

    def state(self, seen: bool) -> str:
        """starting, training, finished or died; `seen`: whether the worker has reported a step."""
        if self.code is None:
            return "training" if seen else "starting"
        if self.code == 0:
            return "finished"
        return "training" if self.adopted_pid is not None else "died"

    def last_lines(self) -> list[str]:
        """The last lines of the worker's log since its start."""
        return processes.last_lines(self.log, start=self._log_start)


class Fleet:
    """All workers of a run."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder
        self.workers: list[Worker] = []
        self._reaped: set[int] = set()

    def start(self) -> None:
        """Start one process for each worker.

        Raises:
            UsageError: a worker's folder or log cannot be written.
        """
        for number in range(self._plan.workers):
            try:
                self.workers.append(Worker(self._plan, number, self._folder.worker(number)))
            except OSError as error:
                raise UsageError(f"cannot start worker {number}: {error}") from None

    @property
    def running(self) -> list[Worker]:
        """The launcher's workers that have not ended."""
        return [worker for worker in self.workers if worker.code is None]

    @property
    def adopted(self) -> list[Worker]:
        """The running workers that were restarted by hand after their end."""
        return [worker for worker in self.workers if worker.adopted_pid is not None]

    def newly_ended(self) -> list[Worker]:
        """The launcher's workers that have ended since the last call."""
        ended = [worker for worker in self.workers if worker.code is not None and worker.number not in self._reaped]
        self._reaped.update(worker.number for worker in ended)
        return ended

    def stop_together(self, grace_s: float, tick: Callable[[], bool]) -> list[Worker]:
        """Ask all workers to agree on a last step, save and end; kill those that have not after `grace_s`.

        The signal would end a worker without a signal handler, and the others would wait for its answer. So while
        any worker is still starting, each worker is asked to save and end by itself.

        Returns:
            The workers that had to be killed.
        """
        together = all(worker.live_pid is not None for worker in self.running)
        return self._stop(signal.SIGUSR2 if together else signal.SIGTERM, grace_s, tick)

    def terminate(self, grace_s: float, tick: Callable[[], bool]) -> list[Worker]:
        """Ask each worker to end by itself; kill those that have not after `grace_s`.

        Returns:
            The workers that had to be killed.
        """
        return self._stop(signal.SIGTERM, grace_s, tick)

    def kill(self) -> None:
        """Kill all of the launcher's workers now."""
        processes.stop([worker.process for worker in self.workers], None, 0.0)

    def _stop(self, number: signal.Signals, grace_s: float, tick: Callable[[], bool]) -> list[Worker]:
        ours: list[subprocess.Popen] = [worker.process for worker in self.running]
        for worker in self.adopted:
            processes.signal_pid(worker.adopted_pid, number)
        deadline = time.monotonic() + grace_s
        killed = processes.stop(ours, number, grace_s, tick)
        while self.adopted and time.monotonic() < deadline and not tick():
            time.sleep(processes.POLL_S)
        return [worker for worker in self.workers if worker.process in killed]
