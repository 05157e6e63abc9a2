"""`DEGAN_FAULTS` in a worker: the points of a step at which the fault injector acts, outside of the bus.

Without the variable nothing is injected. `peers.chaos.faults` has the grammar, `peers.chaos.faulty_bus` the faults of
publishing. An attack acts where the message is made.
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

# The first call of a mode with received data: with parameters, with a model or a network, with feedbacks.
LOADS = ("load_parameters", "load", "generator_gradient")
# The gradients that a worker sends, and those of its own discriminator.
OWN = ("gradients", "feedback", "discriminator_gradient")


def script(environment: Mapping[str, str], settings: Experiment) -> Faults:
    """The faults in `DEGAN_FAULTS`; empty where the variable is not set.

    Raises:
        UsageError: the script cannot be read; names the item.
    """
    try:
        return Faults.parse(environment.get(VARIABLE, ""), settings.workers)
    except SetupError as error:
        raise UsageError(str(error)) from None


class FaultInjector:
    """Injects a worker's faults: at the beginning of a step, before received data is applied, and during a save.

    Args:
        plan: the faults of this worker.
        act: called with a fault that acts on the process.
        now_s: the computing time of this thread in seconds; waiting does not count.
    """

    def __init__(
        self, plan: Plan, act: Callable[[Fault], None] = inject, now_s: Callable[[], float] = time.thread_time
    ):
        self._plan, self._act, self._now_s = plan, act, now_s
        self._step, self._factor, self._is_poisoned, self._is_torn = 0, 1.0, False, False
        self._computed_s: float | None = None

    def begin(self, step: int) -> None:
        """Inject the faults at the beginning of a step."""
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
        """Inject the faults of a save; called after each file of a checkpoint, before the folder is in its place.

        Raises:
            OSError: the script asks for a full disk.
        """
        for fault in self._plan.due(self._step, SAVING):
            if fault.action == "disk_full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(written))
            if fault.action == "torn":
                self._is_torn = True
            else:
                self._act(fault)
        # After the manifest, which has the checksum of the whole file.
        if self._is_torn and written.name == MANIFEST:
            model = written.with_name(MODEL)
            os.truncate(model, model.stat().st_size // 2)
            self._is_torn = False

    def hold(self, learner: Trainable, settings: Experiment) -> None:
        """Wrap the learner's methods with the fault injector."""
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
