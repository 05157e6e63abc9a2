"""The size of a long run over time: memory, threads and descriptors of workers and Redis servers.

    python tests/bench/memory.py [--steps N] [--set a.b=c ...] [--out FILE.svg]

The benchmark starts `python -m launch local smoke` (three workers, a real Redis server each) as a child and reads,
every second, /proc of each worker and INFO memory of each server. It compares the median of the second tenth of the
readings, when every cache and outbox is full, with the median of the last tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import redis

import config
from degan.reports.svg import HEIGHT, WIDTH, chart, short
from peers.bus.redis.client import split_socket
from tests.bench.table import finish, show

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
# Evaluations and checkpoints are part of a long run, but not every second.
RARE = ("run.evaluate_every=500", "run.snapshot_every=500", "run.log_every=10")
START_S = 120.0
GROWTH, SMALL_MIB = 0.05, 1.0
STYLE = """
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #54606c } .label { fill: #1b2430 }
.grid { stroke: #e9edf1 } .axis { stroke: #9aa5b0; fill: none }
.line { fill: none; stroke: currentColor; stroke-width: 1.9 } .dot { fill: currentColor }
.d1 { stroke-dasharray: 6 4 } .c0 { color: #1f6fd6 } .c1 { color: #d9590b } .c2 { color: #0a8a63 }
.c3 { color: #b0249b } .c4 { color: #8f7100 } .c5 { color: #6741d9 } .c6 { color: #c2272d } .c7 { color: #54606c }
"""


@dataclass(frozen=True)
class Reading:
    """The figures of one moment: for each name the figures of all workers (or of their servers)."""

    step: int
    figures: dict[str, list[float]]


# The names of the figures in the table and the picture.
RSS, OWN, USED, THREADS, FILES = "worker, MiB", "worker's own, MiB", "Redis, MiB", "threads", "descriptors"
ALL, SHOWN = (RSS, OWN, USED, THREADS, FILES), (OWN, USED, THREADS, FILES)


def read_worker(pid: int) -> dict[str, float]:
    """Resident memory, threads and open descriptors of a process.

    Raises:
        OSError: the process has ended.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in status:
        raise ProcessLookupError(pid)  # The process has ended and was not waited for yet.
    mib = {name: int(status[key].split()[0]) / 1024 for name, key in ((RSS, "VmRSS"), (OWN, "RssAnon"))}
    return {**mib, THREADS: int(status["Threads"]), FILES: len(os.listdir(f"/proc/{pid}/fd"))}


def newest_step(stats: Path) -> int:
    """The step of the last whole line of a stats.jsonl; 0 where there is none."""
    try:
        with open(stats, "rb") as file:
            file.seek(max(0, os.path.getsize(stats) - 4096))
            whole = file.read().rpartition(b"\n")[0].splitlines()
        return json.loads(whole[-1])["step"] if whole else 0
    except FileNotFoundError:
        return 0


class Watch:
    """Readings of a run that is under way.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path):
        self._run = run
        self._servers: list[redis.Redis] = []
        self._pids: list[int] = []

    def is_ready(self) -> bool:
        """Whether all workers train; connects to their servers if they do."""
        if not (self._run / "w0" / "stats.jsonl").exists():
            return False
        settings = config.load(self._run / "experiment.yaml")
        if any(newest_step(self._run / f"w{number}" / "stats.jsonl") == 0 for number in range(settings.workers)):
            return False
        self._pids = [int((self._run / f"w{n}" / "pid").read_text()) for n in range(settings.workers)]
        self._servers = [redis.Redis.from_url(split_socket(url)[0]) for url in settings.peers]
        return True

    def read(self) -> Reading:
        """One reading.

        Raises:
            OSError: a worker has ended.
        """
        steps = [newest_step(self._run / f"w{number}" / "stats.jsonl") for number in range(len(self._pids))]
        workers = [read_worker(pid) for pid in self._pids]
        figures = {name: [worker[name] for worker in workers] for name in (RSS, OWN, THREADS, FILES)}
        figures[USED] = [server.info("memory")["used_memory"] / MIB for server in self._servers]
        return Reading(min(steps), figures)

    def close(self) -> None:
        for server in self._servers:
            server.close()


def watch(command: Sequence[str], run: Path, every_s: float, steps: int) -> list[Reading]:
    """Run the command, read while its workers train, and check its exit code."""
    log, found = run.with_suffix(".txt"), []
    with open(log, "wb") as output:
        child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    looking = Watch(run)
    try:
        deadline = time.monotonic() + START_S
        while not looking.is_ready():
            if child.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the workers do not train:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        while child.poll() is None:
            try:
                reading = looking.read()
            except (OSError, redis.RedisError):
                break
            if reading.step >= steps:
                break
            found.append(reading)
            time.sleep(every_s)
        if child.wait(120) != 0:
            sys.exit(f"the run ended with {child.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    finally:
        looking.close()
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(10)
    return found


def compare(readings: Sequence[Reading], name: str, worker: int) -> dict[str, float]:
    """A figure of one worker, early and late."""
    tenth = len(readings) // 10
    values = [reading.figures[name][worker] for reading in readings]
    start, end = statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])
    steps = [reading.step / 1000 for reading in readings]
    slope = statistics.linear_regression(steps[tenth:], values[tenth:]).slope
    found = {"start": start, "end": end, "growth": end - start, "share": (end - start) / start, "slope": slope}
    return {key: round(value, 5) for key, value in found.items()}


def picture(readings: Sequence[Reading], workers: int) -> str:
    """The readings as one SVG image, a panel a figure."""

    def points(name: str, worker: int) -> list[tuple[float, float]]:
        return [(reading.step / 1000, reading.figures[name][worker]) for reading in readings]

    return panels({name: [points(name, worker) for worker in range(workers)] for name in SHOWN}, "1,000 steps")


def panels(figures: dict[str, list[list[tuple[float, float]]]], unit: str) -> str:
    """One SVG image with a panel a figure, and in it a line a worker; `unit` is that of the points' first value."""
    found = []
    for index, (name, each) in enumerate(figures.items()):
        lines = [(number, f"{number}", points) for number, points in enumerate(each) if points]
        body = chart(lines, x_label=f"{name}; {unit}", x_text=short, y_text=short, describe=name, from_zero=True)
        place = f'<svg x="{index % 2 * WIDTH}" y="{index // 2 * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        found.append(body.replace("<svg ", place, 1))
    width, height = 2 * WIDTH, 2 * HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return f'{head}<style>{STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>{"".join(found)}</svg>\n'


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python tests/bench/memory.py", description=__doc__.splitlines()[0])
    found.add_argument("--steps", type=int, default=10_000)
    found.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two readings")
    found.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting")
    found.add_argument("--out", type=Path, default=Path("runs/memory/memory.svg"), metavar="FILE.svg")
    return found


def main(argv: list[str]) -> int:
    words = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = [*RARE, f"run.steps={words.steps}", *words.set]
    overrides = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="degan-memory-") as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "launch", "local", "smoke", "--out", str(run), "--bus", "redis", *overrides]
        readings = watch(command, run, words.every, words.steps)
    if len(readings) < 20:
        sys.exit(f"only {len(readings)} readings; more --steps, or a smaller --every")
    workers = len(readings[0].figures[RSS])
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(picture(readings, workers), encoding="utf-8")

    found = {name: [compare(readings, name, k) for k in range(workers)] for name in ALL}
    rows = [
        {
            "": f"{worker} {name}",
            "start": round(one["start"], 2),
            "end": round(one["end"], 2),
            "growth": f"{one['growth']:+.2f}",
            "%": f"{100 * one['share']:+.1f}",
            "per 1,000 steps": f"{one['slope']:+.3f}",
        }
        for name, each in found.items()
        for worker, one in enumerate(each)
    ]
    show(f"{len(readings)} readings over {readings[-1].step:,} steps, picture in {words.out}", rows)
    rss, own = (max(one["share"] for one in found[name]) for name in (RSS, OWN))
    used = max(found[USED], key=lambda one: one["share"])
    threads, files = (max(abs(one["growth"]) for one in found[name]) for name in (THREADS, FILES))
    bars = [
        ("resident memory of a worker, growth", rss, GROWTH, rss <= GROWTH),
        # The rest is the libraries' files, which hide a part of the growth.
        ("of it without mapped files, growth", own, GROWTH, own <= GROWTH),
        (
            f"used_memory of a Redis, growth (or {SMALL_MIB:g} MiB)",
            used["share"],
            GROWTH,
            all(one["share"] <= GROWTH or one["growth"] <= SMALL_MIB for one in found[USED]),
        ),
        ("threads, change", threads, 0, threads == 0),
        ("descriptors, change", files, 0, files == 0),
    ]
    return finish("memory", bars, {"steps": words.steps, "readings": len(readings), "figures": found})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
