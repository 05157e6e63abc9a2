"""From entries to contributions and clocks: one peer's entries in, in order; nothing lost unseen.

A round of a peer counts once: what it says again after a restart (`replayed`) is not applied a
second time; what does not fit (`malformed`, `checksum`, ...) and rounds that were gone before they
were read (`overrun`) are counted by reason. A contribution is in the accumulator before its clock is
noted, so whoever passes the gate has it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from peers.errors import MessageError
from peers.exchange.auto import AutoParts
from peers.exchange.gate import ClockGate
from peers.exchange.window import Accumulator, Contribution
from peers.types import Cursor, Entry, Message
from peers.vectors.buffers import BufferPool
from peers.wire.assembler import Assembler
from peers.wire.message import Layout, is_sound

MAX_TOKEN = 64


@dataclass
class _Sender:
    incarnation: str = ""
    newest: int | None = None  # The newest round received.
    admitted: str = ""  # The life that one of us has given its state to.
    assemblers: dict[bool, Assembler] = field(default_factory=dict)


class Inbox:
    """Where a worker's mail is opened. `feed` runs on the pool, in order per sender.

    Args:
        worker: our number.
        layout: what every message must fit.
        accumulator: takes the contributions.
        gate: takes clocks, membership, states and stop wishes.
        wishes: takes what the peers say of the number of parts; None where that is fixed.
        spares: where the arrays of messages come from.
        refused: called with sender and incarnation for a message that its sender should not have sent.
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
        self._refused = refused
        self._buffers = buffers
        self._worker = worker
        self._parts = proposals
        self._layout = layout
        self._accumulator = accumulator
        self._gate = gate
        self._lock = threading.Lock()
        self._senders: dict[int, _Sender] = {}
        self._counts: Counter[str] = Counter()
        self._proposals: dict[int, tuple[str, str]] = {}
        # After a restart: per peer the number of its newest entry then.
        self._unread: dict[int, int] = {}

    def dropped(self) -> dict[str, int]:
        """How much was not applied, by reason, since the start."""
        with self._lock:
            return dict(self._counts)

    def count(self, reason: str, how_many: int = 1) -> None:
        with self._lock:
            self._counts[reason] += how_many

    def take_proposals(self) -> dict[int, tuple[str, str]]:
        """Peers that have asked for our state since the last call: their incarnation and the wish's token."""
        with self._lock:
            proposals, self._proposals = self._proposals, {}
            return proposals

    def expect_after(self, sender: int, cursor: Cursor) -> None:
        """What the cursor covers is known already; the rounds after it come next."""
        with self._lock:
            self._senders[sender] = _Sender(cursor.incarnation, cursor.round)

    def replay(self, newest: dict[int, int]) -> None:
        """Tell the gate when everything up to these entries of the peers' outboxes has been read."""
        with self._lock:
            self._unread = {peer: number for peer, number in newest.items() if number}
            self._gate.is_replaying = bool(self._unread)

    def _note_read(self, entry: Entry) -> None:
        if not entry.is_direct and entry.sequence >= self._unread.get(entry.sender, entry.sequence + 1):
            with self._lock:
                self._unread.pop(entry.sender, None)
                self._gate.is_replaying = bool(self._unread)

    def note_admitted(self, sender: int, incarnation: str) -> None:
        """This life of a peer has been given a state, so its wish to join is granted."""
        with self._lock:
            self._senders.setdefault(sender, _Sender()).admitted = incarnation

    def feed(self, entry: Entry, may_come_again: bool = False) -> bool:
        """Take one entry; never raises for what a peer can send.

        Args:
            may_come_again: it can be read once more.

        Returns:
            False if it changed on its way and should come again; nothing of it has been taken or counted then.
        """
        with self._lock:
            sender = self._senders.setdefault(entry.sender, _Sender())
            if sender.incarnation != entry.incarnation:
                sender.incarnation, sender.assemblers = entry.incarnation, {}
            assembler = sender.assemblers.get(entry.is_direct)
            if assembler is None or not entry.is_contiguous:
                assembler = sender.assemblers[entry.is_direct] = Assembler(self._layout, self._buffers)
        try:
            message = assembler.feed(entry)
        except MessageError as error:
            has_changed = not is_sound(entry)
            if has_changed and may_come_again:
                return False
            self.count(error.reason)
            # What changed on its way, or was trimmed before we came to read it, is not the sender's fault.
            if not has_changed and error.reason != "incomplete":
                self._refused(entry.sender, entry.incarnation)
            return True
        if message is not None:
            try:
                self._dispatch(sender, entry, message)
            except (KeyError, TypeError, ValueError, OverflowError):
                self.count("malformed")
                self._refused(entry.sender, entry.incarnation)
        if self._unread:
            self._note_read(entry)
        return True

    def _dispatch(self, sender: _Sender, entry: Entry, message: Message) -> None:
        peer, fields = entry.sender, message.fields
        match message.kind:
            case "part":
                self._take_part(sender, entry, message)
            case "state":
                self._gate.put_state(peer, message.round, message.values)
            case "hello":
                if fields["is_joining"]:
                    # Its old clock must hold nobody up while it asks one of us for a state. That one's `admit`
                    # may have been read first: different senders have no order between them.
                    if sender.admitted != entry.incarnation:
                        self._gate.drop(peer, "it was started again and asks for a state")
                elif not fields["is_replaying"]:
                    with self._lock:
                        sender.newest = message.round
                    self._gate.admit(peer, message.round)
            case "goodbye":
                self._gate.leave(peer)
            case "want":
                token = fields["token"]
                if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN:
                    raise ValueError("token")
                with self._lock:
                    self._proposals[peer] = (entry.incarnation, token)
            case "admit":
                other, incarnation = int(fields["worker"]), str(fields["incarnation"])
                if other != self._worker:
                    self._gate.admit(other, message.round)
                    self.note_admitted(other, incarnation)
            case "stop":
                self._gate.stop(message.round)

    def _take_part(self, sender: _Sender, entry: Entry, message: Message) -> None:
        with self._lock:
            # Without a cursor the peer is followed from wherever its stream still begins.
            newest = message.round - 1 if sender.newest is None else sender.newest
            sender.newest = max(newest, message.round)
        if message.round <= newest:
            self.count("replayed")
            return
        if message.round > newest + 1:
            self.count("overrun", message.round - newest - 1)
        contribution = Contribution(
            entry.sender,
            entry.incarnation,
            message.round,
            message.slice,
            message.values,
            message.last_sequence,
            message.extras,
            message.is_whole,
            message.squares,
        )
        self._accumulator.add(contribution)
        if self._parts is not None and "w" in message.extras:
            self._parts.note(entry.sender, message.round, message.extras["w"])
        self._gate.note(entry.sender, message.round)
