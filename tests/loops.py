"""A worker's loop with stand-ins for the mode, the networks, the data and the clock: one thread, no process.

Every figure is chosen so that a person can add it up: step k takes k / 2 seconds, of which k / 4 are waiting and
k / 8 the exchange; it draws 8 images, sends 100 bytes, and its losses are k and 10 k. A sync point sends 7 bytes more.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import config
from degan.artifacts import checkpoints
from degan.artifacts.checkpoints import Checkpoint, Checkpoints
from degan.data.base import Batch
from degan.metrics.evaluate import Metric
from degan.worker import loop
from degan.worker.signals import Signals
from tests.learner_views import unlabelled

PERIODS = {"steps": 10, "log_every": 3, "evaluate_every": 4, "snapshot_every": 5, "checkpoint_every": 6}


@functools.cache
def settings_of(*words: str) -> config.Experiment:
    return config.load("smoke", words)


class Clock:
    """A clock that only the stand-ins advance."""

    now_s = 5000.0

    def monotonic(self) -> float:
        return self.now_s


class StandInShard:
    def __init__(self):
        self.drawn = 0

    def next_batch(self) -> Batch:
        self.drawn += 8
        return unlabelled(torch.zeros(8, 1))


class StandInPair:
    """A pair whose images have one shade, which identifies the moment of a picture."""

    def __init__(self):
        self.shade = 0
        # The number of samples of each draw, and whether it was for a picture.
        self.asked: list[tuple[str, int]] = []
        self.is_shown = True

    def show(self, count: int) -> torch.Tensor | None:
        self.asked.append(("show", count))
        return self._samples(count) if self.is_shown else None

    def measure(self, evaluate):
        def sample(count: int) -> torch.Tensor:
            self.asked.append(("measure", count))
            return self._samples(count)

        return evaluate(sample)

    def _samples(self, count: int) -> torch.Tensor:
        return torch.full((count, 1, 2, 2), self.shade / 127.5 - 1)


class StandInMode:
    """A stand-in for `degan.modes.Mode`; `calls` has the calls of the loop, in order."""

    is_shared = False

    def __init__(self, clock: Clock, pair: StandInPair):
        self._clock, self._learner = clock, pair
        self.calls: list[str] = []
        self.begun: tuple = ()
        # The waiting of the begin belongs to no step.
        self.wait_s, self.exchange_s, self.sent_bytes = 40.0, 20.0, 0
        self.begins_at: int | None = None
        self.stop_at: int | None = None
        self.stops_after_asking = 2
        self.first, self.has_state = True, True
        self.silent_steps: tuple[int, ...] = ()

    def begin(self, checkpoints, saved, load) -> int:
        self.begun = (list(checkpoints), saved)
        newest = checkpoints[-1] if checkpoints else 0
        step = newest if self.begins_at is None else self.begins_at
        if step in checkpoints:
            self.calls.append(f"loaded {load(step)}")
        self._learner.shade = 10 * step
        return step

    def step(self, step, next_batch, is_sync_point) -> dict[str, float]:
        self.calls.append(f"step {step}{' sync' if is_sync_point else ''}")
        assert next_batch().samples.shape == (8, 1)
        self._clock.now_s += step / 2
        self.wait_s, self.exchange_s = self.wait_s + step / 4, self.exchange_s + step / 8
        self.sent_bytes += 100
        self._learner.shade = 10 * step
        return {} if step in self.silent_steps else {"d_loss": float(step), "g_loss": 10.0 * step}

    def synchronise(self, step: int) -> bool:
        self.calls.append(f"synchronise {step}")
        self._clock.now_s += 100
        self.sent_bytes += 7
        self._learner.shade += 1
        return self.has_state

    def finish(self) -> None:
        self.calls.append("finish")
        self._learner.shade += 2

    def leave(self, is_together: bool) -> None:
        self.calls.append(f"leave {'together' if is_together else 'alone'}")

    def ask_to_stop(self, step: int) -> None:
        self.calls.append(f"ask {step}")
        self.stop_at = step + self.stops_after_asking

    def is_stopping(self, step: int) -> bool:
        return self.stop_at is not None and step >= self.stop_at

    def is_first(self) -> bool:
        return self.first

    def state(self):
        self.calls.append("state")
        return {}, {"sent": self.sent_bytes}

    def stats(self) -> dict:
        seconds = {"wait_s": self.wait_s, "exchange_s": self.exchange_s}
        return {"sent_bytes": self.sent_bytes, "staleness_max": 3, **seconds}


class StandInSetup:
    """A stand-in for `degan.worker.setup.Setup`."""

    def __init__(self, settings: config.Experiment, worker: int, clock: Clock):
        self.settings, self.worker, self._clock = settings, worker, clock
        self.shard, self.learner, self.evaluator = StandInShard(), StandInPair(), self
        self.classes, self.counts = ("cat", "dog"), [[3, 4], [5, 6]]
        self.fids: dict[int, float] = {}

    def sample_reals(self, count: int) -> torch.Tensor:
        return torch.ones(count, 1, 2, 2)

    def evaluate(self, sample: Callable[[int], torch.Tensor]) -> list[Metric]:
        """The evaluator's metrics: a distance, which depends on the shade of the samples, its floor, and a coverage."""
        self._clock.now_s += 1000
        shade = float(torch.round((sample(5)[0, 0, 0, 0] + 1) * 127.5))
        return [
            Metric("fid64_classifier", self.fids.get(int(shade), 200 - shade), 1.23456),
            Metric("fid64_classifier_floor", 3.25, 0.0),
            Metric("coverage64_classes", 9.0, 0.5),
        ]

    def checkpoint(self, step: int, mode_state: tuple, **values) -> Checkpoint:
        self._clock.now_s += 300
        values = {"drawn": self.shard.drawn, "shade": self.learner.shade, "mode": mode_state[1], **values}
        tensor = {"w": torch.zeros(1)}
        return Checkpoint(step, tensor, tensor, values, config.agreed(self.settings))

    def restore(self, checkpoint: Checkpoint) -> tuple[dict, dict]:
        self.shard.drawn = checkpoint.values["drawn"]
        return {}, checkpoint.values["mode"]


