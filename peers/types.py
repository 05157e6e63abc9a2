"""The plain values that travel between the floors of this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

Buffer = bytes | bytearray | memoryview

# A wait that takes longer than this says what for.
LOG_AFTER_S = 5.0
# What somebody else has written is checked when it is decoded.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Short = Annotated[str, msgspec.Meta(max_length=512)]
Incarnation = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]


class Slice(NamedTuple):
    """First and past-last element of a piece of a vector."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Lease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker says of itself while it lives; expires when it stops renewing.

    Attributes:
        incarnation: one life of a worker process.
        host, pid, birth: which process that is; birth tells a reused pid apart.
        phase: waiting (for all peers), ready (has seen them), joining (a running group), training,
            leaving.
        step: the newest step that it has finished.
        since: the step at which it began, or joined, the line of training that it is on.
        beat: counts renewals, so that who looks twice sees that it is alive.
        seen: worker -> incarnation of the peers with which it started.
        term: the highest term in which it has followed a leader, or led; 0 in modes without one.
    """

    worker: Count
    incarnation: Incarnation
    host: Short
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    birth: Short
    phase: Short = "waiting"
    step: Count = 0
    since: Count = 0
    beat: Count = 0
    seen: dict[Count, Incarnation] = {}
    term: Count = 0


class Entry(NamedTuple):
    """One stream entry as read: who said it, in which life, under which number."""

    sender: int
    incarnation: str
    sequence: int
    is_contiguous: bool
    header: Buffer
    payload: Buffer
    is_direct: bool = False


@dataclass(frozen=True)
class Cursor:
    """How far a peer's stream has been applied.

    Attributes:
        incarnation: the life of the peer that said it.
        round: the newest round applied.
        sequence: the number of that round's last entry in the stream; 0 where none is known.
    """

    incarnation: str
    round: int
    sequence: int

    def to_plain(self) -> list:
        return [self.incarnation, self.round, self.sequence]

    @classmethod
    def from_plain(cls, plain: list) -> Cursor:
        """The inverse of `to_plain`.

        Raises:
            ValueError, TypeError: it is no cursor.
        """
        incarnation, round, sequence = plain
        return cls(str(incarnation), int(round), int(sequence))


@dataclass
class Message:
    """A whole message of a peer.

    Attributes:
        values: float32 (slice.size,) for the kinds that carry a vector, else None.
        fields: the map of the kinds that carry one, else empty.
        last_sequence: number of the message's last entry in its stream.
        extras: small numbers that go with a vector.
        is_whole: the vector's values stand for themselves where others are differences.
        squares: of a part, the sum of its squares, chunk by chunk.
    """

    kind: str
    round: int
    slice: Slice
    values: np.ndarray | None = None
    fields: dict = field(default_factory=dict)
    last_sequence: int = 0
    extras: dict[str, float] = field(default_factory=dict)
    is_whole: bool = False
    squares: float = 0.0
