"""Who leads: the first live worker of a list, and it stays so until it is gone. Pure.

Nobody is elected. The first live worker of the list begins to lead, with term 1; who leads goes on leading even
when one that stands before it in the list returns. When it is gone, the next live one in the list leads, with the
next term. Whatever a leader says carries its term. Should two lead at once, because one of them was wrongly taken
for dead, everyone follows the higher term, or at the same term the worker that stands first in the list, and the
other one follows too as soon as it reads that.

A worker that was started again is not live in this sense before it has caught up.

What always holds: a worker's leader changes only when the old one is gone for it, or to a higher claim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


class Leadership:
    """Whom this worker follows. Not thread-safe.

    Args:
        leaders: the workers that may lead, first come first.
        term: of an earlier life.
    """

    def __init__(self, leaders: Sequence[int], term: int = 0):
        self.leaders = tuple(leaders)
        self.term = term
        # Who leads in `term`; None before anybody has said anything in it.
        self._holder: int | None = None

    def may_lead(self, worker: int) -> bool:
        return worker in self.leaders

    def leader(self, live: Collection[int]) -> int | None:
        """Who leads as far as we know; None when none of the list is alive."""
        if self._holder in live:
            return self._holder
        return next((worker for worker in self.leaders if worker in live), None)

    def note(self, sender: int, term: int) -> bool:
        """Something that `sender` said as a leader; returns whether it is to be followed."""
        if not self.is_in_force(sender, term):
            return False
        self.term, self._holder = term, sender
        return True

    def is_in_force(self, sender: int, term: int) -> bool:
        """Whether nobody has a better claim than `sender` with this term."""
        return sender in self.leaders and self._rank(sender, term) >= self._rank(self._holder, self.term)

    def claim(self, worker: int) -> int:
        """`worker`, whom `leader` has named, leads; returns the term in which it does."""
        if self._holder != worker:
            self.term, self._holder = self.term + 1, worker
        return self.term

    def _rank(self, worker: int | None, term: int) -> tuple[int, int]:
        return term, -self.leaders.index(worker) if worker is not None else -len(self.leaders)
