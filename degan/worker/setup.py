"""The setup of one worker, from the settings: data, shard, networks, evaluator."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import config
from config import UsageError
from config.settings.data import Own
from config.settings.experiment import Experiment
from degan.artifacts import learner_state
from degan.artifacts.checkpoints import Checkpoint
from degan.data.shard import Shard
from degan.data.sources import load, prepare
from degan.data.splits import class_counts, split
from degan.learners import build
from degan.learners.protocols import Adversarial, Shown, Trainable
from degan.metrics.accuracy import AccuracyEvaluator, evaluator_of
from degan.metrics.evaluate import Evaluator
from degan.seeds import spawn_seed


def pick_device(name: str) -> torch.device:
    """The device of a setting; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        UsageError: the GPU does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            raise UsageError(f"device: {name} is not there ({count} GPUs found); use device: auto or cpu")
    return torch.device(name)


@dataclass
class Setup:
    """The setup of one worker.

    Attributes:
        counts: for each worker the number of its samples of each class; empty where this is unknown here.
        facts: values other than settings on which all workers must agree.
        sample_reals: k training samples for reals.png, float32 (k, *sample_shape); equal where the data is equal.
    """

    settings: Experiment
    worker: int
    shard: Shard
    learner: Trainable | Adversarial | Shown
    evaluator: Evaluator | AccuracyEvaluator
    classes: tuple[str, ...]
    counts: list[list[int]]
    facts: dict[str, Any]
    sample_reals: Callable[[int], torch.Tensor]

    @classmethod
    def build(cls, settings: Experiment, worker: int, inception: Path | None = None) -> Setup:
        """Load the data, select the shard, build the networks.

        Raises:
            UsageError: the data is missing, the shard is too small, or the device does not exist.
        """
        device = pick_device(settings.device)
        prepare(settings.data, settings.image_size)
        source = load(settings.data, settings.image_size, "train")
        parts = split(settings.data.split, source.labels, settings.workers, settings.seed)
        shard = Shard(source, parts[worker], settings.seed, worker, settings.data.batch_size)
        learner = build.build(settings, source.sample_shape, len(source.classes), worker, device)
        # Dropout draws from torch's global generator.
        torch.manual_seed(spawn_seed(settings.seed, "global", worker))

        counts = class_counts(source.labels, parts, len(source.classes)).tolist()
        # A digest where there are many names: the values that the workers compare must stay small.
        names = list(source.classes)
        many = hashlib.sha256("\n".join(names).encode()).hexdigest()
        facts: dict[str, Any] = {"data (classes)": names if len(names) <= 20 else f"{len(names)} of sha256 {many}"}
        if isinstance(settings.data.split, Own):
            # Only the other hosts know their own shards.
            counts = [row if number == worker else [] for number, row in enumerate(counts)]
        else:
            facts["data (samples)"] = len(source)

        def sample_reals(count: int) -> torch.Tensor:
            chosen = np.random.default_rng(spawn_seed(settings.seed, "reals")).choice(
                len(source), min(count, len(source)), replace=False
            )
            return source.take(chosen)

        return cls(
            settings=settings,
            worker=worker,
            shard=shard,
            learner=learner,
            evaluator=evaluator_of(settings, inception, device, source),
            classes=tuple(source.classes),
            counts=counts,
            facts=facts,
            sample_reals=sample_reals,
        )

    @property
    def peer_info(self) -> dict[str, Any]:
        """The facts about this worker's shard that its peers need."""
        return {"samples": len(self.shard), "histogram": self.counts[self.worker]}

    def checkpoint(self, step: int, mode_state: tuple[dict[str, np.ndarray], dict[str, Any]], **values) -> Checkpoint:
        """A checkpoint with everything needed to continue from this step."""
        arrays, mode_values = mode_state
        optimiser = {
            **learner_state.optimiser_tensors(self.learner),
            **{f"mode.{name}": torch.from_numpy(array) for name, array in arrays.items()},
        }
        more = {
            "counters": learner_state.counters(self.learner),
            "data": self.shard.state(),
            "mode": mode_values,
            "sample_shape": list(self.learner.sample_shape),
            **({} if self.settings.classifier is None else {"classes": len(self.classes)}),
            **values,
        }
        return Checkpoint(
            step, learner_state.model_tensors(self.learner), optimiser, more, config.agreed(self.settings)
        )

    def restore(self, checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The inverse of `checkpoint`; returns the mode's state.

        Raises:
            UsageError: the checkpoint does not fit the networks.
        """
        try:
            counters = checkpoint.values["counters"]
            learner_state.load(self.learner, checkpoint.model, checkpoint.optimiser, counters)
            self.shard.load_state(checkpoint.values["data"])
        except (ValueError, KeyError) as error:
            raise UsageError(f"the checkpoint of step {checkpoint.step} does not fit: {error}") from None
        arrays = {n.removeprefix("mode."): t.numpy() for n, t in checkpoint.optimiser.items() if n.startswith("mode.")}
        return arrays, checkpoint.values["mode"]


def write(path: Path, text: str) -> None:
    """Write a file whole that all workers of a run write with the same content. Workers may be threads."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def shards_json(setup: Setup) -> str:
    """The class counts of all workers' shards, for the report."""
    return json.dumps({"classes": list(setup.classes), "counts": setup.counts})
