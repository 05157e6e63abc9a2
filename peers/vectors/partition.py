"""Which slice of the vector leaves in which round.

Parts are slices of the flat vector, balanced to one element. Every worker sends the same part in
a round, so a round is complete for a reader when that worker's one message is whole, and after
`parts` rounds everything that was gathered has left exactly once.

A step may have more than one round: with alternating updates the discriminator's half of the
vector travels first and the generator's after it, each half a section with parts of its own.

Source: Watcharapichat et al., "Ako: Decentralised Deep Learning with Partial Gradient Exchange",
SoCC 2016, section 3 (there the parts follow the layers and differ five to one in size).
"""

from __future__ import annotations

from peers.types import Slice


def balanced(whole: Slice, parts: int) -> list[Slice]:
    """Cut `whole` into `parts` slices whose sizes differ by at most one element.

    Raises:
        ValueError: parts below 1.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, not {parts}")
    edges = [whole.start + whole.size * k // parts for k in range(parts + 1)]
    return [Slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


class Schedule:
    """Rounds, counted from 1, to steps, sections and slices. Pure and unchanging.

    Args:
        sections: the pieces of the vector that get a round each in a step, in that order.
        parts: how many parts each section is cut into.
        since: the step after which this schedule holds; its first part leaves in the next one.
    """

    def __init__(self, sections: list[Slice], parts: int, since: int = 0):
        if not sections:
            raise ValueError("a schedule needs at least one section")
        self.sections = list(sections)
        self.parts = parts
        self.since = since
        self._slices = [balanced(section, parts) for section in sections]

    @property
    def rounds_per_step(self) -> int:
        return len(self.sections)

    @property
    def largest(self) -> Slice:
        """The largest slice of all."""
        return max((piece for slices in self._slices for piece in slices), key=lambda piece: piece.size)

    def step(self, round: int) -> int:
        """The step, counted from 1, to which a round belongs."""
        return (round - 1) // len(self.sections) + 1

    def section(self, round: int) -> Slice:
        """The piece of the vector that a round updates."""
        return self.sections[(round - 1) % len(self.sections)]

    def section_index(self, round: int) -> int:
        """The number of that piece, from 0."""
        return (round - 1) % len(self.sections)

    def newest_rounds(self, round: int) -> tuple[int, ...]:
        """Per section its newest round up to `round`; 0 or below where there is none yet."""
        return tuple(round - (round - k - 1) % len(self.sections) for k in range(len(self.sections)))

    def slice(self, round: int) -> Slice:
        """The part that every worker publishes in a round."""
        return self.slices(round)[(self.step(round) - self.since - 1) % self.parts]

    def slices(self, round: int) -> list[Slice]:
        """All parts of the section that a round updates."""
        return self._slices[(round - 1) % len(self.sections)]

    def changed(self, parts: int, since: int) -> Schedule:
        """The same sections in other parts, from the step after `since` on."""
        return Schedule(self.sections, parts, since)
