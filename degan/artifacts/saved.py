"""A run folder after training: the newest checkpoint's generator, or classifier, ready for use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import config
from config import Experiment, UsageError
from config.reader import FILE
from degan import models
from degan.artifacts.checkpoints import Checkpoints, read
from degan.models import classifiers

Metrics = TypeVar("Metrics")


@dataclass
class Saved:
    """One worker's newest checkpoint.

    Attributes:
        settings: the run's.
        worker, step: the worker of the checkpoint, and the last step before it.
        network: the generator's moving average, or the classifier; in evaluation mode, on the CPU.
        sample_shape: of one sample, (C, H, W) or (2,).
    """

    settings: Experiment
    worker: int
    step: int
    network: torch.nn.Module
    sample_shape: tuple[int, ...]

    @classmethod
    def load(cls, run: Path, worker: int | None, best: bool = False) -> Saved:
        """Read the newest whole checkpoint of a worker (of the lowest that has one, if None).

        Args:
            best: read the checkpoint with the best samples instead of the newest one.

        Raises:
            UsageError: no run folder, or no checkpoint in it.
        """
        if not (run / FILE).is_file():
            raise UsageError(f"{run} is no run folder (it has no {FILE})")
        settings = config.load(run / FILE)
        workers = range(settings.workers) if worker is None else (worker,)
        for number in workers:
            checkpoints = Checkpoints(run / f"w{number}" / "checkpoints", keep=1)
            if best:
                step = checkpoints.best_step()
                if step is None:
                    continue
                return cls._build(settings, number, read(checkpoints.folder / f"{step:06d}"))
            for step in reversed(checkpoints.steps()):
                try:
                    return cls._build(settings, number, read(checkpoints.folder / f"{step:06d}"))
                except UsageError:
                    if step == checkpoints.steps()[0]:
                        raise
        whose = "any worker" if worker is None else f"worker {worker}"
        if best:
            raise UsageError(f"{run} has no checkpoint of {whose} that was measured; see run.evaluate_every")
        raise UsageError(f"{run} has no checkpoint of {whose} yet; is the run still starting?")

    @classmethod
    def _build(cls, settings: Experiment, worker: int, checkpoint) -> Saved:
        shape = tuple(int(n) for n in checkpoint.values["sample_shape"])
        if settings.classifier is None:
            (network, _), name = models.build(settings.model, shape), "ema."
        else:
            classes = int(checkpoint.values["classes"])
            network, name = classifiers.build(settings.classifier, shape, classes), "classifier."
        own = {n.removeprefix(name): t for n, t in checkpoint.model.items() if n.startswith(name)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise UsageError(f"the checkpoint does not fit the settings: {' '.join(str(error).split())}") from None
        return cls(settings, worker, checkpoint.step, network.eval(), shape)

    @torch.no_grad()
    def sample(self, count: int, random: torch.Generator) -> torch.Tensor:
        """New samples, float32 (count, *sample_shape) in [-1, 1].

        Raises:
            UsageError: the network is a classifier.
        """
        if self.settings.model is None:
            raise UsageError(f"worker {self.worker} has trained a classifier, which generates nothing")
        latents = torch.randn(count, self.settings.model.latent, generator=random)
        return torch.cat([self.network(batch) for batch in latents.split(256)]) if count else latents

    @torch.no_grad()
    def measure(self, evaluate: Callable[[Callable[[Any], torch.Tensor]], Metrics], random: torch.Generator) -> Metrics:
        """The evaluator's metrics of the network; as `degan.learners.protocols.Shown.measure`.

        Args:
            random: draws a generator's latents.
        """
        if self.settings.model is None:
            return evaluate(self.network)
        return evaluate(lambda count: self.sample(count, random))
