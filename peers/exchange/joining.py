"""How a worker joins a run that is going on: it asks one helper, and stands where the helper stands.

The joiner says `want` to the helper. Between two steps the helper copies its state, says `admit` to
everyone (from its next round on the joiner is awaited), and writes the state for the joiner to read. The
state has cursors into every peer's stream, the helper's own included, so that what the helper had not
applied is read and applied by the joiner itself: nothing is lost and nothing is applied twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from peers.bus.door import Bus
from peers.exchange.gate import ClockGate
from peers.exchange.inbox import Inbox
from peers.session import transfer
from peers.session.sender import SenderThread
from peers.session.transfer import State
from peers.wire.message import Layout, encode_fields


def ask(
    bus: Bus,
    layout: Layout,
    pool: SenderThread,
    gate: ClockGate,
    helper: tuple[int, str],
    sizes: dict[str, int],
    timeout_s: float,
) -> tuple[State, dict[str, Any]]:
    """A helper's vectors by name, and what it says of them. `helper` is a worker and its incarnation.

    Raises:
        StalledError, BusError, MessageError: it did not come, or is damaged.
    """
    token = os.urandom(8).hex()
    want = encode_fields(layout, "want", 0, {"token": token})
    pool.submit(lambda: bus.send(helper[0], want))
    return transfer.take(bus, *helper, token, sizes, timeout_s, gate.check)


class Giver:
    """Gives our state to peers that ask for it, and takes it away when they have had time to read it.

    Args:
        bus, layout, pool, inbox, gate: of the exchange.
        lease_s: how long a lease lasts; a state stays for two.
    """

    def __init__(self, bus: Bus, layout: Layout, pool: SenderThread, inbox: Inbox, gate: ClockGate, lease_s: float):
        self._bus, self._layout, self._sender = bus, layout, pool
        self._inbox, self._gate, self._lease_s = inbox, gate, lease_s
        # Until when they stay, and their fields.
        self._given: list[tuple[float, list[str]]] = []
        # Number of our outbox's newest entry before each of the last rounds; a joiner may have to read them.
        self._before: dict[int, int] = {}

    def note(self, round: int, keep_rounds: int) -> None:
        """On the pool: a round is about to be published."""
        self._before[round] = self._bus.sequence
        self._before.pop(round - keep_rounds, None)

    def serve(self, round: int, make: Callable[[int], tuple[State, dict[str, Any]]]) -> None:
        """Between two steps: admit those who asked after `round`, and give them what `make(peer)` returns.

        Args:
            make: float32 vectors by name, which are ours to keep, and a small map with `applied` in it: the
                newest round up to which contributions have been applied.
        """
        while self._given and time.monotonic() >= self._given[0][0]:
            _, names = self._given.pop(0)
            self._sender.submit(lambda names=names: self._bus.delete_state(names))
        for peer, (incarnation, token) in self._inbox.take_proposals().items():
            vectors, meta = make(peer)
            admit = encode_fields(self._layout, "admit", round, {"worker": peer, "incarnation": incarnation})
            # From our next round on everyone awaits the peer: the others read `admit` before that round.
            self._sender.submit(lambda entries=admit: self._bus.publish(entries))
            self._inbox.note_admitted(peer, incarnation)
            self._gate.admit(peer, round)
            self._sender.submit(lambda v=vectors, m=meta, t=token: self._give(v, m, t))

    def _give(self, vectors: State, meta: dict[str, Any], token: str) -> None:
        """On the pool, right after `admit`: the joiner reads our stream from what it has not applied."""
        sequence = self._before.get(meta["applied"] + 1, self._bus.sequence)
        fields = transfer.fields_of(vectors, {**meta, "sequence": sequence}, token)
        self._given.append((time.monotonic() + 2 * self._lease_s, list(fields)))
        transfer.give(self._bus, fields, self._lease_s)
