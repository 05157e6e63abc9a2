"""What several modes share: words that mean the same in each, and what they ask of the rest of an experiment."""

from __future__ import annotations

from typing import Literal, Protocol

from config.errors import SettingsError
from config.settings.base import Natural
from config.settings.models import Optimiser

Updates = Literal["simultaneous", "alternating"]

# How several workers' values become one; all but the mean bear some byzantine workers.
Robust = Literal["mean", "clipped_mean", "median", "trimmed_mean", "centered_clip"]


class Rest(Protocol):
    """What a mode's check may look at beside its own block."""

    @property
    def workers(self) -> int: ...

    @property
    def optimiser(self) -> Optimiser: ...


def check_trim(reduce: str, byzantine: Natural, workers: int) -> None:
    """Refuse to trim away half of the workers, or more.

    Raises:
        SettingsError: names the key.
    """
    if reduce == "trimmed_mean" and 2 * byzantine >= workers:
        raise SettingsError(
            f"mode.byzantine: of {workers} workers fewer than half can be borne, not {byzantine}; "
            "lower mode.byzantine, or use more workers"
        )
