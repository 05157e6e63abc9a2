"""The soak: a random fault a minute for an hour; the run must end as well, and as small, as an undisturbed one.

    python -m tests.chaos.soak [--minutes 60] [--workers 4] [--seed 7] [--every S] [--out DIR]

The fault injector kills, freezes or sends away a worker, or restarts, kills or freezes a Redis (which has an
append-only file), drawn by the seed; a worker that has ended is started again with --resume latest. Every second the
soak reads the memory, threads and descriptors of each worker and the memory of each Redis. In the end it compares the
FID with that of an undisturbed run of as many steps. The soak writes soak.json and soak.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis

from peers.chaos.faults import Fault, Faults
from tests.bench.memory import FILES, MIB, OWN, RSS, THREADS, USED, panels, read_worker
from tests.bench.table import finish, show
from tests.chaos.fleet import ROOT, Fleet

ACTIONS = "kill+stop+term+restart+redis_kill+redis_stop"
# The most growth: the last third of the readings over the middle third.
GROWTH = 1.1
# A growth by less than these amounts is one buffer more or less.
SMALL = {RSS: 0.0, OWN: 0.0, USED: 1.0, THREADS: 1.0, FILES: 2.0}
FID = 1.3
AWAY_S = 3.0
LEASE_S = 5.0
START_S = 120.0
# At this pace an hour has a number of steps that the undisturbed run does in minutes.
PACE = 15


def script(seed: int, workers: int, minutes: int) -> str:
    """The script of the faults, with minutes in the place of steps."""
    text = f"random:seed={seed}:every=1:actions={ACTIONS}:until={minutes}"
    # The injector is outside of the workers, so the faults have no hooks.
    plain = (Fault(f.is_redis, f.number, f.step, "", f.action, f.arguments) for f in Faults.parse(text, workers).faults)
    return str(Faults(tuple(plain)))


class Soak:
    """A fleet with faults, restarts and readings.

    Args:
        fleet: a fleet whose workers all train.
        faults: the faults; the step of each is its time in periods.
        every_s: the seconds of a period.
    """

    def __init__(self, fleet: Fleet, faults: Faults, every_s: float):
        self._fleet, self._every_s = fleet, every_s
        self._waiting = list(faults.faults)
        self._thaw: list[tuple[float, int]] = []
        self._ended: dict[int, float] = {}
        self.began = time.monotonic()
        self.log: list[str] = []
        self.resumed = 0
        # Lists of (minute, value) by figure and worker.
        self.readings: dict[str, list[list[tuple[float, float]]]] = {
            name: [[] for _ in range(fleet.workers)] for name in (RSS, OWN, THREADS, FILES, USED)
        }

    @property
    def minute(self) -> float:
        return (time.monotonic() - self.began) / 60

    def run(self, minutes: float) -> None:
        """Inject, restart and read until the time is over and every worker is back."""
        next_reading = 0.0
        while self.minute < minutes:
            now = time.monotonic()
            while self._waiting and now - self.began >= (self._waiting[0].step - 0.5) * self._every_s:
                self._inject(self._waiting.pop(0))
            self._restart(now)
            if now >= next_reading:
                next_reading = now + 1.0
                self._read()
            time.sleep(0.05)
        while self._thaw or self._ended:
            self._restart(time.monotonic())
            time.sleep(0.05)

    def _inject(self, fault: Fault) -> None:
        self.log.append(f"{self.minute:.1f} min: {fault}")
        if fault.is_redis:
            self._fleet.inject(str(fault))
            return
        if not self._fleet.is_alive(fault.number):
            return
        names = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
        self._fleet.incarnation(fault.number).signal(names[fault.action])
        if fault.action == "stop":
            self._thaw.append((time.monotonic() + fault.seconds, fault.number))

    def _restart(self, now: float) -> None:
        for item in [item for item in self._thaw if item[0] <= now]:
            self._thaw.remove(item)
            if self._fleet.is_alive(item[1]):
                self._fleet.incarnation(item[1]).signal(signal.SIGCONT)
        for number in range(self._fleet.workers):
            if self._fleet.is_alive(number):
                continue
            if number not in self._ended:
                self._ended[number] = now
                words = (self._fleet.incarnation(number).text.strip().splitlines() or [""])[-1]
                self.log.append(f"{self.minute:.1f} min: worker {number} ended: {words[-160:]}")
            if now - self._ended[number] >= AWAY_S:
                del self._ended[number]
                self.resumed += 1
                self._fleet.resume(number)

    def _read(self) -> None:
        for number in range(self._fleet.workers):
            # A worker that is ending, starting or frozen has no figures.
            with contextlib.suppress(OSError):
                for name, value in read_worker(self._fleet.incarnation(number).pid).items():
                    self.readings[name][number].append((self.minute, value))
            with contextlib.suppress(redis.RedisError):
                if not any(number == frozen for frozen in self._frozen_servers()):
                    self.readings[USED][number].append((self.minute, self._fleet.nodes[number].used_bytes() / MIB))

    def _frozen_servers(self) -> list[int]:
        return [number for number, node in enumerate(self._fleet.nodes) if node.is_frozen or not node.is_up]


def flatness(values: list[tuple[float, float]]) -> tuple[float, float]:
    """The medians of the middle and of the last third."""
    third = len(values) // 3
    plain = [value for _, value in values]
    return statistics.median(plain[third : 2 * third]), statistics.median(plain[2 * third :])


def evaluate(fleet: Fleet) -> dict[int, float]:
    """The FID of every worker's newest checkpoint."""
    done = subprocess.run(
        [sys.executable, "-m", "degan.evaluate", str(fleet.out), "--samples", "1000", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"python -m degan.evaluate: {done.stderr[-500:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        line["worker"]: line["value"]
        for line in lines
        if line["metric"].startswith("fid") and not line["metric"].endswith("floor")
    }


def undisturbed(folder: Path, workers: int, steps: int) -> dict[int, float]:
    """The FID of an undisturbed run of `steps` steps at full speed."""
    with Fleet(folder, workers, settings=(f"run.steps={steps}", "run.log_every=10"), pace=1, by_command=True) as fleet:
        incarnations = [fleet.start(number) for number in range(workers)]
        codes = [incarnation.end(4 * 3600) for incarnation in incarnations]
        if any(codes):
            raise SystemExit(f"the undisturbed run ended with {codes}: {fleet.text(0)[-500:]}")
        return evaluate(fleet)


def picture(soak: Soak) -> str:
    """The readings as one SVG image, a panel a figure."""
    return panels({name: soak.readings[name] for name in (OWN, USED, THREADS, FILES)}, "minutes")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__.splitlines()[0])
    found.add_argument("--minutes", type=float, default=60.0)
    found.add_argument("--workers", type=int, default=4)
    found.add_argument("--seed", type=int, default=7)
    found.add_argument("--every", type=float, default=60.0, metavar="S", help="seconds between two faults")
    found.add_argument("--out", type=Path, default=Path("runs/soak"), metavar="DIR")
    return found


