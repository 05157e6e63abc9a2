"""What the peers have said, kept by kind and sender until the main thread asks for it, and who is alive.

The pumps call `feed`, `admit` and `drop`; the main thread waits here. Of each kind and sender the newest few
messages are kept, so memory is bounded whatever a peer sends. A message of a round that was closed already is
late: counted, and dropped.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from peers.errors import MessageError
from peers.rounds.deadline import Deadline
from peers.session.waiting import Waiting
from peers.types import Entry, Message
from peers.wire.assembler import Assembler
from peers.wire.message import RoundLayout, is_sound

KEPT = 4
# Rounds whose beginning is remembered, to tell how late an answer is.
REMEMBERED = 16


class Received(NamedTuple):
    """A message, in which life its sender said it, and when it came (seconds, monotonic)."""

    message: Message
    incarnation: str
    at_s: float


class MessageStore(Waiting):
    """Where a worker's mail of a mode with rounds is opened and kept.

    Args:
        layout: what every message must fit.
        stall_timeout_s, say, now: as of `Waiting`.

    Attributes:
        refused: called with sender and incarnation for a message that its sender should not have sent.
    """

    def __init__(
        self,
        layout: RoundLayout,
        stall_timeout_s: float,
        log: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__(stall_timeout_s, log, now)
        self.refused: Callable[[int, str], None] = lambda sender, incarnation: None
        self._layout = layout
        self._incarnations: dict[int, str] = {}
        self._assemblers: dict[tuple[int, bool], Assembler] = {}
        # Streams of which the beginning is gone: what is cut off there is no fault.
        self._torn: set[tuple[int, bool]] = set()
        # Streams of whose newest message a part has changed on its way.
        self._damaged: set[tuple[int, bool]] = set()
        self._kept: dict[tuple[str, int], deque[Received]] = {}
        self._closed: dict[str, int] = {}
        self._live: set[int] = set()
        self._catching_up: set[int] = set()
        # Who has said goodbye, and after which round.
        self._left: dict[int, int] = {}
        self._counts: Counter[str] = Counter()

    # --- called by the pumps ------------------------------------------------------------------

    def feed(self, entry: Entry, may_come_again: bool = False) -> bool:
        """Take one entry; as `peers.exchange.inbox.Inbox.feed`."""
        stream = entry.sender, entry.is_direct
        if self._incarnations.get(entry.sender) != entry.incarnation:
            self.begin_incarnation(entry.sender, entry.incarnation)
        if stream not in self._assemblers or not entry.is_contiguous:
            self._assemblers[stream] = Assembler(self._layout)
            if not entry.is_contiguous:
                self._torn.add(stream)
        try:
            message = self._assemblers[stream].feed(entry)
        except MessageError as error:
            has_changed = not is_sound(entry)
            if has_changed and may_come_again:
                return False
            if has_changed:
                self._damaged.add(stream)
            if error.reason != "incomplete" or stream not in self._torn:
                self.count(error.reason)
                # What follows of a message of which a part was damaged is no fault of the sender's either.
                if not has_changed and (error.reason != "incomplete" or stream not in self._damaged):
                    self.refused(entry.sender, entry.incarnation)
            return True
        if message is None:
            return True
        self._torn.discard(stream)
        self._damaged.discard(stream)
        try:
            self._take(entry, message)
        except (KeyError, TypeError, ValueError, OverflowError):
            self.count("malformed")
            self.refused(entry.sender, entry.incarnation)
        return True

    def begin_incarnation(self, sender: int, incarnation: str) -> None:
        """What this peer says from now on it says in this life."""
        with self._changed:
            self._incarnations[sender] = incarnation
            for is_direct in (False, True):
                self._assemblers.pop((sender, is_direct), None)
                # A stream that we follow late has lost its beginning.
                self._torn.add((sender, is_direct))

    def _take(self, entry: Entry, message: Message) -> None:
        sender = entry.sender
        with self._changed:
            if message.kind == "hello":
                (self._catching_up.add if message.fields["is_joining"] else self._catching_up.discard)(sender)
                self._admit(sender)
            elif message.kind == "goodbye":
                self._left[sender] = message.round
                self._live.discard(sender)
                self._log(f"worker {sender} has said goodbye")
            elif message.round <= self._closed.get(message.kind, -1):
                self._counts["late"] += 1
                self._note_late(message.kind, message.round)
            else:
                kept = self._kept.setdefault((message.kind, sender), deque(maxlen=KEPT))
                kept.append(Received(message, entry.incarnation, self._now()))
            self._changed.notify_all()

    def _note_late(self, kind: str, round: int) -> None:
        """For who measures how long answers take."""

    def _admit(self, peer: int) -> None:
        if peer not in self._live:
            self._live.add(peer)
            self._left.pop(peer, None)
            self._log(f"worker {peer} takes part")
        self._changed.notify_all()

    def admit(self, peer: int) -> None:
        """The peer is there (again)."""
        with self._changed:
            if peer not in self._left:
                self._admit(peer)

    def returned(self, peer: int) -> None:
        """The same incarnation of the peer is there again."""
        self.admit(peer)

    def restarted(self, peer: int, incarnation: str) -> None:
        """The peer was started again: until it says more it is there, and neither leads nor can be asked."""
        with self._changed:
            self.begin_incarnation(peer, incarnation)
            self._catching_up.add(peer)
            self._changed.notify_all()

    def drop(self, peer: int, reason: str) -> None:
        """The peer is gone; said once, and not of one that has said goodbye."""
        with self._changed:
            was_there = peer in self._live
            self._live.discard(peer)
            self._changed.notify_all()
        if was_there:
            self._log(f"worker {peer} is gone: {reason}; going on without it")

    def is_member(self, peer: int) -> bool:
        with self._changed:
            return peer in self._live

    def count(self, reason: str) -> None:
        with self._changed:
            self._counts[reason] += 1

    # --- called by the main thread ------------------------------------------------------------

    def live(self) -> frozenset[int]:
        """The peers that are there and have not said goodbye."""
        with self._changed:
            return frozenset(self._live)

    def caught_up(self) -> frozenset[int]:
        """The live peers that are not still catching up after a start in the middle."""
        with self._changed:
            return frozenset(self._live - self._catching_up)

    def incarnation(self, peer: int) -> str | None:
        """The newest incarnation of a peer that we have heard of; None before we have."""
        with self._changed:
            return self._incarnations.get(peer)

    def incarnations(self) -> dict[int, str]:
        """The newest incarnation of each peer."""
        with self._changed:
            return dict(self._incarnations)

    def reached(self, round: int) -> frozenset[int]:
        """The peers that are there, and those that said goodbye after this round or a later one."""
        with self._changed:
            return frozenset(self._live | {peer for peer, last in self._left.items() if last >= round})

    def counts(self) -> dict[str, int]:
        """What was not used, by reason, since the start."""
        with self._changed:
            return dict(self._counts)

    def received(self, kind: str, sender: int, round: int | None = None) -> Received | None:
        """The newest message of a kind from a sender, or the one of a round."""
        with self._changed:
            kept = self._kept.get((kind, sender), ())
            return next((x for x in reversed(kept) if round is None or x.message.round == round), None)

    def kept(self, kind: str) -> dict[int, list[Received]]:
        """Everything that is kept of a kind, by sender, oldest first."""
        with self._changed:
            return {sender: list(kept) for (name, sender), kept in self._kept.items() if name == kind}

    def close_round(self, kind: str, round: int) -> None:
        """Messages of this kind and round, or an earlier one, are no longer wanted."""
        with self._changed:
            self._closed[kind] = max(round, self._closed.get(kind, -1))
            for (name, _), kept in self._kept.items():
                if name == kind:
                    late = [received for received in kept if received.message.round <= round]
                    for received in late:
                        kept.remove(received)

    def take(self, kind: str, sender: int) -> Received | None:
        """The newest message of a kind from a sender, which is then no longer kept; older ones go too."""
        with self._changed:
            kept = self._kept.pop((kind, sender), None)
            return kept[-1] if kept else None


class TimedMessageStore(MessageStore):
    """A mailbox that knows since when a kind and round are awaited, so that late answers count for the deadline."""

    def __init__(self, deadline: Deadline, *rest: Any):
        super().__init__(*rest)
        self._deadline = deadline
        self._since: dict[tuple[str, int], float] = {}

    def open_round(self, kind: str, round: int) -> None:
        with self._changed:
            self._since[kind, round] = self._now()
            for old in sorted(self._since, key=self._since.__getitem__)[:-REMEMBERED]:
                del self._since[old]

    def note_answer(self, kind: str, round: int, at_s: float) -> None:
        with self._changed:
            if (kind, round) in self._since:
                self._deadline.note(at_s - self._since[kind, round])

    def _note_late(self, kind: str, round: int) -> None:
        self.note_answer(kind, round, self._now())
