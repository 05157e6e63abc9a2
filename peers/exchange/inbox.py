"""From received messages to contributions and clocks: a peer's messages enter in order, and every loss is counted.

A round of a peer counts once: a round that the peer publishes again after a restart (`replayed`) is not applied a
second time, and rounds that were gone before they were read (`overrun`) are counted. A contribution is in the
accumulator before its clock is noted, so it is there when the main thread passes the gate.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from peers.exchange.auto import AutoParts
from peers.exchange.gate import ClockGate
from peers.exchange.window import Accumulator
from peers.session.decode import Decoder
from peers.types import Cursor, Entry, Received
from peers.vectors.buffers import BufferPool
from peers.wire.layout import Layout

MAX_TOKEN = 64


@dataclass
class _Sender:
    """One peer: the newest round received, and the incarnation that a worker has given its state to."""

    newest: int | None = None
    admitted: str = ""


class Inbox(Decoder):
    """The messages of the peers of an exchange. `feed` runs on the reader threads, in order per sender.

    Args:
        worker: our number.
        layout: the layout that every message must fit.
        accumulator: takes the contributions.
        gate: takes clocks, membership, states and the step to stop at.
        proposals: takes the numbers of parts that the peers propose; None where the number is fixed.
        buffers: the buffer pool for the arrays of messages.
        refused: called with sender and incarnation for an entry that its sender should not have sent.
    """

    def __init__(
        self,
        worker: int,
        layout: Layout,
        accumulator: Accumulator,
        gate: ClockGate,
        proposals: AutoParts | None = None,
        buffers: BufferPool | None = None,
        refused: Callable[[int, str], None] = lambda sender, incarnation: None,
    ):
        super().__init__(layout, refused, buffers)
        self._worker = worker
        self._parts = proposals
        self._accumulator = accumulator
        self._gate = gate
        self._lock = threading.Lock()
        self._senders: dict[int, _Sender] = {}
        self._counts: Counter[str] = Counter()
        self._requests: dict[int, tuple[str, str]] = {}
        # After a restart: per peer the number of its newest entry at that time.
        self._unread: dict[int, int] = {}

    def dropped(self) -> dict[str, int]:
        """How many rounds and entries were not applied, by reason, since the start."""
        with self._lock:
            return dict(self._counts)

    def count(self, reason: str, how_many: int = 1) -> None:
        with self._lock:
            self._counts[reason] += how_many

    def take_requests(self) -> dict[int, tuple[str, str]]:
        """Peers that have asked for our state since the last call: their incarnation and the token of the request."""
        with self._lock:
            requests, self._requests = self._requests, {}
            return requests

    def expect_after(self, sender: int, cursor: Cursor) -> None:
        """The rounds up to the cursor are known already; the rounds after it come next."""
        self.begin_incarnation(sender, cursor.incarnation)
        with self._lock:
            self._senders[sender] = _Sender(cursor.round)

    def replay(self, newest: dict[int, int]) -> None:
        """Tell the gate when everything up to these entries of the peers' outboxes has been read."""
        with self._lock:
            self._unread = {peer: number for peer, number in newest.items() if number}
            self._gate.is_replaying = bool(self._unread)

    def note_read(self, entry: Entry) -> None:
        if not self._unread:
            return
        if not entry.is_direct and entry.sequence >= self._unread.get(entry.sender, entry.sequence + 1):
            with self._lock:
                self._unread.pop(entry.sender, None)
                self._gate.is_replaying = bool(self._unread)

    def note_admitted(self, sender: int, incarnation: str) -> None:
        """A worker has given its state to this incarnation of a peer, so the peer's request to join is granted."""
        with self._lock:
            self._senders.setdefault(sender, _Sender()).admitted = incarnation

    def accept(self, received: Received) -> None:
        with self._lock:
            sender = self._senders.setdefault(received.sender, _Sender())
        peer, fields = received.sender, received.fields
        match received.kind:
            case "part":
                self._take_part(sender, received)
            case "state":
                self._gate.put_state(peer, received.round, received.values)
            case "hello":
                if fields["is_joining"]:
                    # The peer's old clock must hold nobody up while the peer asks a worker for a state. The worker's
                    # `admit` may have been read first: different senders have no order between them.
                    if sender.admitted != received.incarnation:
                        self._gate.drop(peer, "it was started again and asks for a state")
                elif not fields["is_replaying"]:
                    with self._lock:
                        sender.newest = received.round
                    self._gate.admit(peer, received.round)
            case "goodbye":
                self._gate.leave(peer)
            case "want":
                token = fields["token"]
                if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN:
                    raise ValueError("token")
                with self._lock:
                    self._requests[peer] = (received.incarnation, token)
            case "admit":
                other, incarnation = int(fields["worker"]), str(fields["incarnation"])
                if other != self._worker:
                    self._gate.admit(other, received.round)
                    self.note_admitted(other, incarnation)
            case "stop":
                self._gate.stop(received.round)

    def _take_part(self, sender: _Sender, received: Received) -> None:
        with self._lock:
            # Without a cursor the peer is followed from the beginning of its stream, which may have been trimmed.
            newest = received.round - 1 if sender.newest is None else sender.newest
            sender.newest = max(newest, received.round)
        if received.round <= newest:
            self.count("replayed")
            return
        if received.round > newest + 1:
            self.count("overrun", received.round - newest - 1)
        self._accumulator.add(received)
        if self._parts is not None and "w" in received.extras:
            self._parts.note(received.sender, received.round, received.extras["w"])
        self._gate.note(received.sender, received.round)
