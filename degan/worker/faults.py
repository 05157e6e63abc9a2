"""`DEGAN_FAULTS` in a worker: the points of a step at which it harms itself, outside of the bus.

Nothing of this is there where the variable is not set. The grammar is in `peers.chaos.faults`,
what concerns publishing in `peers.chaos.faulty_bus`, attacks are where a message is made.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from config import UsageError
from config.settings.experiment import Experiment
from degan.artifacts.checkpoints import MANIFEST, MODEL
from degan.learners.protocols import Trainable
from peers.chaos.faults import BEGIN, LASTING, SAVING, VARIABLE, Fault, Faults, Plan
from peers.chaos.faulty_bus import inject
from peers.errors import SetupError

# What a mode does first with what came: with parameters, a model or a network, feedbacks.
LOADS = ("load_parameters", "load", "generator_gradient")
# Of what a worker sends, and its own discriminator's.
OWN = ("gradients", "feedback", "discriminator_gradient")


def script(environment: Mapping[str, str], settings: Experiment) -> Faults:
    """What `DEGAN_FAULTS` says; nothing where it is not set.

    Raises:
        UsageError: it cannot be read; names the item.
    """
    try:
        return Faults.parse(environment.get(VARIABLE, ""), settings.workers)
    except SetupError as error:
        raise UsageError(str(error)) from None


class FaultInjector:
    """What a worker does to itself when a step begins, before it applies what came, and while it saves.

    Args:
        plan: what is due.
        act: called with a fault of signals.
        now_s: seconds of computing of this thread; waiting does not count.
    """

    def __init__(
        self, plan: Plan, act: Callable[[Fault], None] = inject, now_s: Callable[[], float] = time.thread_time
    ):
        self._plan, self._act, self._now_s = plan, act, now_s
        self._step, self._factor, self._is_poisoned, self._is_torn = 0, 1.0, False, False
        self._computed_s: float | None = None

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._computed_s is not None and self._factor > 1:
            time.sleep((self._factor - 1) * (self._now_s() - self._computed_s))
        self._step, self._is_poisoned = step, False
        for fault in self._plan.due(step, BEGIN):
            if fault.action == "slow":
                self._factor = fault.factor
            elif fault.action == "nan":
                self._is_poisoned = True
            elif fault.action not in LASTING:
                self._act(fault)
        self._computed_s = self._now_s()

    def saving(self, written: Path) -> None:
        """A file of a checkpoint has been written, into a folder that is not yet in its place.

        Raises:
            OSError: no space is left, says the script.
        """
        for fault in self._plan.due(self._step, SAVING):
            if fault.action == "disk_full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(written))
            if fault.action == "torn":
                self._is_torn = True
            else:
                self._act(fault)
        # Once the manifest has the sum of the whole file.
        if self._is_torn and written.name == MANIFEST:
            model = written.with_name(MODEL)
            os.truncate(model, model.stat().st_size // 2)
            self._is_torn = False

    def hold(self, learner: Trainable, settings: Experiment) -> None:
        """Put the hooks around what a mode asks of the learner."""
        is_parameters = getattr(settings.mode, "exchange", "parameters") == "parameters"
        for name in LOADS if is_parameters else ("apply",):
            if hasattr(learner, name):
                self._before(learner, name)
        for name in OWN:
            if hasattr(learner, name):
                self._poison(learner, name)

    def _before(self, learner: Trainable, name: str) -> None:
        below = getattr(learner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            for fault in self._plan.due(self._step, "before_apply"):
                self._act(fault)
            return below(*arguments, **named)

        setattr(learner, name, called)

    def _poison(self, learner: Trainable, name: str) -> None:
        below = getattr(learner, name)

        def called(*arguments: Any) -> tuple[np.ndarray, Any]:
            gradient, losses = below(*arguments)
            if self._is_poisoned:
                gradient[...] = np.nan
            return gradient, losses

        setattr(learner, name, called)
