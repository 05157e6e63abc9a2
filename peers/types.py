"""The plain values that travel between the floors of this package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

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
    """One stream entry as read, still encoded: its sender, the sender's incarnation, its number in the stream."""

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

    def to_plain(self) -> list[Any]:
        return [self.incarnation, self.round, self.sequence]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Cursor:
        """The inverse of `to_plain`.

        Raises:
            ValueError, TypeError: it is no cursor.
        """
        incarnation, round, sequence = plain
        return cls(str(incarnation), int(round), int(sequence))


def _no_values() -> np.ndarray:
    return _NO_VALUES


_NO_VALUES = np.empty(0, np.float32)


@dataclass(slots=True, eq=False)
class Received:
    """A whole message of a peer, from the wire to the reduction; in the rules also our own, as the others read it.

    Its values belong to the object that holds the message: handing it on hands them on. The assembler takes them from
    a buffer pool, and the exchange gives them back when they have been applied.

    Attributes:
        kind, round: as its header says.
        sender: the worker that published it.
        incarnation: of the sender; empty where the message is our own.
        slice: the piece of the vector that the values cover.
        values: float32 (slice.size,) for the kinds that carry a vector, else empty.
        fields: the map of the kinds that carry one, else empty.
        last_sequence: number of the message's last entry in its stream.
        extras: small numbers that go with a vector.
        is_whole: the values stand for themselves where others are differences.
        squares: the sum of the squares of the values, chunk by chunk; None where nobody has added them up.
        at_s: when it came (seconds, monotonic), where that is wanted.
        norm: the length that the screen compares; NaN until it has been measured.
    """

    kind: str
    sender: int
    incarnation: str
    round: int
    slice: Slice = Slice(0, 0)
    values: np.ndarray = field(default_factory=_no_values)
    fields: dict[str, Any] = field(default_factory=dict)
    last_sequence: int = 0
    extras: dict[str, float] = field(default_factory=dict)
    is_whole: bool = False
    squares: float | None = None
    at_s: float = 0.0
    norm: float = math.nan