class Live:
    """One incarnation of a worker in a run folder; every attribute may be changed before `run`."""

    def __init__(self, folder: Path, monkeypatch, worker: int = 0, resume_from: tuple[int, ...] = (), **periods):
        self.folder, self.worker, self.logged = folder, worker, []
        self.settings = settings_of(*(f"run.{key}={value}" for key, value in {**PERIODS, **periods}.items()))
        self.clock = Clock()
        monkeypatch.setattr(loop, "time", self.clock)
        # Pictures are small, and nothing waits for the disk.
        monkeypatch.setattr(loop, "GRID_COLUMNS", 2)
        monkeypatch.setattr(checkpoints, "_sync", lambda path: None)
        self.setup = StandInSetup(self.settings, worker, self.clock)
        self.mode = StandInMode(self.clock, self.setup.learner)
        self.signals = Signals()
        self.home = folder / f"w{worker}"
        self.home.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            self.home / "checkpoints", self.settings.run.keep_checkpoints, self.logged.append
        )
        self.resume_from = list(resume_from)
        self.at: dict[int, Callable[[], None]] = {}
        self.begun_steps: list[int] = []

    def run(self) -> int:
        def before_step(step: int) -> None:
            self.begun_steps.append(step)
            self.clock.now_s += 10
            self.at.get(step, lambda: None)()

        words = (self.setup, self.mode, self.folder, self.checkpoints, self.resume_from, self.signals)
        return loop.Loop(*words, self.logged.append, before_step).run()

    @property
    def stats(self) -> list[dict]:
        return lines_of(self.home / "stats.jsonl")

    @property
    def metrics(self) -> list[dict]:
        return lines_of(self.folder / "metrics.jsonl")

    def shades(self, where: Path) -> dict[str, int]:
        """The shade of each picture in a folder."""
        return {path.name: shade_of(path) for path in sorted(where.glob("*.png"))}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def shade_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.getpixel((0, 0))[0]
