"""From entries to contributions and clocks: one peer's entries in, in order; nothing lost unseen.

A round of a peer counts once: what it says again after a restart (`replayed`) is not applied a
second time; what it says while nobody awaits it (`late`), what does not fit (`malformed`,
`checksum`, ...), and rounds that were gone before they were read (`overrun`) are counted by reason.
A contribution is in the accumulator before its clock is noted, so whoever passes the gate has it.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from peers.errors import MessageError
from peers.gate import ClockGate
from peers.message import Assembler, Layout
from peers.types import Entry, Message
from peers.window import Accumulator, Contribution


@dataclass
class _Sender:
    incarnation: str = ""
    newest: int | None = None
    assemblers: dict[bool, Assembler] = field(default_factory=dict)


class Inbox:
    """Where a worker's mail is opened. `feed` runs on the pool, in order per sender.

    Args:
        worker: our number.
        layout: what every message must fit.
        accumulator: takes the contributions.
        gate: takes clocks, membership, states and stop wishes.
    """

    def __init__(self, worker: int, layout: Layout, accumulator: Accumulator, gate: ClockGate):
        self._worker = worker
        self._layout = layout
        self._accumulator = accumulator
        self._gate = gate
        self._lock = threading.Lock()
        self._senders: dict[int, _Sender] = {}
        self._counts: Counter[str] = Counter()
        self._wishes: dict[int, str] = {}

    def dropped(self) -> dict[str, int]:
        """How much was not applied, by reason, since the start."""
        with self._lock:
            return dict(self._counts)

    def count(self, reason: str, how_many: int = 1) -> None:
        with self._lock:
            self._counts[reason] += how_many

    def take_wishes(self) -> dict[int, str]:
        """Peers (and their incarnations) that have asked this worker for its state since the last call."""
        with self._lock:
            wishes, self._wishes = self._wishes, {}
            return wishes

    def expect_after(self, sender: int, incarnation: str, round: int | None) -> None:
        """The next round to come from this life of a sender is the one after `round`; None: whatever comes."""
        with self._lock:
            self._senders[sender] = _Sender(incarnation, round)

    def expect_more_than(self, sender: int, round: int) -> None:
        """What a sender said up to `round` is known already; count what is missing between that and what came."""
        first = self._accumulator.first(sender)
        with self._lock:
            state = self._senders.setdefault(sender, _Sender())
            if first is not None and first > round + 1:
                self._counts["overrun"] += first - round - 1
            state.newest = max(state.newest or 0, round)

    def newest(self, sender: int) -> int:
        """The newest round received from a sender, 0 if none."""
        with self._lock:
            state = self._senders.get(sender)
            return (state.newest or 0) if state else 0

    def feed(self, entry: Entry) -> None:
        """Take one entry; never raises for what a peer can send."""
        with self._lock:
            sender = self._senders.setdefault(entry.sender, _Sender())
            if sender.incarnation != entry.incarnation:
                sender.incarnation, sender.assemblers = entry.incarnation, {}
            assembler = sender.assemblers.get(entry.is_direct)
            if assembler is None or not entry.is_contiguous:
                assembler = sender.assemblers[entry.is_direct] = Assembler(self._layout)
        try:
            message = assembler.feed(entry)
        except MessageError as error:
            self.count(error.reason)
            return
        if message is None:
            return
        try:
            self._dispatch(sender, entry, message)
        except (KeyError, TypeError, ValueError):
            self.count("malformed")

    def _dispatch(self, sender: _Sender, entry: Entry, message: Message) -> None:
        peer, fields = entry.sender, message.fields
        match message.kind:
            case "part":
                self._take_part(sender, entry, message)
            case "state":
                self._gate.put_state(peer, message.round, message.values)
            case "hello":
                if fields["is_joining"]:
                    # Its old clock must hold nobody up while it asks one of us for a state.
                    self._gate.drop(peer, "it was started again and asks for a state")
                elif not fields["is_replaying"]:
                    with self._lock:
                        sender.newest = message.round
                    self._gate.admit(peer, message.round)
            case "goodbye":
                self._gate.leave(peer)
            case "want":
                with self._lock:
                    self._wishes[peer] = entry.incarnation
            case "admit":
                other = int(fields["worker"])
                if other != self._worker:
                    self._gate.admit(other, message.round)
            case "stop":
                self._gate.stop(message.round)

    def _take_part(self, sender: _Sender, entry: Entry, message: Message) -> None:
        with self._lock:
            newest, is_old = sender.newest, sender.newest is not None and message.round <= sender.newest
            if not is_old:
                sender.newest = message.round
        if is_old:
            self.count("replayed")
            return
        if newest is not None and message.round > newest + 1:
            self.count("overrun", message.round - newest - 1)
        contribution = Contribution(
            entry.sender, entry.incarnation, message.round, message.slice, message.values, message.last_sequence
        )
        self._accumulator.add(contribution)
        self._gate.note(entry.sender, message.round)
