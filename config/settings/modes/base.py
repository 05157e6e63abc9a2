"""The settings that several modes share, and their checks against the rest of an experiment."""

from __future__ import annotations

from typing import Literal, Protocol

from config.errors import SettingsError
from config.settings.base import Natural
from config.settings.models import Optimiser

Updates = Literal["simultaneous", "alternating"]

# How several workers' values become one. All but the mean tolerate some byzantine workers.
Robust = Literal["mean", "clipped_mean", "median", "trimmed_mean", "centered_clip"]


class Rest(Protocol):
    """The settings outside its own block that a mode's check may read."""

    @property
    def workers(self) -> int: ...

    @property
    def optimiser(self) -> Optimiser: ...

    @property
    def classifier(self) -> object | None: ...


def check_updates(updates: Updates, rest: Rest) -> None:
    """Refuse alternating updates where the learner has only one network.

    Raises:
        SettingsError: names the key.
    """
    if updates == "alternating" and rest.classifier is not None:
        raise SettingsError("mode.updates: alternating is for a GAN's two networks; a classifier is one")


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
