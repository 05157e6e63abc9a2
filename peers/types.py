"""The plain values that travel between the floors of this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

Buffer = bytes | bytearray | memoryview


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
        phase: waiting (for all peers), ready (has seen them), joining (a running group), training.
        step: the newest step that it has finished.
        seen: worker -> incarnation of the peers with which it started.
    """

    worker: int
    incarnation: str
    host: str
    pid: int
    birth: str
    phase: str = "waiting"
    step: int = 0
    seen: dict[int, str] = {}


class Entry(NamedTuple):
    """One stream entry as read: who said it, in which life, under which number."""

    sender: int
    incarnation: str
    sequence: int
    is_contiguous: bool
    header: Buffer
    payload: Buffer
    is_direct: bool = False


@dataclass
class Message:
    """A whole message of a peer.

    Attributes:
        values: float32 (slice.size,) for the kinds that carry a vector, else None.
        fields: the map of the kinds that carry one, else empty.
        last_sequence: number of the message's last entry in its stream.
    """

    kind: str
    round: int
    slice: Slice
    values: np.ndarray | None = None
    fields: dict = field(default_factory=dict)
    last_sequence: int = 0
