"""The loop of one worker: train a step, write its statistics, save, and stop when asked.

At a sync point (an evaluation, a snapshot, a checkpoint, the end) the mode first synchronises the workers' running
statistics, so that pictures, metrics and checkpoints are of one moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import config
from config import UsageError
from config.reader import FILE
from degan.artifacts.checkpoints import Checkpoints, check_same_experiment
from degan.artifacts.pictures import grid, save_png
from degan.metrics.evaluate import score
from degan.modes import Mode
from degan.runs.journal import Journal
from degan.worker.setup import Setup, shards_json, write
from degan.worker.signals import Signals

GRID_COLUMNS = 8


class Loop:
    """Runs one worker from its start, or a checkpoint, to the last step.

    Args:
        setup: the worker's data, learner and evaluator.
        mode: the training mode.
        run: the run folder.
        checkpoints: the worker's checkpoints.
        resume_from: steps of usable checkpoints; empty for a fresh start.
        signals: the signals that the process received.
        log: called with one line for a person.
        before_step: called with the number of each step before it begins.
    """

    def __init__(
        self,
        setup: Setup,
        mode: Mode,
        run: Path,
        checkpoints: Checkpoints,
        resume_from: list[int],
        signals: Signals,
        log: Callable[[str], None],
        before_step: Callable[[int], None] = lambda step: None,
    ):
        self._setup, self._mode, self._run_folder = setup, mode, run
        self._before_step = before_step
        self._settings = setup.settings
        self._checkpoints, self._resume_from = checkpoints, resume_from
        self._signals, self._log = signals, log
        self._journal = Journal(run, setup.worker)
        self._trained_s = 0.0
        # The step and the score of the newest evaluation; the lowest score is the best.
        self._score = (-1, 0.0)
        self._losses: list[dict[str, float]] = []
        self._log_mark: tuple[int, float, dict[str, float]] = (0, 0.0, {})

    def run(self) -> int:
        """Train; returns the last step.

        Raises:
            UsageError, peers.errors.PeersError: raised by the mode or the data.
        """
        step = self._begin()
        steps = self._settings.run.steps
        if step == 0:
            self._show(0)
        self._log_mark = (step, self._trained_s, self._spent(self._mode.stats()))
        has_asked = False
        if step < steps and self._mode.is_stopping(step):
            # The run that this worker joined stops at exactly this step.
            return self._stop(step, is_together=True)
        while step < steps:
            if self._signals.is_together and not has_asked:
                self._mode.ask_to_stop(step)
                has_asked = True
            step += 1
            self._before_step(step)
            began = time.monotonic()
            is_sync_point = step == steps or any(step % every == 0 for every in self._periods())
            losses = self._mode.step(step, self._setup.shard.next_batch, is_sync_point)
            if losses:
                self._losses.append(losses)
            # The time of evaluations and saves is no training time.
            self._trained_s += time.monotonic() - began
            is_stopping = self._mode.is_stopping(step)
            has_state = not (is_sync_point or is_stopping) or self._mode.synchronise(step)
            # After the synchronisation, so that the bytes of a sync point are counted.
            if step % self._settings.run.log_every == 0 or step == steps:
                self._write_stats(step)
            if step == steps:
                break
            if self._signals.is_leaving or is_stopping:
                return self._stop(step, is_together=is_stopping and not self._signals.is_leaving)
            if is_sync_point and has_state:
                self._show(step)
                if self._is_due(step, self._settings.checkpoint_every):
                    self._save(step)
        self._mode.finish()
        self._show(step)
        self._save(step, is_last=True)
        self._log(f"finished after {step} steps and {self._trained_s:.1f} s")
        return step

    def _begin(self) -> int:
        saved: dict[str, Any] = {}
        if self._resume_from:
            saved = self._checkpoints.values(self._resume_from[-1])["mode"]
        step = self._mode.begin(self._resume_from, saved, self._load)
        self._journal.forget_after(step)
        self._checkpoints.forget_after(step)
        self._signals.has_begun = True
        # Not earlier: a refused attempt must not leave its settings to the next one.
        write(self._run_folder / FILE, config.dump(self._settings))
        if self._mode.is_first() or not (self._run_folder / "shards.json").exists():
            write(self._run_folder / "shards.json", shards_json(self._setup))
        if self._mode.is_first() and not (self._run_folder / "reals.png").exists():
            save_png(self._run_folder / "reals.png", grid(self._setup.sample_reals(GRID_COLUMNS**2), GRID_COLUMNS))
        return step

    def _load(self, step: int):
        checkpoint = self._checkpoints.load(step)
        where = str(self._checkpoints.folder / f"{step:06d}")
        check_same_experiment(checkpoint, config.agreed(self._settings), where)
        self._trained_s = float(checkpoint.values.get("trained_s", 0.0))
        return self._setup.restore(checkpoint)

    def _periods(self) -> list[int]:
        run = self._settings.run
        return [n for n in (run.evaluate_every, run.snapshot_every, self._settings.checkpoint_every) if n]

    def _is_due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._settings.run.steps)

    def _stop(self, step: int, is_together: bool) -> int:
        """Leave the run before its end, and save."""
        self._mode.leave(is_together)
        self._save(step, is_last=True)
        how = "together with the others" if is_together else "leaving the others"
        self._log(f"stopped after step {step}, {how}; go on with --resume latest")
        return step

    def _write_stats(self, step: int) -> None:
        stats = self._mode.stats()
        since, since_s, spent_s = self._log_mark
        count = max(1, step - since)
        spent = self._spent(stats)
        names = self._losses[0] if self._losses else ()
        losses = {name: sum(line[name] for line in self._losses) / len(self._losses) for name in names}
        self._journal.stats(
            {
                "step": step,
                "time_s": round(self._trained_s, 3),
                "images": self._setup.shard.drawn,
                **losses,
                "step_s": (self._trained_s - since_s) / count,
                **stats,
                **{name: (spent[name] - spent_s[name]) / count for name in spent},
            }
        )
        self._losses = []
        self._log_mark = (step, self._trained_s, spent)

    @staticmethod
    def _spent(stats: dict[str, Any]) -> dict[str, float]:
        """The mode's seconds since the start: waiting for peers, and the main thread's share of the exchange."""
        return {name: stats[name] for name in ("wait_s", "exchange_s")}

    def _show(self, step: int) -> None:
        """Evaluate and draw, if due at this step."""
        if self._mode.is_shared and not self._mode.is_first():
            return
        run, learner = self._settings.run, self._setup.learner
        if self._is_due(step, run.snapshot_every):
            self._save_picture(step, learner.show(GRID_COLUMNS**2))
        if self._is_due(step, run.evaluate_every):
            images, metrics = self._setup.shard.drawn, learner.measure(self._setup.evaluator.evaluate)
            for metric in metrics:
                self._journal.metric(step, images, metric.name, metric.value, round(metric.seconds, 3))
            found = score(metrics)
            if found is not None:
                self._score = step, found

    def _save_picture(self, step: int, samples: torch.Tensor | None) -> None:
        folders = [self._journal.folder, *([self._run_folder] if self._mode.is_first() else [])]
        for folder in folders if samples is not None else ():
            try:
                save_png(folder / f"fakes-{step:06d}.png", grid(samples, GRID_COLUMNS))
            except OSError as error:
                self._log(f"cannot save a picture in {folder}: {error.strerror or error}; going on without it")

    def _save(self, step: int, is_last: bool = False) -> None:
        """Save a checkpoint. A failed save is logged and training continues; after the last step: raises UsageError."""
        try:
            values: dict[str, Any] = {"trained_s": self._trained_s}
            if self._score[0] == step and math.isfinite(self._score[1]):
                values["score"] = self._score[1]
            self._checkpoints.save(self._setup.checkpoint(step, self._mode.state(), **values))
        except UsageError as error:
            if is_last:
                raise
            self._log(f"{error}; going on without it")
