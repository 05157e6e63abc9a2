"""How long the answers of a round are awaited: the time that recent answers took, and some more.

The median plus three times the median absolute deviation, between a floor and a ceiling; until there are a few
answers, the deadline of an earlier leader, or the ceiling. Answers that came too late count as well, so that a
deadline that was too short for all workers grows.

Source: the median absolute deviation as a measure of spread, Leys et al. 2013; three of them is its usual cut.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

ENOUGH = 4
KEPT = 64


class Deadline:
    """The times that answers took. Not thread-safe.

    Args:
        floor_s, ceiling_s: bounds of the deadline.
        took_s: earlier answers, oldest first (of a checkpoint).
    """

    def __init__(self, floor_s: float, ceiling_s: float, took_s: Iterable[float] = ()):
        self._floor_s, self._ceiling_s = floor_s, ceiling_s
        self._took_s: deque[float] = deque(took_s, maxlen=KEPT)
        self._said_s = ceiling_s

    def note(self, took_s: float) -> None:
        """An answer has come, in time or late."""
        self._took_s.append(max(0.0, took_s))

    def suggest(self, seconds: float) -> None:
        """Note the deadline of another leader; it counts until we have enough answers of our own."""
        self._said_s = min(self._ceiling_s, max(self._floor_s, seconds))

    @property
    def seconds(self) -> float:
        """How long to wait for the next round's answers."""
        if len(self._took_s) < ENOUGH:
            return self._said_s
        median = statistics.median(self._took_s)
        spread = statistics.median(abs(took - median) for took in self._took_s)
        return min(self._ceiling_s, max(self._floor_s, median + 3 * spread))

    def load_plain(self, took_s: Iterable[float]) -> None:
        """The inverse of `to_plain`."""
        self._took_s = deque(map(float, took_s), maxlen=KEPT)

    def to_plain(self) -> list[float]:
        """The times for a checkpoint."""
        return list(self._took_s)
