"""The training modes by name. One file an algorithm; no mode imports another.

To add a mode: its settings in `config/settings/modes`, a line in that folder's `Mode`, and a module of the same name
here with a class that has the methods of `Mode`, and the functions `build(context)` and `needs(settings, learner)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.learners.protocols import Adversarial, Trainable
from degan.modes.needs import Needs

Arrays = dict[str, np.ndarray]
# Loads the checkpoint of a step into the worker's learner and shard; returns the mode's arrays and values in it.
Load = Callable[[int], tuple[Arrays, dict[str, Any]]]


class Mode(Protocol):
    """How one worker trains, step by step. The worker's loop calls the methods, from the main thread only.

    Attributes:
        is_shared: at a sync point all workers hold the same model, so only the first measures and draws the model.
    """

    is_shared: bool

    def begin(self, checkpoints: list[int], saved: dict[str, Any], load: Load) -> int:
        """Find the peers and load the agreed checkpoint; returns the step after which training continues.

        Args:
            checkpoints: the steps of usable checkpoints, newest last; empty for a fresh start.
            saved: the values of the mode (from `state`) in the newest of these checkpoints.
            load: see `Load`.
        """

    def step(self, step: int, next_batch: Callable[[], Batch], is_sync_point: bool) -> dict[str, float]:
        """Train one step on as many batches as the mode needs; returns the losses, empty if this worker had no part.

        Args:
            next_batch: returns the next samples of this worker's shard, with their labels.
            is_sync_point: whether something is saved or shown after this step.
        """

    def synchronise(self, step: int) -> bool:
        """At a sync point: make the workers' models alike; False if this worker has no model of this step to show."""

    def finish(self) -> None:
        """After the last step: exchange and apply the rest."""

    def leave(self, is_together: bool) -> None:
        """Stop before the end, alone or all together."""

    def ask_to_stop(self, step: int) -> None:
        """Ask all workers to stop together as soon as they can agree on a step; called after `step`."""

    def is_stopping(self, step: int) -> bool:
        """Whether the workers stop after `step`."""

    def is_first(self) -> bool:
        """Whether this worker writes the files that a run has only once: it is the lowest live worker."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The mode's arrays and values for a checkpoint."""

    def stats(self) -> dict[str, Any]:
        """The mode's keys and values for stats.jsonl."""

    def close(self) -> None:
        """Release all resources; called at every end of a run, errors included."""


class Context(NamedTuple):
    """The arguments of a mode's `build`.

    Attributes:
        settings, worker, learner: the experiment, this worker's number, and its learner.
        facts: values other than settings on which all workers must agree (the classes of the data).
        peer_info: facts about this worker that its peers need: `samples`, and their `histogram` over the classes.
        log: called with one line for a person.
        may_take_over: whether to replace a live worker with this worker's number.
    """

    settings: Experiment
    worker: int
    learner: Trainable | Adversarial
    facts: dict[str, Any]
    peer_info: dict[str, Any]
    log: Callable[[str], None]
    may_take_over: bool = False


def module_of(settings: Experiment) -> ModuleType:
    """The module of the mode that the settings name; imported only when the mode is used."""
    return importlib.import_module(f"degan.modes.{settings.mode.__struct_config__.tag}")


def build(context: Context) -> Mode:
    """The mode that the settings name.

    Raises:
        config.UsageError, peers.errors.SetupError: the mode's Redis cannot be used.
    """
    return module_of(context.settings).build(context)


def needs(settings: Experiment, learner: Trainable | Adversarial) -> Needs:
    """The memory and bytes that a worker of the mode in the settings needs from its node and the wire."""
    return module_of(settings).needs(settings, learner)
