"""The received messages of a mode with rounds, kept by kind and sender until the main thread asks for them.

The reader threads call `feed`, `admit` and `drop`; the main thread waits here. Of each kind and sender the newest few
messages are kept, so memory is bounded however many a peer sends. A message of a round that was closed already is
late: it is counted, and dropped.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from peers.rounds.deadline import Deadline
from peers.session.decode import Decoder
from peers.session.waiting import Waiting
from peers.types import Received
from peers.wire.layout import Layout

KEPT = 4
# Rounds whose beginning is remembered, to measure how late an answer is.
REMEMBERED = 16


class MessageStore(Waiting, Decoder):
    """The messages of the peers, and the peers that are there.

    Args:
        layout: the layout that every message must fit.
        stall_timeout_s, log, now: as of `Waiting`.

    Attributes:
        refused: called with sender and incarnation for an entry that its sender should not have sent.
    """

    def __init__(
        self,
        layout: Layout,
        stall_timeout_s: float,
        log: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ):
        Waiting.__init__(self, stall_timeout_s, log, now)
        Decoder.__init__(self, layout, lambda sender, incarnation: None)
        self._kept: dict[tuple[str, int], deque[Received]] = {}
        self._closed: dict[str, int] = {}
        self._live: set[int] = set()
        self._catching_up: set[int] = set()
        # The peers that have said goodbye, and after which round.
        self._left: dict[int, int] = {}
        self._counts: Counter[str] = Counter()

    # --- called by the reader threads ------------------------------------------------------------------

    def accept(self, received: Received) -> None:
        sender = received.sender
        with self._changed:
            if received.kind == "hello":
                if received.fields["is_joining"]:
                    self._catching_up.add(sender)
                else:
                    self._catching_up.discard(sender)
                self._admit(sender)
            elif received.kind == "goodbye":
                self._left[sender] = received.round
                self._live.discard(sender)
                self._log(f"worker {sender} has said goodbye")
            elif received.round <= self._closed.get(received.kind, -1):
                self._counts["late"] += 1
                self._note_late(received.kind, received.round)
            else:
                kept = self._kept.setdefault((received.kind, sender), deque(maxlen=KEPT))
                received.at_s = self._now()
                kept.append(received)
            self._changed.notify_all()

    def _note_late(self, kind: str, round: int) -> None:
        """A message of a closed round has come; a store that measures how long answers take overrides this."""

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
        """The peer was started again: until its hello it is there, but neither leads nor can be asked."""
        with self._changed:
            self.begin_incarnation(peer, incarnation)
            self._catching_up.add(peer)
            self._changed.notify_all()

    def drop(self, peer: int, reason: str) -> None:
        """The peer is gone; logged once, and not for a peer that has said goodbye."""
        with self._changed:
            was_there = peer in self._live
            self._live.discard(peer)
            self._changed.notify_all()
        if was_there:
            self._log(f"worker {peer} is gone: {reason}; going on without it")

    def is_member(self, peer: int) -> bool:
        with self._changed:
            return peer in self._live

    def count(self, reason: str, how_many: int = 1) -> None:
        with self._changed:
            self._counts[reason] += how_many

    # --- called by the main thread ------------------------------------------------------------

    def live(self) -> frozenset[int]:
        """The peers that are there and have not said goodbye."""
        with self._changed:
            return frozenset(self._live)

    def caught_up(self) -> frozenset[int]:
        """The live peers without those that are still catching up after a start in the middle of the run."""
        with self._changed:
            return frozenset(self._live - self._catching_up)

    def incarnation(self, peer: int) -> str | None:
        """The newest incarnation of a peer that we know of; None before we know any."""
        return self.incarnations().get(peer)

    def reached(self, round: int) -> frozenset[int]:
        """The peers that are there, and those that said goodbye after this round or a later one."""
        with self._changed:
            return frozenset(self._live | {peer for peer, last in self._left.items() if last >= round})

    def counts(self) -> dict[str, int]:
        """How many messages were not used, by reason, since the start."""
        with self._changed:
            return dict(self._counts)

    def received(self, kind: str, sender: int, round: int | None = None) -> Received | None:
        """The newest message of a kind from a sender, or the one of a round."""
        with self._changed:
            kept = self._kept.get((kind, sender), ())
            return next((x for x in reversed(kept) if round is None or x.round == round), None)

    def kept(self, kind: str) -> dict[int, list[Received]]:
        """All kept messages of a kind, by sender, oldest first."""
        with self._changed:
            return {sender: list(kept) for (name, sender), kept in self._kept.items() if name == kind}

    def close_round(self, kind: str, round: int) -> None:
        """Messages of this kind and round, or an earlier one, count as late from now on."""
        with self._changed:
            self._closed[kind] = max(round, self._closed.get(kind, -1))
            for (name, _), kept in self._kept.items():
                if name == kind:
                    late = [received for received in kept if received.round <= round]
                    for received in late:
                        kept.remove(received)

    def take(self, kind: str, sender: int) -> Received | None:
        """The newest message of a kind from a sender; it and older ones are then no longer kept."""
        with self._changed:
            kept = self._kept.pop((kind, sender), None)
            return kept[-1] if kept else None


class TimedMessageStore(MessageStore):
    """A message store that remembers since when a round is awaited, so that late answers count for the deadline."""

    def __init__(
        self,
        deadline: Deadline,
        layout: Layout,
        stall_timeout_s: float,
        log: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__(layout, stall_timeout_s, log, now)
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
