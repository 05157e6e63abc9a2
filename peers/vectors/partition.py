"""The schedule of partial exchange: the slice of the vector that leaves in each round.

Parts are slices of the flat vector, balanced to one element. Every worker sends the same part in
a round, so a round is complete for a reader when that worker's one message is whole. After
`parts` rounds every gathered value has left exactly once. A round is a step.

Source: Watcharapichat et al., "Ako: Decentralised Deep Learning with Partial Gradient Exchange",
SoCC 2016, section 3 (there the parts follow the layers and differ five to one in size).
"""

from __future__ import annotations

from peers.types import Slice


def balanced(whole: Slice, parts: int) -> list[Slice]:
    """Split `whole` into `parts` slices whose sizes differ by at most one element.

    Raises:
        ValueError: parts below 1.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, not {parts}")
    edges = [whole.start + whole.size * k // parts for k in range(parts + 1)]
    return [Slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


class Schedule:
    """The slice of each round, counted from 1. Pure and unchanging.

    Args:
        size: number of values in the vector.
        parts: the number of parts of the vector.
        since: the round after which this schedule holds; its first part leaves in the next one.
    """

    def __init__(self, size: int, parts: int, since: int = 0):
        self.size, self.parts, self.since = size, parts, since
        self.slices = tuple(balanced(Slice(0, size), parts))

    @property
    def whole(self) -> Slice:
        """The slice that is the whole vector."""
        return Slice(0, self.size)

    @property
    def largest(self) -> Slice:
        """The largest slice of all."""
        return max(self.slices, key=lambda piece: piece.size)

    def slice(self, round: int) -> Slice:
        """The part that every worker publishes in a round."""
        return self.slices[(round - self.since - 1) % self.parts]

    def changed(self, parts: int, since: int) -> Schedule:
        """The schedule of the same vector in other parts, from the round after `since` on."""
        return Schedule(self.size, parts, since)
