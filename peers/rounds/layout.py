"""The agreement of a mode with rounds: each kind of vector is always whole, of one size and one codec.

| kind        | carries | meaning |
| ----------- | ------- | ------- |
| round_start | map     | (from the leader) the task of each worker in this round, and where its input lies |
| round_end   | map     | (from the leader) the state that holds after this round, and where it lies |

and the kinds of `peers.session.session`; a mode hands in its vectors, and the maps that it needs beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from peers.codecs.base import Codec
from peers.session.session import SESSION_MAPS
from peers.types import Slice
from peers.wire.kinds import Kinds
from peers.wire.layout import LEAST_PAYLOAD_BYTES, chunks, entries_of, largest_chunk_bytes

# The kinds of the leader's announcements; each carries the leader's term.
ANNOUNCEMENTS = ("round_start", "round_end")


@dataclass(frozen=True)
class RoundLayout:
    """See `peers.wire.layout.Layout`.

    Attributes:
        fingerprint: 8 bytes over the vector layout and the settings that must agree.
        kinds: for each kind of vector its number of values and its codec.
        maps: the kinds of small maps that the mode has beside those of all rounds.
    """

    fingerprint: bytes
    kinds: Mapping[str, tuple[int, Codec]]
    maps: frozenset[str] = frozenset()

    @cached_property
    def carried(self) -> Kinds:
        maps = SESSION_MAPS | self.maps | set(ANNOUNCEMENTS)
        return Kinds({kind: (codec,) for kind, (_, codec) in self.kinds.items()}, maps)

    def allows(self, kind: str, round: int, whole: Slice) -> bool:
        """Whether a message of this kind may cover that slice."""
        return kind in self.kinds and whole == Slice(0, self.kinds[kind][0])

    def entries(self, kind: str) -> int:
        """Entries that one message of this kind takes."""
        return entries_of(*self.kinds[kind])

    def payload_bytes(self, kind: str) -> int:
        """Payload of one message of this kind."""
        size, codec = self.kinds[kind]
        return sum(codec.encoded_bytes(piece.size) for piece in chunks(Slice(0, size), codec))

    def largest_payload_bytes(self) -> int:
        """The largest payload of any entry, for sizing reads."""
        return max([LEAST_PAYLOAD_BYTES, *(largest_chunk_bytes(*kind) for kind in self.kinds.values())])
