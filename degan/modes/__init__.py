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
# Loads the checkpoint of a step into the worker's own objects; returns what the mode had put into it.
Load = Callable[[int], tuple[Arrays, dict[str, Any]]]


class Mode(Protocol):
    """How one worker trains, step by step. Called by the worker's loop, from the main thread only.

    Attributes:
        is_shared: at a cut all workers hold the same model, so only the first measures and draws it.
    """

    is_shared: bool

    def begin(self, checkpoints: list[int], saved: dict[str, Any], load: Load) -> int:
        """Find the peers and load what is agreed on; returns the step after which training goes on.

        Args:
            checkpoints: steps that could be resumed from, newest last; empty for a fresh start.
            saved: the values that the mode put into the newest of them (from `state`).
            load: see `Load`.
        """

    def step(self, step: int, next_batch: Callable[[], Batch], is_sync_point: bool) -> dict[str, float]:
        """Train one step on as many batches as it takes; returns the losses, or nothing if this worker had no part.

        Args:
            next_batch: gives the next samples of this worker's shard, with their labels.
            is_cut: something is saved or shown after this step.
        """

    def synchronise(self, step: int) -> bool:
        """After a cut: make what the workers show alike; False if this worker has nothing to show of this step."""

    def finish(self) -> None:
        """After the last step: exchange and apply what is left."""

    def leave(self, is_together: bool) -> None:
        """Stop before the end, alone or all together."""

    def ask_to_stop(self, step: int) -> None:
        """Called after `step`: all workers stop together as soon as they can agree on a step."""

    def is_stopping(self, step: int) -> bool:
        """Whether `step` is the one to stop after."""

    def is_first(self) -> bool:
        """Whether this worker writes what a run has once: it is the lowest live one."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """What a checkpoint must hold of the mode."""

    def stats(self) -> dict[str, Any]:
        """Keys for stats.jsonl."""

    def close(self) -> None:
        """Give back whatever is held; called however the run ends."""


class Context(NamedTuple):
    """What a mode is built from.

    Attributes:
        settings, worker, learner: what is trained, and who we are.
        facts: what must be the same for all workers and is no setting (the classes of the data).
        peer_info: what others may have to know of this worker: `samples`, and their `histogram` over the classes.
        log: called with one line for a person.
        may_take_over: replace a worker of our number that is still alive.
    """

    settings: Experiment
    worker: int
    learner: Trainable | Adversarial
    facts: dict[str, Any]
    peer_info: dict[str, Any]
    log: Callable[[str], None]
    may_take_over: bool = False


def module_of(settings: Experiment) -> ModuleType:
    """The module of the mode that the settings name; a mode's module is loaded where it is used."""
    return importlib.import_module(f"degan.modes.{settings.mode.__struct_config__.tag}")


def build(context: Context) -> Mode:
    """The mode that the settings name.

    Raises:
        config.UsageError, peers.errors.SetupError: the mode's Redis cannot be used.
    """
    return module_of(context.settings).build(context)


def needs(settings: Experiment, learner: Trainable | Adversarial) -> Needs:
    """What a worker of the mode that the settings name asks of its node and of the wire."""
    return module_of(settings).needs(settings, learner)
