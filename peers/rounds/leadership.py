"""The choice of a leader: the first live worker of a list leads until it is gone. Pure.

There is no election. The first live worker of the list begins to lead, with term 1. It goes on leading even
when a worker that stands before it in the list returns. When the leader is gone, the next live worker in the list
leads, with the next term. Every announcement of a leader carries its term. Two workers may lead at once, if one of
them was wrongly taken for dead. Then all workers follow the higher term, or at the same term the worker that stands
first in the list; the other leader follows too as soon as it reads that announcement.

A worker that was started again does not count as live here before it has caught up.

What always holds: a worker's leader changes only when the worker finds the old one gone, or to a higher claim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


class Leadership:
    """The leader that this worker follows. Not thread-safe.

    Args:
        leaders: the workers that may lead, first come first.
        term: the term of an earlier incarnation.
    """

    def __init__(self, leaders: Sequence[int], term: int = 0):
        self.leaders = tuple(leaders)
        self.term = term
        # The leader in `term`; None before an announcement in that term has come.
        self._holder: int | None = None

    def may_lead(self, worker: int) -> bool:
        return worker in self.leaders

    def leader(self, live: Collection[int]) -> int | None:
        """The leader as far as we know; None when no worker of the list is alive."""
        if self._holder in live:
            return self._holder
        return next((worker for worker in self.leaders if worker in live), None)

    def note(self, sender: int, term: int) -> bool:
        """Note an announcement that `sender` made as a leader; returns whether it is to be followed."""
        if not self.is_in_force(sender, term):
            return False
        self.term, self._holder = term, sender
        return True

    def is_in_force(self, sender: int, term: int) -> bool:
        """Whether no worker has a better claim than `sender` with this term."""
        return sender in self.leaders and self._rank(sender, term) >= self._rank(self._holder, self.term)

    def claim(self, worker: int) -> int:
        """`worker`, which `leader` has returned, begins to lead; returns its term."""
        if self._holder != worker:
            self.term, self._holder = self.term + 1, worker
        return self.term

    def _rank(self, worker: int | None, term: int) -> tuple[int, int]:
        return term, -self.leaders.index(worker) if worker is not None else -len(self.leaders)
