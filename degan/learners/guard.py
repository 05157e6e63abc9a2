"""A step is skipped where our own gradient is no number, or so large that the optimiser could not square it.

So nothing that is not finite is ever applied or sent. A usable gradient cannot make weights that are not finite:
Adam's step is bounded by its rate, and that of plain descent by 1e19 times the rate. BatchNorm's running statistics
take in what a forward pass sees before a gradient shows what that was; they are set back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from config.errors import UsageError
from degan.learners.flat import to_numpy
from degan.learners.gan_pair import GanPair, Section
from peers.vectors.reduce import is_finite, norm

# The square of what is smaller is a float32.
LARGEST = 1e19
MOST_IN_A_ROW = 100
LOG_EVERY = 100


class NonFiniteGuard:
    """Looks at every gradient of one worker before it is used.

    Args:
        pair: what is trained.
        say: called with one line for a person.

    Attributes:
        counts: what was skipped, by reason, for `dropped` in stats.jsonl.
    """

    def __init__(self, pair: GanPair, log: Callable[[str], None]):
        self._pair, self._log = pair, log
        self.counts: Counter[str] = Counter()
        self._in_a_row = 0

    def gradients(self, section: Section, real: torch.Tensor | None) -> tuple[np.ndarray, dict[str, float], bool]:
        """As `GanPair.gradients`, and whether it may be used; if not it is zeros, and the pair is as it was before.

        Raises:
            UsageError: for a hundred steps in a row it could not be used: the training has diverged.
        """
        kept = self.keep()
        gradient, losses = self._pair.gradients(section, real)
        is_usable = self.allows(gradient, self.is_sound())
        if not is_usable:
            gradient[:] = 0
            self.set_back(kept)
        return gradient, losses, is_usable

    def allows(self, gradient: np.ndarray, is_sound: bool = True) -> bool:
        """Whether a gradient of ours, float32 of any shape, may be used; counted and said if not.

        Args:
            is_sound: as `is_sound` says after it was taken.

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
        """Whether what came out of an exchange may be applied; counted if not."""
        if is_usable(gradient):
            return True
        self.counts["not_finite"] += 1
        return False

    def is_sound(self) -> bool:
        """Whether the running statistics are finite: activations may overflow where the gradient does not show it."""
        return all(is_finite(to_numpy(flat.buffers)) for flat in (self._pair.generator, self._pair.discriminator))

    def keep(self) -> list[torch.Tensor]:
        """Copies of the running statistics, which a forward pass changes."""
        return [flat.buffers.clone() for flat in (self._pair.generator, self._pair.discriminator)]

    def set_back(self, kept: list[torch.Tensor]) -> None:
        """The inverse of `keep`."""
        for flat, buffers in zip((self._pair.generator, self._pair.discriminator), kept, strict=True):
            flat.buffers.copy_(buffers)


def is_usable(gradient: np.ndarray) -> bool:
    """Whether all values are finite and small enough to be squared."""
    magnitude = norm(gradient.reshape(-1))
    return magnitude < LARGEST or math.isfinite(magnitude) and float(np.abs(gradient).max()) < LARGEST
