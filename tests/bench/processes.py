"""The benchmarks' processes: Redis servers and workers that end with this one, and their costs.

A reading is taken while all workers run: it begins when the slowest has passed the warm-up in steps and
seconds, and ends a given time later. The work of a worker in between is read from its stats.jsonl, so a worker that
started sooner does not count for more.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import processes
from launch.servers import find
from tests.servers import free_port

POLL_S = 0.2
START_S = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


def end_tidily() -> None:
    """Ctrl-C and SIGTERM unwind the stack, so that every open process and file is closed."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


@contextlib.contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen]:
    """A child that does not outlive this process, nor the block."""
    with open(log, "ab") as output:
        child = processes.start(command, output, one_thread=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)


@dataclass(frozen=True)
class Server:
    """A Redis server that runs."""

    url: str
    pid: int


@contextlib.contextmanager
def redis_server(folder: Path, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Iterator[Server]:
    """A real redis-server that keeps nothing on disk.

    Args:
        folder: for its log; is made.
        address: the address on which it listens, without protection.
        prefix: words before the command, such as `ip netns exec NAME`.
    """
    folder.mkdir(parents=True)
    port, log = free_port(), folder / "log.txt"
    program = find("redis").path
    command = [program, "--bind", address, "--port", str(port), "--save", "", "--protected-mode", "no"]
    with running([*prefix, *command, "--dir", str(folder.resolve())], log) as child:
        deadline = time.monotonic() + 20
        # The port comes from the server's log: the server may be where this process cannot reach it.
        while "ready to accept connections" not in log.read_text(errors="replace").lower():
            check(child, "redis-server", log)
            if time.monotonic() > deadline:
                sys.exit(f"redis-server is not ready after 20 s:\n{log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.02)
        yield Server(f"redis://{address}:{port}/0", child.pid)


def check(child: subprocess.Popen, who: str, log: Path) -> None:
    """Raise SystemExit if a child has ended."""
    if child.poll() is not None:
        sys.exit(f"{who} ended with {child.returncode}:\n{log.read_text(errors='replace')[-3000:]}")


# --- the costs of a process -----------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def status(pid: int | str, key: str) -> int:
    """A number from /proc/PID/status: `Threads`, or `VmRSS` and `VmHWM` in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


# --- workers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """The work between two moments at which all workers ran.

    Attributes:
        lines: for each worker its lines in stats.jsonl, from the last of the warm-up to the last of all.
        before: for each worker the lines before these.
        workers_cpu_s, servers_cpu_s: CPU time of the workers and of the Redis servers, all together.
    """

    lines: list[list[dict]]
    before: list[list[dict]]
    workers_cpu_s: float
    servers_cpu_s: float

    @property
    def step_s(self) -> float:
        """Trained time over steps, as the mean over the workers."""
        return mean([(b["time_s"] - a["time_s"]) / (b["step"] - a["step"]) for a, b in self._ends()])

    @property
    def steps(self) -> float:
        """The number of steps of a worker, as the mean over the workers."""
        return mean([b["step"] - a["step"] for a, b in self._ends()])

    def per_step(self, key: str) -> float | None:
        """The mean of a figure of single steps, which each line has; None where the lines have none."""
        found = [line[key] for lines in self.lines for line in lines[1:] if line.get(key) is not None]
        return mean(found) if found else None

    def grown(self, key: str) -> float:
        """The growth of a counter in a step of a worker."""
        return mean([(b[key] - a[key]) / (b["step"] - a["step"]) for a, b in self._ends()])

    def _ends(self) -> list[tuple[dict, dict]]:
        return [(lines[0], lines[-1]) for lines in self.lines]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def experiment(folder: Path, peers: Sequence[str] | int, overrides: Sequence[str]) -> Path:
    """The `mnist-degan` experiment with a line for each step and nothing else written, as a file.

    Args:
        peers: URLs, or a number for a run without an exchange.
        overrides: more settings, as of `--set`.
    """
    import config

    quiet = ["run.log_every=1", "run.evaluate_every=0", "run.snapshot_every=0", "run.checkpoint_every=0"]
    more = [f"peers={json.dumps(peers)}", "run.steps=1000000", "device=cpu", "connect_timeout_s=120"]
    path = folder / "experiment.yaml"
    path.write_text(config.dump(config.load("mnist-degan", [*quiet, *more, *overrides])), encoding="utf-8")
    return path


def data_settings(root: str | None) -> list[str]:
    """Settings of the data: MNIST from `root`, or the digits that come with scikit-learn."""
    if root is None:
        return ["data.name=digits", "data.root=null"]
    return ["data.name=mnist", f"data.root={json.dumps(str(Path(root).resolve()))}"]


def add_data_option(parser) -> None:
    parser.add_argument(
        "--data",
        metavar="ROOT",
        default=os.environ.get("DEGAN_TEST_DATA"),
        help="the folder that holds MNIST/raw (default: $DEGAN_TEST_DATA; without it, scikit-learn's digits)",
    )


def read_workers(
    commands: Sequence[Sequence[str]],
    run: Path,
    warm_steps: int,
    warm_s: float,
    seconds: float,
    servers: Sequence[Server] = (),
    least_steps: int = 3,
) -> Reading:
    """Run one process a worker and take a reading; all have ended on return.

    Args:
        commands: the command of each worker, which writes `run/wN/stats.jsonl`.
        warm_steps: the number of steps of each worker before the reading.
        warm_s: the least time from the last worker's first step to the reading.
        seconds: the time of the reading; longer where a worker has not made its least steps by then.
        servers: the servers whose CPU time is read.
        least_steps: the least number of steps of each worker.
    """
    logs = [run / f"worker{number}.txt" for number in range(len(commands))]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(running(command, log)) for command, log in zip(commands, logs, strict=True)]

        def wait(until, timeout_s: float) -> None:
            deadline = time.monotonic() + timeout_s
            while not until():
                for number, (child, log) in enumerate(zip(children, logs, strict=True)):
                    check(child, f"worker {number}", log)
                if time.monotonic() > deadline:
                    sys.exit(f"waited {timeout_s:g} s for the workers' steps:\n{logs[0].read_text()[-3000:]}")
                time.sleep(POLL_S)

        def all_lines() -> list[list[dict]]:
            return [_lines(run / f"w{number}" / "stats.jsonl") for number in range(len(commands))]

        def all_cpu_s() -> list[float]:
            return [sum(cpu_s(one.pid) for one in those) for those in (children, servers)]

        wait(lambda: all(all_lines()), START_S)
        began = time.monotonic()
        wait(lambda: all(len(lines) > warm_steps for lines in all_lines()), START_S + 20 * warm_s)
        wait(lambda: time.monotonic() > began + warm_s, warm_s + 60)
        before, spent, began = all_lines(), all_cpu_s(), time.monotonic()
        wait(lambda: time.monotonic() > began + seconds, seconds + 60)
        wait(lambda: all(len(a) >= len(b) + least_steps for a, b in zip(all_lines(), before, strict=True)), 300)
        after, spent_after = all_lines(), all_cpu_s()
    lines = [a[len(b) - 1 :] for a, b in zip(after, before, strict=True)]
    costs = [late - early for early, late in zip(spent, spent_after, strict=True)]
    return Reading(lines, [b[:-1] for b in before], *costs)


def _lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    # The text after the last line end is a line that is just being written.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()]


def worker_commands(file: Path, run: Path, workers: int, prefixes: Sequence[Sequence[str]] = ()) -> list[list[str]]:
    """The command lines of an experiment's workers."""
    found = []
    for number in range(workers):
        prefix = prefixes[number] if prefixes else ()
        words = ["-m", "degan.worker", str(number), "--config", str(file), "--out", str(run)]
        found.append([*prefix, sys.executable, *words])
    return found


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="degan-bench-") as name:
        yield Path(name)
