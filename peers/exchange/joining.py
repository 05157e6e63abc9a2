"""How a worker joins a run that is going on: it asks one helper for a state, and goes on from the helper's round.

The joiner sends `want` to the helper. Between two steps the helper copies its state, publishes `admit` (from its next
round on the joiner is awaited), and writes the state for the joiner to read. The state has cursors into every peer's
stream, the helper's own included. So the joiner itself reads and applies the messages that the helper had not applied:
no message is lost and none is applied twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from peers.bus.door import Bus
from peers.exchange.gate import ClockGate
from peers.exchange.inbox import Inbox
from peers.session import transfer
from peers.session.session import Session
from peers.session.transfer import State
from peers.types import Cursor

# The rule's vectors travel beside the caller's own.
RULE_PREFIX = "rule."
# How much longer than a lease a joiner waits for the state.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Standing:
    """The progress of a helper when it gives its state.

    Attributes:
        round: its newest round.
        applied: the newest round up to which it has applied contributions.
        values: the caller's small values.
        rule: the rule's small values.
        stop_at: the step after which the run stops; None for the end.
        cursors: how far each peer's stream has been applied.
        parts: the schedule in force, where it may change.
    """

    round: int
    applied: int
    values: dict[str, Any]
    rule: dict[str, Any]
    stop_at: int | None
    cursors: dict[int, Cursor]
    parts: dict[str, Any]

    def to_plain(self) -> dict[str, Any]:
        """For the wire."""
        return {
            "round": self.round,
            "applied": self.applied,
            "values": self.values,
            "rule": self.rule,
            "stop_at": self.stop_at,
            "cursors": {str(peer): cursor.to_plain() for peer, cursor in self.cursors.items()},
            "parts": self.parts,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], helper: int, incarnation: str, me: int) -> Standing:
        """The standing for worker `me` that takes the state of a helper in this incarnation.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: the map is no standing.
        """
        round, applied = int(plain["round"]), int(plain["applied"])
        cursors = {int(peer): Cursor.from_plain(cursor) for peer, cursor in plain["cursors"].items()}
        # The joiner itself reads and applies the messages that the helper had not applied, the helper's own too.
        cursors.pop(me, None)
        cursors[helper] = Cursor(incarnation, applied, int(plain["sequence"]))
        stop_at = None if plain["stop_at"] is None else int(plain["stop_at"])
        return cls(round, applied, plain["values"], plain["rule"], stop_at, cursors, plain["parts"])


def with_rule(own: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    """The caller's vectors, or their sizes, and the rule's in one map by name."""
    return own | {RULE_PREFIX + name: vector for name, vector in rule.items()}


def without_rule(both: State) -> tuple[State, State]:
    """The inverse of `with_rule`."""
    rule = {name[len(RULE_PREFIX) :]: vector for name, vector in both.items() if name.startswith(RULE_PREFIX)}
    return {name: vector for name, vector in both.items() if not name.startswith(RULE_PREFIX)}, rule


def ask(
    bus: Bus, session: Session, check: Callable[[], None], helper: tuple[int, str], sizes: dict[str, int]
) -> tuple[State, dict[str, Any]]:
    """A helper's vectors by name, and the small map that goes with them.

    Args:
        check: raises the first failure of any thread.
        helper: a worker and its incarnation.
        sizes: number of values of each vector, by name.

    Raises:
        StalledError, BusError, MessageError: the state did not come, or is damaged.
    """
    token = os.urandom(8).hex()
    session.send(helper[0], "want", 0, {"token": token})
    return transfer.take(bus, *helper, token, sizes, session.lease_s + PATIENCE_S, check)


class Giver:
    """Gives our state to peers that ask for it, and deletes it when they have had time to read it.

    Args:
        bus, session, inbox, gate: of the exchange.
        lease_s: how long a lease lasts; a state stays for two.
    """

    def __init__(self, bus: Bus, session: Session, inbox: Inbox, gate: ClockGate, lease_s: float):
        self._bus, self._session = bus, session
        self._inbox, self._gate, self._lease_s = inbox, gate, lease_s
        # The states given: until when each stays, and the names of its fields.
        self._given: list[tuple[float, list[str]]] = []
        # The number of our outbox's newest entry before each of the last rounds; a joiner may have to read on from it.
        self._before: dict[int, int] = {}

    def note(self, round: int, keep_rounds: int) -> None:
        """On the sender thread: a round is about to be published."""
        self._before[round] = self._bus.sequence
        self._before.pop(round - keep_rounds, None)

    def serve(self, round: int, make: Callable[[int], tuple[State, dict[str, Any]]]) -> None:
        """Between two steps: admit the peers that asked after `round`, and give them the result of `make(peer)`.

        Args:
            make: float32 vectors by name, which are ours to keep, and a small map with `applied` in it: the
                newest round up to which contributions have been applied.
        """
        while self._given and time.monotonic() >= self._given[0][0]:
            _, names = self._given.pop(0)
            self._session.submit(partial(self._bus.delete_state, names))
        for peer, (incarnation, token) in self._inbox.take_requests().items():
            vectors, meta = make(peer)
            # From our next round on all workers await the peer: the others read `admit` before that round.
            self._session.publish("admit", round, {"worker": peer, "incarnation": incarnation})
            self._inbox.note_admitted(peer, incarnation)
            self._gate.admit(peer, round)
            self._session.submit(partial(self._give, vectors, meta, token))

    def _give(self, vectors: State, meta: dict[str, Any], token: str) -> None:
        """On the sender thread, right after `admit`: the joiner reads our stream from the first unapplied round."""
        sequence = self._before.get(meta["applied"] + 1, self._bus.sequence)
        fields = transfer.fields_of(vectors, {**meta, "sequence": sequence}, token)
        self._given.append((time.monotonic() + 2 * self._lease_s, list(fields)))
        transfer.give(self._bus, fields, self._lease_s)
