"""The agreement of an exchange: which slice of the vector travels in which round, and with which codec.

| kind    | carries | meaning |
| ------- | ------- | ------- |
| part    | vector  | a slice of the window's sums, or of the parameters, of this round |
| state   | vector  | my averaged buffers, as they stand after this round |
| want    | map     | (to one peer) a request for its state, under this token |
| admit   | map     | the worker that I gave my state to takes part after this round |
| stop    | map     | a proposal that all workers stop after this step |

and the kinds of `peers.session.session`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from peers.codecs.base import Codec
from peers.codecs.exact import CODECS
from peers.session.session import SESSION_MAPS
from peers.types import Slice
from peers.vectors.partition import Schedule, balanced
from peers.wire.kinds import Kinds
from peers.wire.layout import LEAST_PAYLOAD_BYTES, entries_of, largest_chunk_bytes

EXCHANGE_MAPS = SESSION_MAPS | {"want", "admit", "stop"}


@dataclass(frozen=True)
class ExchangeLayout:
    """See `peers.wire.layout.Layout`.

    Attributes:
        schedule: the slice of each round, at the start.
        codec: of the parts; states are always raw.
        state_size: number of values in a `state` message (averaged buffers).
        fingerprint: 8 bytes over the vector layout and the settings that must agree.
        parts: the numbers of parts that may be in force in the course of a run; empty if only the schedule's.
        may_be_whole: whether a part may also come raw, as weights and not as a difference to a reference.
    """

    schedule: Schedule
    codec: Codec
    state_size: int
    fingerprint: bytes
    parts: tuple[int, ...] = ()
    may_be_whole: bool = False

    @cached_property
    def carried(self) -> Kinds:
        raw = CODECS["raw"]
        part = (self.codec, raw) if self.may_be_whole and self.codec.name != "raw" else (self.codec,)
        return Kinds({"part": part, "state": (raw,)}, EXCHANGE_MAPS, frozenset({"part"}))

    def allows(self, kind: str, round: int, whole: Slice) -> bool:
        """Whether a message of this kind and round may cover that slice; parts begin with round 1."""
        if kind == "state":
            return whole == Slice(0, self.state_size)
        if kind != "part" or round < 1:
            return False
        if not self.parts:
            return whole == self.schedule.slice(round)
        return whole in self._slices

    @cached_property
    def _slices(self) -> frozenset[Slice]:
        return frozenset(piece for parts in self.parts for piece in balanced(self.schedule.whole, parts))

    @property
    def largest(self) -> Slice:
        """The largest slice that a part may cover."""
        return self.schedule.changed(min(self.parts), 0).largest if self.parts else self.schedule.largest

    def entries_per_round(self) -> int:
        """The most entries that one `part` message takes."""
        return max(entries_of(self.largest.size, codec) for codec in self.carried.vectors["part"])

    def entries_per_state(self) -> int:
        """Entries of one `state` message; 0 where there are no buffers."""
        return entries_of(self.state_size, CODECS["raw"]) if self.state_size else 0

    def largest_payload_bytes(self) -> int:
        """The largest payload of any entry, for sizing reads."""
        parts = largest_chunk_bytes(self.largest.size, self.codec)
        return max(LEAST_PAYLOAD_BYTES, parts, largest_chunk_bytes(self.state_size, CODECS["raw"]))
