"""The plain values that travel between the floors of this package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

Buffer = bytes | bytearray | memoryview

# A wait that takes longer than this logs a line.
LOG_AFTER_S = 5.0
# A count that another worker has written; checked when it is decoded.
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
    """A worker's own record while it lives; expires when the worker stops renewing it.

    Attributes:
        incarnation: one life of a worker process.
        host, pid, birth: the process that wrote the lease; birth tells a reused pid apart.
        phase: waiting (for all peers), ready (has seen them), joining (a running group), training,
            leaving.
        step: the newest step that the worker has finished.
        since: the step at which the worker began, or joined, its line of training.
        beat: counts renewals: when it has grown between two looks, the worker is alive.
        seen: worker -> incarnation of the peers with which the worker started.
        term: the highest term in which the worker has followed a leader, or led; 0 in modes without one.
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
        incarnation: the incarnation of the peer that published the entries.
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
            ValueError, TypeError: the list is no cursor.
        """
        incarnation, round, sequence = plain
        return cls(str(incarnation), int(round), int(sequence))


def _no_values() -> np.ndarray:
    return _NO_VALUES


_NO_VALUES = np.empty(0, np.float32)


@dataclass(slots=True, eq=False)
class Received:
    """A whole message of a peer, from the wire to the reduction; in the rules also our own, as the others read it.

    The values belong to the object that holds the message: passing the message on passes the values on. The assembler
    takes them from a buffer pool, and the exchange gives them back when they have been applied.

    Attributes:
        kind, round: as in the message's header.
        sender: the worker that published it.
        incarnation: of the sender; empty where the message is our own.
        slice: the piece of the vector that the values cover.
        values: float32 (slice.size,) for the kinds that carry a vector, else empty.
        fields: the map of the kinds that carry one, else empty.
        last_sequence: number of the message's last entry in its stream.
        extras: small numbers that go with a vector.
        is_whole: whether the values are weights where other messages carry differences.
        squares: the sum of the squares of the values, chunk by chunk; None where it has not been computed.
        at_s: when the message came (seconds, monotonic), where that is noted.
        norm: the norm that the screen compares; NaN until it has been measured.
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
