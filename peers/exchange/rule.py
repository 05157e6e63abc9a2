"""An exchange rule: the door between an exchange and what leaves and enters in a round.

`gradients` and `parameters` are the two rules. A rule knows vectors, slices and codecs; it knows no bus and starts no
thread. The sender thread has a half of its own, the encoder.

Each array has one owner (`Owner`): a vector that leaves says whose it is until its round has been published, and a
received message owns its values.
"""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from peers.types import Buffer, Received, Slice
from peers.vectors.partition import Schedule
from peers.vectors.screen import Screen

State = dict[str, np.ndarray]


class Owner(enum.Enum):
    """Whose the array of a leaving vector is, and what becomes of it when its round has been published."""

    # It goes back to the buffer pool.
    POOL = "pool"
    # The rule still reads it, and lets go of it when the round has been applied.
    RULE = "rule"
    # It is the caller's own, who may not change it before that.
    CALLER = "caller"


@dataclass(frozen=True)
class Leaving:
    """What leaves in a round: a slice and its values, float32 (part.size,).

    Attributes:
        is_whole: they stand for themselves where others are differences.
        owner: whose the array is.
    """

    round: int
    part: Slice
    values: np.ndarray
    extras: dict[str, float]
    is_whole: bool = False
    owner: Owner = Owner.POOL


class Outgoing:
    """Our own rounds that have been encoded and not been applied by ourselves, as the others read them.

    Thread-safe: the sender thread adds, the main thread takes.

    Args:
        backlog: how many rounds are remembered at most.
    """

    def __init__(self, backlog: int | None = None):
        self._lock = threading.Lock()
        self._published: dict[int, Received] = {}
        self._backlog = backlog
        self.newest = 0

    def add(self, published: Received) -> None:
        with self._lock:
            self._published[published.round] = published
            self.newest = published.round
            if self._backlog is not None:
                self._published.pop(published.round - self._backlog, None)

    def get(self, round: int) -> Received | None:
        with self._lock:
            return self._published.get(round)

    def take(self, through: int) -> dict[int, Received]:
        """Remove and return the rounds up to one."""
        with self._lock:
            due = [round for round in self._published if round <= through]
            return {round: self._published.pop(round) for round in due}


class Encoder(Protocol):
    """The sender thread's half of a rule."""

    def encode(self, leaving: Leaving, extras: dict[str, float]) -> Iterable[tuple[bytes, Buffer]]:
        """As entries, with small numbers of the exchange's own for the header; called in the order of the rounds."""


class ExchangeRule(Protocol):
    """One rule; everything but its encoder is the main thread's.

    Attributes:
        counts: what was not applied as it should have been, by reason.
        screen: says whose contributions are used; its counts are the rule's.
    """

    screen: Screen
    counts: Counter[str]

    @property
    def encoder(self) -> Encoder:
        """The sender thread's half."""

    def begin(self, round: int) -> None:
        """A line of training begins, or goes on from a checkpoint, after this round."""

    def offer(self, round: int, part: Slice, values: np.ndarray) -> Leaving:
        """Copy out what leaves in a round; `values` is float32 (size,)."""

    def through(self, round: int, is_synchronous: bool) -> int:
        """The newest round that is to be applied in this one."""

    def is_ready(self, through: int) -> bool:
        """Whether all of our own that applying those rounds needs has been encoded."""

    def collect(self, through: int, values: np.ndarray, items: list[Received], sharers: int) -> np.ndarray:
        """Apply what came.

        Args:
            through: see `through`.
            values: float32 (size,); changed in place.
            items: the peers' contributions, in worker and round order, ours to change.
            sharers: how many peers share a mean.

        Returns:
            `values`.
        """

    def reschedule(self, schedule: Schedule) -> None:
        """The parts are others from now on."""

    def begin_flush(self) -> int:
        """After the last step: how many more rounds must be published until everything has left."""

    def has_rest(self) -> bool:
        """After the flush has been collected: whether the values of `collect` are to be used."""

    def state(self) -> tuple[State, dict[str, Any]]:
        """For a checkpoint."""

    def load_state(self, arrays: State, values: dict[str, Any]) -> None: ...

    def shared_sizes(self) -> dict[str, int]:
        """Number of values of the vectors that a joiner takes over, by name."""

    def shared(self) -> tuple[State, dict[str, Any]]:
        """Those vectors, copied, and small values."""

    def applied(self, round: int) -> int:
        """After `round` was collected: the newest round up to which contributions have been applied."""

    def load_shared(self, arrays: State, values: dict[str, Any], helper: int, round: int, applied: int) -> None:
        """Stand where a helper stood after `round`, when it had applied what came up to `applied`.

        Raises:
            KeyError, TypeError, ValueError: it does not fit.
        """
