"""An exchange rule: the contract that decides which values leave in a round, and how received values enter.

`gradients` and `parameters` are the two rules. A rule knows vectors, slices and codecs; it knows no bus and starts no
thread. The sender thread has a half of its own, the encoder.

Each array has one owner (`Owner`): a leaving vector names the owner of its array until its round has been published,
and a received message owns its values.
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
    """The owner of a leaving vector's array, which decides where the array goes when its round has been published."""

    # The array goes back to the buffer pool.
    POOL = "pool"
    # The rule still reads the array, and releases it when the round has been applied.
    RULE = "rule"
    # The array belongs to the caller, who may not change it until the round has been published.
    CALLER = "caller"


@dataclass(frozen=True)
class Leaving:
    """The vector that leaves in a round: a slice and its values, float32 (part.size,).

    Attributes:
        is_whole: whether the values are weights where other rounds send differences.
        owner: the owner of the array.
    """

    round: int
    part: Slice
    values: np.ndarray
    extras: dict[str, float]
    is_whole: bool = False
    owner: Owner = Owner.POOL


class Outgoing:
    """Our own rounds that have been encoded and that we have not applied ourselves, as the others read them.

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
        """The round as entries, with small numbers of the exchange's own for the header; called in round order."""


class ExchangeRule(Protocol):
    """One exchange rule; the main thread calls every method but those of its encoder.

    Attributes:
        counts: contributions that were not applied as they should have been, by reason.
        screen: decides which contributions are used; its counts are the rule's.
    """

    screen: Screen
    counts: Counter[str]

    @property
    def encoder(self) -> Encoder:
        """The sender thread's half."""

    def begin(self, round: int) -> None:
        """A line of training begins, or goes on from a checkpoint, after this round."""

    def offer(self, round: int, part: Slice, values: np.ndarray) -> Leaving:
        """Copy out the values that leave in a round; `values` is float32 (size,)."""

    def through(self, round: int, is_synchronous: bool) -> int:
        """The newest round that is to be applied in this one."""

    def is_ready(self, through: int) -> bool:
        """Whether all of our own rounds that applying needs have been encoded."""

    def collect(self, through: int, values: np.ndarray, items: list[Received], sharers: int) -> np.ndarray:
        """Apply the received contributions.

        Args:
            through: the newest round to apply; see the method `through`.
            values: float32 (size,); changed in place.
            items: the peers' contributions, in worker and round order, ours to change.
            sharers: how many peers share a mean.

        Returns:
            `values`.
        """

    def reschedule(self, schedule: Schedule) -> None:
        """The schedule changes: other parts hold from now on."""

    def begin_flush(self) -> int:
        """After the last step: how many more rounds must be published until every value has left."""

    def has_rest(self) -> bool:
        """After the flush has been collected: whether the values of `collect` are to be used."""

    def state(self) -> tuple[State, dict[str, Any]]:
        """Vectors and small values for a checkpoint."""

    def load_state(self, arrays: State, values: dict[str, Any]) -> None: ...

    def shared_sizes(self) -> dict[str, int]:
        """Number of values of the vectors that a joiner takes over, by name."""

    def shared(self) -> tuple[State, dict[str, Any]]:
        """The vectors of `shared_sizes`, copied, and small values."""

    def applied(self, round: int) -> int:
        """After `round` was collected: the newest round up to which contributions have been applied."""

    def load_shared(self, arrays: State, values: dict[str, Any], helper: int, round: int, applied: int) -> None:
        """Take over the helper's state after `round`; the helper had applied contributions up to round `applied`.

        Raises:
            KeyError, TypeError, ValueError: the state does not fit.
        """
