"""Worker processes for the tests: forked from a process that has torch loaded, with faults by script.

`Worker` runs `python -m degan.worker`'s main in a process of its own (a real pid to kill, real signals),
without the seconds that loading torch takes. A script names the faults that happen right after a step was trained
and before anything of this step is saved:

    {6: "kill"}        the process kills itself with SIGKILL
    {6: "tear"}        the process kills itself in the middle of writing the next checkpoint
    {6: "term"}        the process gets SIGTERM; "usr2" likewise
    {6: "hold:FILE"}   the process waits until FILE exists (its threads go on)
    {6: "slow:FILE"}   the process waits a moment, unless FILE exists
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.forks import Fork

DEADLINE_S = 60.0

BASE = """\
name: {name}
seed: 3
peers: {peers}
connect_timeout_s: 300
device: cpu
data: {{name: digits, batch_size: 8}}
model: {{name: mlp, latent: 4, hidden: 8, image_size: 16}}
mode: {{name: {mode}}}
run: {{steps: 12, log_every: 1, evaluate_every: 0, snapshot_every: 0, checkpoint_every: 4}}
"""


def experiment(folder: Path, name: str, peers: object = 1, mode: str = "partial_exchange") -> Path:
    """Write a small experiment file; `peers` is a number or a list of URLs."""
    path = folder / f"{name}.yaml"
    path.write_text(BASE.format(name=name, peers=json.dumps(peers), mode=mode), encoding="utf-8")
    return path


def wait_for(is_true: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Wait for a condition, with a deadline that names it."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class Worker:
    """One incarnation of a worker process.

    Args:
        words: the command line after `python -m degan.worker`.
        log: a new file for its standard output and standard error.
        script: the fault after each step.
        environment: variables to set.
    """

    def __init__(self, words: list, log: Path, script: dict[int, str] | None = None, **environment: str):
        self.log = log
        words = [str(word) for word in words]
        self._process = Fork(_live, words, str(log), script or {}, environment)
        self.pid = self._process.pid

    @property
    def text(self) -> str:
        return read_text(self.log)

    def until(self, line: str, timeout_s: float = DEADLINE_S) -> None:
        """Wait until the log has a text."""
        wait_for(lambda: line in self.text or not self._process.is_alive(), f"{line!r} in {self.log}", timeout_s)
        assert line in self.text, f"{line!r} is not in:\n{self.text}"

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for the end; returns the exit code, or minus the signal."""
        code = self._process.join(timeout_s)
        assert code is not None, f"still running after {timeout_s:g} s:\n{self.text}"
        return code

    def kill(self) -> None:
        """Kill the process in any state; for clearing up."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)


def _live(words: list[str], log: str, script: dict[int, str], environment: dict[str, str]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(handle, standard)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    from degan.runs.journal import Journal
    from degan.worker.__main__ import main

    write = Journal.stats

    def write_and_act(journal: Journal, line: dict) -> None:
        write(journal, line)
        _act(script.get(line["step"], ""))

    Journal.stats = write_and_act
    sys.exit(main(words))


def _act(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "tear":
        from degan.artifacts import checkpoints

        checkpoints._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    elif what == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "usr2":
        os.kill(os.getpid(), signal.SIGUSR2)
    elif what.startswith("hold:"):
        wait_for(Path(what[5:]).exists, what)
    elif what.startswith("slow:") and not Path(what[5:]).exists():
        time.sleep(0.05)
