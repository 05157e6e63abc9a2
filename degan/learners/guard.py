"""The non-finite guard: a step is skipped where its gradient is not finite, or too large for the optimiser to square.

So a value that is not finite is never applied or sent. A usable gradient cannot make weights that are not finite:
Adam's step is bounded by its rate, and the step of plain descent by 1e19 times the rate. A forward pass updates
BatchNorm's running statistics before the gradient is known; with a skipped step the guard restores the statistics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from config.errors import UsageError
from degan.data.base import Batch
from degan.learners.chain import Context
from degan.learners.protocols import Adversarial, Section, Trainable
from peers.vectors.reduce import is_finite, norm

# The square of a smaller number is a finite float32.
LARGEST = 1e19
MOST_IN_A_ROW = 100
LOG_EVERY = 100


class NonFiniteGuard:
    """Checks every update of one worker before its use; a piece of `degan.learners.chain`.

    Args:
        learner: its running statistics are read, and restored after an unusable update.
        log: called with one line for a person.

    Attributes:
        counts: the number of skipped updates by reason, for `dropped` in stats.jsonl.
    """

    def __init__(self, learner: Trainable | Adversarial, log: Callable[[str], None]):
        self._learner, self._log = learner, log
        self.counts: Counter[str] = Counter()
        self._in_a_row = 0

    def __call__(self, update: np.ndarray, context: Context) -> np.ndarray:
        """The update; zeros where the update is unusable, and then the statistics are those of the context.

        Raises:
            UsageError: as `gradients`.
        """
        return update if self.passes(update, context) else np.zeros_like(update)

    def gradients(self, section: Section, batch: Batch | None) -> tuple[np.ndarray, dict[str, float], bool]:
        """As `Trainable.gradients`, and whether the gradient is usable; if not, zeros, and the learner is as before.

        Raises:
            UsageError: the gradients of more than a hundred steps in a row are unusable: the training has diverged.
        """
        context = self.context()
        gradient, losses = self._learner.gradients(section, batch)
        is_usable = self.passes(gradient, context)
        if not is_usable:
            gradient[:] = 0
        return gradient, losses, is_usable

    def context(self) -> Context:
        """The context of the next update: the current running statistics."""
        return Context(self._learner.statistics())

    def passes(self, update: np.ndarray, context: Context) -> bool:
        """Whether an update is usable; if not, the statistics become those of the context. Raises as `gradients`."""
        if self.allows(update, self.is_sound()):
            return True
        self._learner.load_statistics(context.statistics)
        return False

    def allows(self, gradient: np.ndarray, is_sound: bool = True) -> bool:
        """Whether this worker's gradient, float32 of any shape, is usable; otherwise counted and logged.

        Args:
            is_sound: the result of `is_sound` after the pass that made the gradient.

        Raises:
            UsageError: as `gradients`.
        """
        if is_sound and is_usable(gradient):
            self._in_a_row = 0
            return True
        self.counts["own_not_finite"] += 1
        self._in_a_row += 1
        skipped = self.counts["own_not_finite"]
        if skipped == 1 or skipped % LOG_EVERY == 0:
            self._log(f"the gradient of this worker is not finite; the step is skipped ({skipped} so far)")
        if self._in_a_row > MOST_IN_A_ROW:
            raise UsageError(
                f"the training has diverged: the gradients of {self._in_a_row} steps in a row were not finite; "
                "look at the data, lower the learning rates (optimiser), and go on from a checkpoint before that"
            )
        return False

    def allows_together(self, gradient: np.ndarray) -> bool:
        """Whether the result of an exchange may be applied; otherwise counted."""
        if is_usable(gradient):
            return True
        self.counts["not_finite"] += 1
        return False

    def is_sound(self) -> bool:
        """Whether the running statistics are finite: activations may overflow with a finite gradient."""
        return is_finite(self._learner.statistics())


def is_usable(gradient: np.ndarray) -> bool:
    """Whether all values are finite and small enough to be squared."""
    magnitude = norm(gradient.reshape(-1))
    return magnitude < LARGEST or math.isfinite(magnitude) and float(np.abs(gradient).max()) < LARGEST