def main(argv: list[str]) -> int:
    words = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    words.out.mkdir(parents=True, exist_ok=True)
    periods = int(words.minutes * 60 / words.every)
    faults = Faults.parse(script(words.seed, words.workers, periods), words.workers)
    with tempfile.TemporaryDirectory(prefix="degan-soak-", ignore_cleanup_errors=True) as folder:
        more = {"settings": ("run.checkpoint_every=100",), "by_command": True, "pace": PACE, "lease_s": LEASE_S}
        with Fleet(Path(folder) / "soak", words.workers, is_durable=True, **more) as fleet:
            for number in range(words.workers):
                fleet.start(number)
            for number in range(words.workers):
                fleet.until_step(number, 1, START_S)
            soak = Soak(fleet, faults, words.every)
            soak.run(words.minutes)
            for number in range(words.workers):
                fleet.wait(lambda who=number: fleet.is_alive(who), f"worker {number} to live", 10)
            fleet.advance(list(range(words.workers)), 20, START_S)
            codes = fleet.stop(120)
            steps = [(fleet.checkpoints(number) or [0])[-1] for number in range(words.workers)]
            fids = evaluate(fleet)
        print(f"  {steps} steps, exit codes {codes}; now as many without a fault", flush=True)
        clean = undisturbed(Path(folder) / "clean", words.workers, max(steps))
    (words.out / "soak.svg").write_text(picture(soak), encoding="utf-8")
    print("\n".join(f"  {line}" for line in soak.log))
    return _finish(words, soak, codes, steps, fids, clean)


def _finish(words, soak: Soak, codes: list[int], steps: list[int], fids: dict[int, float], clean: dict) -> int:
    rows, bars = [], [("workers that ended with an error", sum(map(bool, codes)), 0, not any(codes))]
    for name, each in soak.readings.items():
        worst = 0.0
        is_flat = True
        for number, values in enumerate(each):
            middle, last = flatness(values)
            rows.append({"": f"{number} {name}", "middle third": middle, "last third": last, "ratio": last / middle})
            worst = max(worst, last / middle)
            is_flat &= last <= GROWTH * middle or last - middle <= SMALL[name]
        bars.append((f"{name}, last third over middle third", worst, GROWTH, is_flat))
    show(f"soak of {words.minutes:g} minutes, {len(soak.log)} events, {soak.resumed} restarts", rows)
    ratio = statistics.mean(fids.values()) / statistics.mean(clean.values())
    bars.append(("FID at the end over that of an undisturbed run", ratio, FID, ratio <= FID))
    found = {"seed": words.seed, "minutes": words.minutes, "steps": steps, "restarts": soak.resumed, "log": soak.log}
    found |= {"fid": fids, "clean_fid": clean, "figures": rows}
    (words.out / "soak.json").write_text(json.dumps(found | {"bars": [list(bar) for bar in bars]}, indent=1))
    return finish("soak", bars, {"steps": steps, "restarts": soak.resumed})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
