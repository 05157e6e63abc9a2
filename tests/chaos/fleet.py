"""A fleet of real worker processes over real Redis servers, with scripted faults and readings of its progress.

A worker injects its own faults (`DEGAN_FAULTS`). The fleet injects the faults of a Redis, when the worker of that node
has reached the step. A thread reads every worker's stats.jsonl, so that its progress has times of another clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from safetensors.numpy import load_file

from degan.runs.lines import read_lines
from peers.chaos.faults import VARIABLE, Fault, Faults
from tests.chaos.nodes import Node
from tests.proxy import Link, Network
from tests.workers import Worker, read_text, wait_for

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 0.02
# The computing of a step takes milliseconds; a step takes this multiple of it, most of it asleep.
PACE = 10
LEASE_S = 4.0
BASE = """\
name: {name}
seed: 3
peers: {peers}
connect_timeout_s: 60
device: cpu
data: {{name: digits, batch_size: 16}}
model: {{name: mlp, latent: 16, hidden: 64, image_size: 16}}
mode: {{name: {mode}}}
bus: {{lease_s: {lease_s}}}
run: {{steps: 100000, log_every: 1, evaluate_every: 0, snapshot_every: 0, checkpoint_every: 20}}
"""


class Command:
    """An incarnation of a worker by its command line, with the interface of `tests.workers.Worker`."""

    def __init__(self, words: list, log: Path, environment: dict[str, str]):
        self.log = log
        command = [sys.executable, "-m", "degan.worker", *map(str, words)]
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | environment
            )
        self.pid = self._process.pid

    @property
    def text(self) -> str:
        return read_text(self.log)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, timeout_s: float = 60.0) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.text[-600:]}") from None

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        if self.is_alive:
            self._process.kill()
            self._process.wait(10)


class Fleet:
    """Workers of one run.

    Args:
        folder: for everything of this run.
        workers: their number.
        script: of faults, for all.
        settings: overrides of `BASE`, `a.b=c`.
        mode: its name.
        is_durable: whether a Redis keeps its data on disk.
        network: the workers reach each other's Redis through links of it, each pair its own.
        by_command: start `python -m degan.worker`, which takes seconds; else its main in a forked process.
        pace: the time of a step as a multiple of its computing.

    Attributes:
        mode: its name.
        nodes: the Redis of each worker.
        links: (reader, node) -> link, with a network.
        incarnations: for each worker the list of its incarnations.
    """

    def __init__(
        self,
        folder: Path,
        workers: int,
        script: str = "",
        settings: tuple[str, ...] = (),
        mode: str = "partial_exchange",
        is_durable: bool = False,
        network: Network | None = None,
        by_command: bool = False,
        pace: float = PACE,
        lease_s: float = LEASE_S,
    ):
        self.folder, self.workers, self.out = folder, workers, folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        self.lease_s, self._settings, self.mode = lease_s, settings, mode
        self._by_command, self._pace = by_command, pace
        self.faults = Faults.parse(script, workers)
        self.incarnations: list[list[Any]] = [[] for _ in range(workers)]
        # For each worker (time, step), one entry for each change of the last step in its stats.
        self.progress: list[list[tuple[float, int]]] = [[] for _ in range(workers)]
        self.done: list[tuple[float, str]] = []
        self._later: list[tuple[float, str, Callable[[], None]]] = []
        self._plans = [self.faults.for_redis(number) for number in range(workers)]
        self.nodes: list[Node] = []
        self.links: dict[tuple[int, int], Link] = {}
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._look, name="fleet-watch", daemon=True)
        try:
            for number in range(workers):
                self.nodes.append(Node(folder / f"redis{number}", is_durable))
        except BaseException:
            self.close()
            raise
        if network is not None:
            for reader in range(workers):
                for node in range(workers):
                    if reader != node:
                        self.links[reader, node] = network.link(self.nodes[node].port)
        for number in range(workers):
            self._file(number).write_text(self._experiment(number), encoding="utf-8")
        self._watch.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _file(self, number: int) -> Path:
        return self.folder / f"w{number}.yaml"

    def _experiment(self, number: int) -> str:
        urls = [
            f"redis://127.0.0.1:{self.links[number, node].port}/0" if (number, node) in self.links else found.url
            for node, found in enumerate(self.nodes)
        ]
        return BASE.format(name="chaos", peers=json.dumps(urls), mode=self.mode, lease_s=self.lease_s)

    @property
    def is_exact(self) -> bool:
        """Whether all workers hold the very same weights after a step at which all save."""
        return self.mode != "partial_exchange" or "mode.slack=0" in self._settings

    # --- incarnations -------------------------------------------------------------------------

    def start(self, number: int, *words: str, has_faults: bool = True, settings: tuple[str, ...] = ()) -> Any:
        """Start a worker; without its faults it keeps the pace, its attack and other faults of no step."""
        log = self.folder / f"w{number}-{len(self.incarnations[number])}.log"
        overrides = [word for setting in (*self._settings, *settings) for word in ("--set", setting)]
        line = [number, "--config", self._file(number), "--out", self.out, *overrides, *words]
        mine = [fault for fault in self.faults.faults if not fault.is_redis and fault.number == number]
        kept = [str(fault) for fault in mine if has_faults or fault.step is None]
        if self._pace > 1 and not any(fault.action == "slow" and fault.step is None for fault in mine):
            kept.insert(0, f"w{number}:slow:{self._pace:g}")
        # With a thread for each core, torch's threads of several workers wait for each other most of the time.
        environment = {VARIABLE: ", ".join(kept), "OMP_NUM_THREADS": "1"}
        incarnation = Command(line, log, environment) if self._by_command else Worker(line, log, **environment)
        self.incarnations[number].append(incarnation)
        return incarnation

    def start_all(self, until_step: int = 5) -> None:
        """Start all and wait until all train."""
        for number in range(self.workers):
            self.start(number)
        for number in range(self.workers):
            self.until_step(number, until_step)

    def resume(self, number: int) -> Any:
        """Start a worker again, as one would after a crash: from its newest checkpoint, and without its faults."""
        return self.start(number, "--resume", "latest", has_faults=False)

    def incarnation(self, number: int) -> Any:
        return self.incarnations[number][-1]

    def is_alive(self, number: int) -> bool:
        incarnation = self.incarnation(number)
        return incarnation.is_alive if self._by_command else incarnation._process.is_alive()

    def text(self, number: int) -> str:
        """The logs of all incarnations of a worker."""
        return "".join(incarnation.text for incarnation in self.incarnations[number])

    # --- waiting ------------------------------------------------------------------------------

    def wait(self, is_true: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        """Wait for a condition; fails at once when the fleet itself has failed."""

        def look() -> object:
            if self._failure is not None:
                raise self._failure
            return is_true()

        wait_for(look, what, timeout_s)

    def step(self, number: int) -> int:
        return self.progress[number][-1][1] if self.progress[number] else 0

    def until_step(self, number: int, step: int, timeout_s: float = 60.0) -> None:
        def is_there() -> bool:
            if self.step(number) >= step:
                return True
            assert self.is_alive(number), f"worker {number} ended before step {step}:\n{self.text(number)[-600:]}"
            return False

        try:
            self.wait(is_there, f"worker {number} to reach step {step}", timeout_s)
        except AssertionError as error:
            logged = self.incarnation(number).text.strip().splitlines()[-1:]
            raise AssertionError(f"{error}, at step {self.step(number)}; its last line is {logged}") from None

    def advance(self, numbers: list[int], steps: int = 20, timeout_s: float = 60.0) -> None:
        """Wait until each of these workers has trained `steps` steps more."""
        goals = {number: self.step(number) + steps for number in numbers}
        for number, goal in goals.items():
            self.until_step(number, goal, timeout_s)

    def until_log(self, number: int, text: str, timeout_s: float = 60.0, is_over: bool = False) -> float:
        """Wait for a text in a worker's logs; returns when it was there. The worker may have ended if `is_over`."""

        def is_there() -> bool:
            if text in self.text(number):
                return True
            is_alive = is_over or self.is_alive(number)
            assert is_alive, f"worker {number} ended before it logged {text!r}:\n{self.text(number)[-600:]}"
            return False

        self.wait(is_there, f"{text!r} from worker {number}", timeout_s)
        return time.monotonic()

    def until_done(self, how_many: int = 1, timeout_s: float = 60.0) -> float:
        """Wait until `how_many` faults of servers were injected; returns the time of the last one."""
        self.wait(lambda: len(self.done) >= how_many, f"{how_many} faults of servers", timeout_s)
        return self.done[how_many - 1][0]

    def stop(self, timeout_s: float = 40.0) -> list[int]:
        """Stop all together (SIGUSR2 to the first live worker); returns the exit codes of the newest incarnations."""
        alive = [number for number in range(self.workers) if self.incarnations[number] and self.is_alive(number)]
        if alive:
            self.incarnation(alive[0]).signal(signal.SIGUSR2)
        return [incarnations[-1].end(timeout_s) if incarnations else 0 for incarnations in self.incarnations]

    # --- readings -----------------------------------------------------------------------------

    def worst_pause_s(self, number: int, since: float = 0.0) -> float:
        """The longest time between two steps of a worker from a moment on; an open end counts if it is alive."""
        times = [at for at, _ in self.progress[number]]
        before = [at for at in times if at < since][-1:]
        seen = before + [at for at in times if at >= since]
        if self.is_alive(number):
            seen.append(time.monotonic())
        return max((later - earlier for earlier, later in zip(seen, seen[1:], strict=False)), default=0.0)

    def rate(self, number: int, begin: float, end: float) -> float:
        """Steps a second of a worker between two moments."""
        seen = [(at, step) for at, step in self.progress[number] if begin <= at <= end]
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]) if len(seen) > 2 else 0.0

    def stats(self, number: int) -> list[dict[str, Any]]:
        path = self.out / f"w{number}" / "stats.jsonl"
        return read_lines(path) if path.exists() else []

    def dropped(self, number: int) -> dict[str, int]:
        """The counts of messages that were not applied, by reason, in the newest incarnation."""
        lines = self.stats(number)
        return lines[-1]["dropped"] if lines else {}

    def checkpoints(self, number: int) -> list[int]:
        folder = self.out / f"w{number}" / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def weights(self, number: int, step: int | None = None) -> dict[str, Any]:
        """The weights of both networks in a checkpoint, by default the newest; the moving average is left out."""
        step = self.checkpoints(number)[-1] if step is None else step
        path = self.out / f"w{number}" / "checkpoints" / f"{step:06d}" / "model.safetensors"
        return {name: array for name, array in load_file(path).items() if not name.startswith("ema.")}

    # --- watching, and faults -----------------------------------------------------------------

    def _look(self) -> None:
        try:
            while not self._closing.wait(LOOK_S):
                for number in range(self.workers):
                    self._look_at(number)
                    for fault in self._plans[number].due(self.step(number)):
                        self._inject(fault)
                now = time.monotonic()
                for item in [item for item in self._later if item[0] <= now]:
                    self._later.remove(item)
                    self._do(item[1], item[2])
        except BaseException as error:
            self._failure = error

    def _look_at(self, number: int) -> None:
        step = _newest_step(self.out / f"w{number}" / "stats.jsonl")
        if step and step != self.step(number):
            self.progress[number].append((time.monotonic(), step))

    def _do(self, what: str, action: Callable[[], None]) -> None:
        with contextlib.suppress(redis.RedisError):
            action()
            self.done.append((time.monotonic(), what))

    def _inject(self, fault: Fault) -> None:
        """Inject a fault into a Redis, and plan its end."""
        node = self.nodes[fault.number]
        back, number = node.start, signal.SIGKILL
        match fault.action:
            case "restart":
                number = signal.SIGTERM
            case "stop":
                back = node.thaw
            case "full":
                back = lambda: node.limit(0)  # noqa: E731
            case "back":
                self._do(str(fault), lambda: node.limit(0) if node.is_up else node.start())
                return
        actions = {"stop": node.freeze, "full": lambda: node.limit(fault.size_bytes)}
        self._do(str(fault), actions.get(fault.action, lambda: node.end(number)))
        if fault.seconds is not None or fault.action == "restart":
            self._later.append((time.monotonic() + (fault.seconds or 0.0), f"{fault} is over", back))

    def inject(self, script: str) -> None:
        """Inject faults of servers now, whatever their step."""
        for fault in Faults.parse(script, self.workers).faults:
            self._inject(fault)

    def close(self) -> None:
        """End every process that was started."""
        self._closing.set()
        if self._watch.is_alive():
            self._watch.join(10)
        for incarnations in self.incarnations:
            for incarnation in incarnations:
                with contextlib.suppress(ProcessLookupError):
                    incarnation.kill()
        for node in self.nodes:
            node.close()


def _newest_step(stats: Path) -> int:
    """The step of the last whole line; 0 where there is none."""
    try:
        with open(stats, "rb") as file:
            file.seek(max(0, os.path.getsize(stats) - 4096))
            whole = file.read().rpartition(b"\n")[0].splitlines()
        return json.loads(whole[-1])["step"] if whole else 0
    except (FileNotFoundError, ValueError):
        return 0
