"""Rounds: publish, send, gather. The bus as modes with a leader need it; threads stay below this door.

    rounds.publish("round_start", t, {...})             one XADD, every worker reads it
    rounds.send(leader, "result", t, vector)            my stream for one peer
    rounds.gather("result", t, cohort, quorum)          until all live ones have answered, or the deadline
    rounds.put("m7", {...})  rounds.fetch(peer, ...)    whole models through the state hash, read on demand

One thread encodes and publishes, in the order of the calls, so a model is there before the announcement that points to
it. The reader threads read and decode. A message is kept until the mode asks for it (`peers.rounds.messages`).

What always holds: a gather ends, at the latest at its deadline; an answer counts in the round that it belongs to, or
is counted as late; a peer that is gone holds nobody up.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from peers.bus.door import Bus
from peers.codecs.base import Codec
from peers.codecs.exact import CODECS
from peers.errors import BusError, MessageError, PeersError, StalledError
from peers.rounds.deadline import Deadline
from peers.rounds.layout import ANNOUNCEMENTS, RoundLayout
from peers.rounds.leadership import Leadership
from peers.rounds.messages import TimedMessageStore
from peers.session import transfer
from peers.session.meet import Start
from peers.session.session import Session, names
from peers.types import Buffer, Received, Slice
from peers.vectors.reduce import norm
from peers.vectors.screen import Screen
from peers.wire.encode import encode_fields, encode_vector

Answer = TypeVar("Answer")

# Vectors that may wait in a stream for a slow reader, and small messages beside them.
KEPT_VECTORS = 3
KEPT_FIELDS = 64


@dataclass(frozen=True)
class Gathered:
    """The answers of a round.

    Attributes:
        answers: the vectors that may be used, our own included, in worker order.
        messages: all received answers, by sender, in worker order.
        missing: the senders that had not answered by the end.
        is_void: whether fewer answers than the quorum can be used.
    """

    answers: dict[int, np.ndarray]
    messages: dict[int, Received]
    missing: tuple[int, ...]
    is_void: bool


class Rounds:
    """One worker's part in a mode with rounds.

    Args:
        bus: our door; `claim` and `meet` of the rendezvous come before `start`.
        layout: the agreement of all workers.
        leadership: chooses the leader.
        deadline: of the gathers.
        lease_s, stall_timeout_s, finish_timeout_s: how long a lease lasts; how long a wait may take; how long the
            end of the others is awaited.
        log: called with one line for a person.
        min_peers: with fewer peers that are there, or have finished, this worker does not lead.
        screen: decides which answers are used; its memory is this worker's own, and begins anew with another leader.

    Attributes:
        messages: where the main thread waits.
    """

    def __init__(
        self,
        bus: Bus,
        layout: RoundLayout,
        leadership: Leadership,
        deadline: Deadline,
        lease_s: float,
        stall_timeout_s: float,
        finish_timeout_s: float,
        log: Callable[[str], None],
        min_peers: int = 0,
        screen: Screen | None = None,
    ):
        self._bus, self._layout, self._log = bus, layout, log
        self._screen = screen or Screen(bus.worker, log=log)
        self.leadership, self.deadline = leadership, deadline
        self.messages = TimedMessageStore(deadline, layout, stall_timeout_s, log)
        self.messages.refused = self._screen.note_refused
        self._session = Session(
            bus, layout, self.messages, self.messages, lease_s, stall_timeout_s, finish_timeout_s, log
        )
        self._is_caught_up, self._min_peers = True, min_peers
        bus.configure(kept_entries(layout), layout.largest_payload_bytes())

    @property
    def wait_s(self) -> float:
        """Seconds that the main thread has waited for the peers."""
        return self._session.wait_s

    # --- beginning and end --------------------------------------------------------------------

    def start(self, start: Start, round: int) -> None:
        """Follow the peers and say hello. A worker that joins counts as caught up only after `note_caught_up`."""
        self._is_caught_up = start.kind != "join"
        for peer, incarnation in start.incarnations.items():
            self._bus.follow(peer, incarnation)
            self.messages.begin_incarnation(peer, incarnation)
            self.messages.admit(peer)
        self._session.hello(round, is_joining=not self._is_caught_up)
        self._session.read(start.incarnations)

    def note_caught_up(self, round: int) -> None:
        """We have caught up: from now on we can lead."""
        self._is_caught_up = True
        self._session.hello(round, is_joining=False)

    def finish(self, round: int) -> None:
        """Say goodbye after a round, and wait until all peers have: our models stay readable until then."""
        self._session.finish(round, self.messages.live)

    def leave(self, round: int) -> None:
        """Say goodbye after a round, in the middle of the run."""
        self._session.leave(round)

    def close(self) -> None:
        """Stop the threads; the bus is the caller's to close."""
        self._session.close()

    # --- publishing ---------------------------------------------------------------------------

    def publish(
        self,
        kind: str,
        round: int,
        content: dict[str, Any] | np.ndarray,
        extras: dict[str, float] | None = None,
    ) -> None:
        """Publish a message for every worker: a small map, or a vector of the layout's size for its kind.

        Args:
            content: the sender thread reads a vector until `drain` or the end of the run: give a copy if it changes.
            extras: small numbers that go with a vector.
        """
        self._session.submit(lambda: self._bus.publish(self._entries(kind, round, content, extras)))

    def send(
        self,
        peer: int,
        kind: str,
        round: int,
        content: dict[str, Any] | np.ndarray,
        extras: dict[str, float] | None = None,
    ) -> None:
        """Send a message to one peer. Arguments as of `publish`."""
        self._session.submit(lambda: self._bus.send(peer, self._entries(kind, round, content, extras)))

    def _entries(
        self, kind: str, round: int, content: dict[str, Any] | np.ndarray, extras: dict[str, float] | None
    ) -> Iterable[tuple[bytes, Buffer]]:
        if isinstance(content, dict):
            return encode_fields(self._layout, kind, round, content)
        return encode_vector(self._layout, kind, round, Slice(0, content.size), content, extras=extras)

    def put(self, name: str, vectors: transfer.State, meta: dict[str, Any], codec: Codec = CODECS["raw"]) -> None:
        """Make vectors readable under a name, which is used once; later announcements may point to it."""

        def give() -> None:
            transfer.give(self._bus, transfer.fields_of(vectors, meta, name, codec), 2 * self._session.lease_s)

        self._session.submit(give)

    def forget(self, name: str, sizes: dict[str, int], codec: Codec = CODECS["raw"]) -> None:
        """Delete the vectors that were put under a name; arguments as of `put`."""
        fields = transfer.field_names(sizes, name, codec)
        self._session.submit(lambda: self._bus.delete_state(fields))

    def fetch(
        self, peer: int, incarnation: str, name: str, sizes: dict[str, int], codec: Codec = CODECS["raw"]
    ) -> tuple[transfer.State, dict[str, Any]]:
        """Vectors that a peer has put under a name, and the small map that goes with them.

        Args:
            sizes: number of values of each, by name; others are not read.
            codec: the codec with which they were put.

        Raises:
            StalledError, BusError, MessageError: the vectors are not there, cannot be read, or are damaged.
        """
        return self.ask(
            lambda: transfer.take(self._bus, peer, incarnation, name, sizes, 0.0, self.messages.check, codec),
            f"the state {name} of worker {peer}",
        )

    def ask(self, action: Callable[[], Answer], what: str) -> Answer:
        """Run an action on the sender thread, and wait for its answer.

        Raises:
            StalledError, BusError, MessageError: as the action does.
        """
        answers: list[Answer] = []
        errors: list[PeersError] = []

        def act() -> None:
            try:
                answers.append(action())
            except (StalledError, BusError, MessageError) as error:
                errors.append(error)
            self.messages.touch()

        self._session.submit(act)
        self.until(lambda: bool(answers or errors), lambda: what)
        if errors:
            raise errors[0]
        return answers[0]

    def drain(self) -> None:
        """Wait until every submitted message has been published.

        Raises:
            StalledError: some were not published within the stall timeout.
        """
        self._session.drain()

    # --- gathering ----------------------------------------------------------------------------

    def until(self, is_done: Callable[[], Any], describe: Callable[[], str], timeout_s: float | None = None) -> None:
        """Wait; the time counts as waiting. Raises as `Waiting.until`."""
        self._session.until(is_done, describe, timeout_s)

    def open(self, kind: str, round: int) -> None:
        """From now on answers of this kind and round are awaited: their time counts from here."""
        self.messages.open_round(kind, round)

    def gather(
        self,
        kind: str,
        round: int,
        senders: Collection[int],
        quorum: int,
        timeout_s: float,
        is_off: Callable[[], bool] = lambda: False,
        own: np.ndarray | None = None,
        read: Callable[[Received], np.ndarray] = lambda received: received.values,
        measure: Callable[[np.ndarray], float] = norm,
        incarnations: Mapping[int, str] = MappingProxyType({}),
    ) -> Gathered:
        """Wait for the answers of a round: until all senders that still live have answered, or the deadline.

        An answer that is not finite, or has a far larger norm than usual, is left out, counted and logged. An answer of
        another term than ours does not count.

        Args:
            senders: the workers that were asked, besides ourselves.
            quorum: with fewer answers, our own included, the round is void.
            timeout_s: from now.
            is_off: ends the wait when it becomes true.
            own: our own answer, if we have one.
            read: makes the vector of a message; a ValueError means that the message has none.
            measure: the norm that the screen compares; not finite for a vector that is not.
            incarnations: the incarnation in which each sender was asked, where it is known; a worker that has begun
                another since will not answer.
        """

        def found() -> dict[int, Received]:
            # A leader that was started again finds answers to its former incarnation, perhaps of the same round.
            term, kept = self.leadership.term, {x: self.messages.received(kind, x, round) for x in sorted(senders)}
            return {x: y for x, y in kept.items() if y and y.extras.get("term", term) == term}

        def missing() -> list[int]:
            # A peer that said goodbye after this round has answered, but its answer may still be on another stream.
            live, there = self.messages.reached(round), found()
            again = {
                sender
                for sender, incarnation in incarnations.items()
                if incarnation != self.messages.incarnation(sender)
            }
            return [sender for sender in sorted(senders) if sender in live - again and sender not in there]

        try:
            self.until(
                lambda: is_off() or not missing(),
                lambda: f"the {kind} {round} of workers {names(missing())}",
                timeout_s,
            )
        except StalledError:
            self._log(f"round {round}: no {kind} from workers {names(missing())} within {timeout_s:.1f} s")
        kept = found()
        self.messages.close_round(kind, round)
        for received in kept.values():
            self.messages.note_answer(kind, round, received.at_s)
        gone = tuple(sender for sender in sorted(senders) if sender not in kept)
        answers = {} if own is None else {self._bus.worker: own}
        for sender, received in kept.items():
            with contextlib.suppress(ValueError):
                answers[sender] = read(received)
        asked = sorted({*kept, *answers})
        terms = [kept.get(worker) or Received(kind, worker, "", round) for worker in asked]
        for term in terms:
            term.norm = measure(answers[term.sender]) if term.sender in answers else math.nan
        accepted = self._screen.usable(Slice(0, self._layout.kinds[kind][0]), terms)
        for term in terms:
            if term.sender not in accepted and not self._screen.is_banned(term.sender):
                why = "far larger than usual" if math.isfinite(term.norm) else "not finite"
                self._log(f"round {round}: the {kind} of worker {term.sender} is {why}; left out")
        answers = {worker: answers[worker] for worker in asked if worker in accepted}
        return Gathered(answers, kept, gone, len(answers) < quorum)

    # --- leadership ---------------------------------------------------------------------------

    def leader(self) -> int | None:
        """The leader now; notes the announcements that possible leaders have made since the last call."""
        for kind in ANNOUNCEMENTS:
            for sender, kept in self.messages.kept(kind).items():
                for received in kept:
                    self.leadership.note(sender, term_of(received))
        may_lead = self._is_caught_up and len(self.messages.reached(0)) >= self._min_peers
        return self.leadership.leader(self.messages.caught_up() | ({self._bus.worker} if may_lead else set()))

    def newest(self) -> tuple[int, Received] | None:
        """The newest announcement in force, and its sender; None where there is none."""
        self.leader()
        found = [
            (term_of(received), received.round, received.kind == "round_end", sender, received)
            for kind in ANNOUNCEMENTS
            for sender, kept in self.messages.kept(kind).items()
            for received in kept
            if self.is_in_force(sender, received)
        ]
        if not found:
            return None
        *_, sender, received = max(found, key=lambda item: item[:4])
        return sender, received

    def is_in_force(self, sender: int, received: Received) -> bool:
        """Whether an announcement is one of the leader that we follow, or of one with a better claim."""
        return self.leadership.is_in_force(sender, term_of(received))

    def stats(self) -> dict[str, Any]:
        """Since the start: bytes, seconds, unused messages; now: the number of live peers."""
        found = self._session.stats(len(self.messages.live()), self._screen, self.messages.counts())
        return found | {"staleness_mean": 0.0, "staleness_max": 0}


def kept_entries(layout: RoundLayout) -> int:
    """How many entries a stream keeps."""
    return KEPT_VECTORS * max((layout.entries(kind) for kind in layout.kinds), default=1) + KEPT_FIELDS


def term_of(received: Received) -> int:
    """The term of an announcement; -1, which no leader has, where the message has none."""
    term = received.fields.get("term")
    return term if isinstance(term, int) and 0 <= term < 2**48 else -1
