"""`remote: hold`: a peer's lump is spread over as many steps as it took to gather.

A lump is the sum of several steps' gradients of one slice. Applied at once it is a spike that Adam's
second moment remembers for long; spread, each step sees about one step's worth of everybody.

What always holds (conservation): whatever order lumps come in, what has been given out plus what is
held is what was added. A lump that comes before the last one is used up takes the rest of it along; one
that is late leaves a pause. (Repeating the old lump until the next one comes, as one could also read the
rule, would apply some gradients twice and those of a dead worker for ever.)
"""

from __future__ import annotations

import numpy as np

from peers.types import Slice


class Held:
    """Lumps of the peers, per peer and slice. Used by one thread.

    Args:
        size: number of values in the vector.
    """

    def __init__(self, size: int):
        self._size = size
        # Per peer what a step gets of it, and for each slice how many steps are left.
        self._rates: dict[int, np.ndarray] = {}
        self._left: dict[int, dict[Slice, int]] = {}
        self._total = np.zeros(size, dtype=np.float32)
        # What had to give way to a slice of another cut.
        self._spilt: list[tuple[Slice, np.ndarray]] = []

    def add(self, peer: int, part: Slice, values: np.ndarray, steps: int) -> None:
        """A lump, float32 (part.size,), that took `steps` steps to gather."""
        rates = self._rates.setdefault(peer, np.zeros(self._size, dtype=np.float32))
        left = self._left.setdefault(peer, {})
        for other in [other for other in left if other != part and other.start < part.stop and part.start < other.stop]:
            rate = rates[other.start : other.stop]
            self._spilt.append((other, rate * np.float32(left.pop(other))))
            rate[:] = 0
            self._sum_up(other)
        rate = rates[part.start : part.stop]
        rate *= np.float32(left.get(part, 0))
        rate += values
        rate /= np.float32(steps)
        left[part] = steps
        self._sum_up(part)

    def give_out(self, section: Slice, values: np.ndarray) -> bool:
        """Add one step's worth to `values`, float32 (section.size,); returns whether anything was held for it."""
        found = self._has_any(section)
        values += self._total[section.start : section.stop]
        for part, rest in self._spilt:
            if _is_inside(part, section):
                values[part.start - section.start : part.stop - section.start] += rest
        self._spilt = [(part, rest) for part, rest in self._spilt if not _is_inside(part, section)]
        for peer, left in self._left.items():
            for part in [part for part in left if _is_inside(part, section)]:
                left[part] -= 1
                if not left[part]:
                    del left[part]
                    self._rates[peer][part.start : part.stop] = 0
                    self._sum_up(part)
        return found

    def _has_any(self, section: Slice) -> bool:
        held = any(_is_inside(part, section) for left in self._left.values() for part in left)
        return held or any(_is_inside(part, section) for part, _ in self._spilt)

    def give_all(self, section: Slice, values: np.ndarray) -> bool:
        """Add everything that is held for a section; returns whether there was anything."""
        for peer, left in self._left.items():
            for part in [part for part in left if _is_inside(part, section)]:
                # All steps but the one that `give_out` adds below.
                rate = self._rates[peer][part.start : part.stop]
                values[part.start - section.start : part.stop - section.start] += rate * np.float32(left[part] - 1)
                left[part] = 1
        return self.give_out(section, values)

    def _sum_up(self, part: Slice) -> None:
        """In worker order, so that equal lumps give equal sums."""
        total = self._total[part.start : part.stop]
        total[:] = 0
        for peer in sorted(self._rates):
            total += self._rates[peer][part.start : part.stop]

    def state(self) -> tuple[dict[int, np.ndarray], list]:
        """Per peer float32 (size,), and how many steps are left, as plain values; what was spilt is given out first."""
        left = [[peer, *part, steps] for peer, some in self._left.items() for part, steps in some.items()]
        return {peer: rates.copy() for peer, rates in self._rates.items()}, left

    def load_state(self, rates: dict[int, np.ndarray], left: list) -> None:
        """The inverse of `state`.

        Raises:
            ValueError, TypeError: it does not fit.
        """
        self._rates = {int(peer): np.array(values, dtype=np.float32) for peer, values in rates.items()}
        self._left = {peer: {} for peer in self._rates}
        for peer, start, stop, steps in left:
            self._left[int(peer)][Slice(int(start), int(stop))] = int(steps)
        self._sum_up(Slice(0, self._size))


def _is_inside(part: Slice, section: Slice) -> bool:
    return section.start <= part.start and part.stop <= section.stop
