"""Entries, leases and states that the bus refused: counted by reason, and logged once for each sender and reason."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable


class Refusals:
    """Counts everything that does not bear the run's MAC. Thread-safe.

    Args:
        log: called with one line for a person, once for each sender and reason.
    """

    def __init__(self, log: Callable[[str], None]):
        self._log = log
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said: set[tuple[int, str]] = set()

    def note(self, sender: int, reason: str, what: str, how_many: int = 1) -> None:
        """Something under the name of `sender` was refused.

        Args:
            reason: one word for the counters: `mac`, `replayed`, or `malformed` for an entry that no worker writes.
            what: for a person, such as "entry 7 of its outbox".
            how_many: how many are counted; 0 where the same value is looked at again and again.
        """
        with self._lock:
            if how_many:
                self._counts[reason] += how_many
            is_new = (sender, reason) not in self._said
            self._said.add((sender, reason))
        if is_new:
            counted = f", and counted as {reason!r}" if how_many else ""
            self._log(f"worker {sender}: {what} {_WHY[reason]}; refused (said once{counted})")

    def counts(self) -> dict[str, int]:
        """How many were refused, by reason, since the start."""
        with self._lock:
            return dict(self._counts)


_WHY = {
    "mac": "does not bear this run's MAC: it was changed on its way, or written by someone without the run key",
    "replayed": "is one that was said before, put in another place by someone else",
    "malformed": "is none that a worker writes",
}
