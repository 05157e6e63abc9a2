"""Watches a running fleet until its end: deaths, failures, Ctrl-C, and workers restarted by hand.

The events and their effects:

| what happens | the others | exit code |
| --- | --- | --- |
| every worker exits 0 | | 0 |
| a worker exits by itself with an error | are stopped at once | the worker's |
| a worker is killed by a signal (a dead machine) | go on; it may be restarted by hand | 1 |
| Ctrl-C, SIGTERM or a closed terminal | agree on a step, save, end | 128 + the signal |
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from launch import processes
from launch.fleet import Fleet, Worker
from launch.interrupts import Interrupts
from launch.plan import Limits
from launch.servers import Servers
from launch.voice import Voice

POLL_S = 0.1
# The exit codes of a worker that is asked to stop before it has its signal handlers.
NOT_LISTENING = (-signal.SIGTERM, -signal.SIGUSR2)


@dataclass(frozen=True)
class Ending:
    """How the run ended: the launcher's exit code, and the worker whose error ended it."""

    exit_code: int
    failed: Worker | None = None


class Supervisor:
    """Makes all decisions; `run` returns when none of the run's workers is left."""

    def __init__(
        self,
        fleet: Fleet,
        servers: Servers,
        interrupts: Interrupts,
        voice: Voice,
        limits: Limits,
        update: Callable[[], None],
    ) -> None:
        """`update` is called several times a second, for the display."""
        self._fleet, self._servers, self._interrupts = fleet, servers, interrupts
        self._voice, self._limits, self._update = voice, limits, update
        self._lost: list[Worker] = []
        self._awaited: list[int] = []

    def run(self) -> Ending:
        """Watch until all workers have ended, those restarted by hand included."""
        while True:
            ended = self._fleet.newly_ended()
            # Of several failures, an error that a person can fix (2) explains more than its consequences (1).
            failed = sorted((w for w in ended if w.code > 0), key=lambda w: (w.code != 2, w.number))
            for worker in ended:
                if worker.code < 0:
                    self._log_died(worker)
            if failed:
                return self._stop_others(failed[0])
            if self._interrupts.count:
                return self._stop_together()
            if not self._fleet.running and not self._await_adopted():
                return self._all_ended()
            self._look()
            self._interrupts.wait(POLL_S)

    def _look(self) -> None:
        self._update()
        for server in self._servers.newly_dead():
            how = processes.how_it_ended(server.process.returncode)
            lines = "".join(f"\n  {text}" for text in server.last_lines()[-3:])
            self._voice.log(f"the Redis server at {server.url} has ended ({how}); its log: {server.log}{lines}")

    def _log_died(self, worker: Worker) -> None:
        self._lost.append(worker)
        others = "; the others go on" if self._fleet.running else ""
        self._voice.log(
            f"worker {worker.number} died: {processes.how_it_ended(worker.code)}{others}. "
            f"Its log: {worker.log}\nrestart it with: {worker.by_hand}"
        )

    def _await_adopted(self) -> bool:
        adopted = self._fleet.adopted
        numbers = [worker.number for worker in adopted]
        if numbers != self._awaited:
            self._awaited = numbers
            names = ", ".join(f"worker {worker.number} (pid {worker.adopted_pid})" for worker in adopted)
            if names:
                self._voice.log(f"{names}, restarted by hand, still runs; the Redis servers stay up for it")
        return bool(adopted)

    def _all_ended(self) -> Ending:
        for worker in self._lost:
            self._voice.log(f"worker {worker.number} had died: {processes.how_it_ended(worker.code)}")
        return Ending(1 if self._lost else 0)

    def _stop_others(self, failed: Worker) -> Ending:
        how = processes.how_it_ended(failed.code)
        self._voice.log(f"worker {failed.number} failed ({how}); the others are being stopped")
        before = self._interrupts.count

        def hurry() -> bool:
            self._look()
            return self._interrupts.count > before

        self._fleet.terminate(self._limits.terminate_s, hurry)
        self._log_left()
        return Ending(failed.code, failed)

    def _stop_together(self) -> Ending:
        grace_s = self._limits.together_s
        self._voice.log(
            f"{self._interrupts.name}: the workers agree on a last step and save (up to {grace_s:.0f} s); "
            "a second Ctrl-C kills them at once"
        )
        ended_before = {worker.number for worker in self._fleet.workers if worker.code is not None}

        def hurry() -> bool:
            self._look()
            return self._interrupts.count > 1

        killed = self._fleet.stop_together(grace_s, hurry)
        for worker in self._fleet.workers:
            if worker in killed:
                why = "on request" if self._interrupts.count > 1 else f"it had not ended within {grace_s:.0f} s"
                self._voice.log(f"worker {worker.number} was killed: {why}; its newest checkpoint stands")
            elif worker.code in NOT_LISTENING and worker.number not in ended_before:
                self._voice.log(f"worker {worker.number} was still starting; it had nothing to save")
            elif worker.code != 0 and worker.number not in ended_before:
                how = processes.how_it_ended(worker.code)
                self._voice.log(f"worker {worker.number} did not end cleanly ({how}); its log: {worker.log}")
        self._log_left()
        return Ending(self._interrupts.exit_code)

    def _log_left(self) -> None:
        """Log the workers restarted by hand: a person's processes, which are asked to stop but never killed."""
        for worker in self._fleet.adopted:
            self._voice.log(
                f"worker {worker.number} (pid {worker.adopted_pid}), restarted by hand, still runs; "
                "its Redis server goes now"
            )
