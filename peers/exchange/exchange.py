"""The exchange of a vector: a round is offered, awaited, collected. Threads stay below this door.

    values of round t -> offer(t): copy out one part -> wait until every member's clock >= t - slack -> collect

The exchange rule (`peers.exchange.gradients`, `peers.exchange.parameters`) decides which values leave and how they
enter. This file has the rounds, the bound, and how a worker begins, joins, helps others to join, and ends. The main
thread copies out and sums up; encoding, publishing, reading and decoding run beside it (`peers.session.session`).

With slack 0 every worker applies exactly the rounds up to t, summed in worker order, and the run is
bit-reproducible.

Sources: Ako (SoCC 2016, section 3) for partial exchange, Ho et al. (NIPS 2013) for the bound. The released
DEGAN reads and swaps its inbox without a lock, which loses and doubles gradients; here a contribution has
one owner at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from peers.bus.door import Bus
from peers.errors import MessageError
from peers.exchange.auto import AutoParts
from peers.exchange.factory import make_rule
from peers.exchange.gate import make_gate
from peers.exchange.inbox import Inbox
from peers.exchange.joining import Giver, Standing, ask, with_rule, without_rule
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.exchange.outbox import Outbox
from peers.exchange.publisher import Publisher
from peers.exchange.queued import queued_s
from peers.exchange.window import Accumulator
from peers.session.meet import Start
from peers.session.session import Session
from peers.session.transfer import State
from peers.types import Cursor, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from peers.wire.encode import encode_vector

Load = Callable[[State, dict[str, Any]], None]


class Exchange:
    """One worker's part in the exchange of a vector.

    Args:
        bus: our door; `claim` and `meet` of the rendezvous come before `start`.
        layout: the agreement of all workers; with several numbers of parts the workers choose one by themselves.
        initial: the vector with which every worker begins, float32 (size,); only the rule of parameters uses it.
        options: rule, bound, reduction and patience.
        log: called with one line for a person.

    Attributes:
        gate: where the main thread waits.
        exchange_s: seconds of the main thread's own work on the exchange: copy out, sum up, copy in.
    """

    def __init__(
        self, bus: Bus, layout: ExchangeLayout, initial: np.ndarray, options: Options, log: Callable[[str], None]
    ):
        self._bus, self._layout, self._options, self._log = bus, layout, options, log
        self._peers = tuple(sorted(peer for group in bus.servers for peer in group))
        self._schedule = layout.schedule
        self.gate = make_gate(options, self._peers, layout, log)
        self._auto = AutoParts(options.slack) if layout.parts else None
        self._buffers = BufferPool(2 * len(self._peers) + 4)
        self._rule = make_rule(options, bus.worker, layout, initial, self._buffers, log)
        self._accumulator = Accumulator()
        refuse = self._rule.screen.note_refused
        self._inbox = Inbox(bus.worker, layout, self._accumulator, self.gate, self._auto, self._buffers, refuse)
        lease_s, stall_s, finish_s = options.lease_s, options.stall_timeout_s, options.finish_timeout_s
        self._session = Session(bus, layout, self._inbox, self.gate, lease_s, stall_s, finish_s, log)
        self._giver = Giver(bus, self._session, self._inbox, self.gate, lease_s)
        self._publisher = Publisher(
            bus, self._session, self.gate, self._giver, self._rule.encoder, self._buffers, options
        )
        self._round = 0
        # How far each peer's messages have been applied.
        self._taken: dict[int, Cursor] = {}
        self.exchange_s = self._computed_s = 0.0
        self._left_at = time.monotonic()
        self._staleness: list[int] = []
        outbox = Outbox(options, layout)
        bus.configure(outbox.entries, outbox.payload_bytes, outbox.least_entries)

    @property
    def wait_s(self) -> float:
        """Seconds that the main thread has waited for the peers."""
        return self._session.wait_s

    # --- beginning ----------------------------------------------------------------------------

    def start(self, start: Start, round: int, sizes: dict[str, int] | None = None, load: Load | None = None) -> int:
        """Follow the peers and say hello; returns the round after which this worker goes on.

        After `start` the worker stands at one round with a cursor into every peer's stream: at the beginning
        of the streams, where its own checkpoint left them, or where the state of a helper left them.

        Args:
            start: the result of the rendezvous.
            round: the round that the loaded checkpoint ended with; 0 for the beginning.
            sizes: for a join, number of values of the helper's vectors by name.
            load: for a join, called with the helper's vectors and values.

        Raises:
            StalledError, BusError, MessageError: for a join, the helper's state did not come; meet again.
        """
        self._round = round
        is_joining = start.kind == "join"
        self._rule.begin(round)
        self._session.hello(round, is_joining, start.kind == "replay")
        if is_joining:
            self._join(start, sizes or {}, load)
        elif start.kind == "together" or not self._taken:
            self._taken = {peer: Cursor(incarnation, round, 0) for peer, incarnation in start.incarnations.items()}
        for peer, cursor in self._taken.items():
            self._bus.follow(peer, cursor.incarnation, cursor.sequence)
            self._inbox.expect_after(peer, cursor)
            self.gate.admit(peer, cursor.round)
        known = {peer: cursor.incarnation for peer, cursor in self._taken.items()}
        if start.kind == "replay":
            self._inbox.replay({peer: self._bus.newest(peer, incarnation) for peer, incarnation in known.items()})
        self._session.read(known)
        if is_joining:
            self._session.hello(self._round, is_joining=False)
        return self._round

    def _join(self, start: Start, sizes: dict[str, int], load: Load | None) -> None:
        """Ask the helper for its state, and take over its weights, its round and its cursors."""
        assert start.helper is not None and load is not None, "a join has a helper and somewhere to put its state"
        helper, incarnation = start.helper, start.incarnations[start.helper]
        self._log(f"the others are training; asking worker {helper} for its state")
        sizes = with_rule(sizes, self._rule.shared_sizes())
        vectors, meta = ask(self._bus, self._session, self.gate.check, (helper, incarnation), sizes)
        try:
            found = Standing.from_plain(meta, helper, incarnation, self._bus.worker)
            self._round, self._taken = found.round, found.cursors
            if found.stop_at is not None:
                self.gate.stop(found.stop_at)
            self._load_parts(found.parts)
            own, shared = without_rule(vectors)
            self._rule.load_shared(shared, found.rule, helper, found.round, found.applied)
            load(own, found.values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MessageError("malformed", f"the state of worker {helper}: {error}") from None
        self._log(f"took the state of worker {helper} at round {self._round}")

    def serve(self, make_state: Callable[[], tuple[State, dict[str, Any]]]) -> None:
        """Between two steps: give our state to the peers that have asked for it, and await them from now on.

        Args:
            make_state: returns float32 vectors by name, which are ours to keep, and a small map of values.
        """

        def make(peer: int) -> tuple[State, dict[str, Any]]:
            vectors, values = make_state()
            shared, small = self._rule.shared()
            members = self.gate.members()
            cursors = {p: cursor for p, cursor in self._taken.items() if p in members and p != peer}
            applied = self._rule.applied(self._round)
            standing = Standing(self._round, applied, values, small, self.gate.stop_at, cursors, self._parts_plain())
            return with_rule(vectors, shared), standing.to_plain()

        self._giver.serve(self._round, make)

    # --- one round ----------------------------------------------------------------------------

    def exchange(self, values: np.ndarray, is_sync_point: Callable[[], bool] = lambda: False) -> np.ndarray:
        """One round: publish a part of the values, apply the received messages, change the values and return them.

        Args:
            values: float32 (size,): the gradient, or the parameters after this worker's own step. Changed in place.
            is_sync_point: asked once the bound is passed; True waits for every member to be at this very round, so
                that a checkpoint taken now has nothing in flight.
        """
        began, waited_s = time.monotonic(), self.wait_s
        self._computed_s += began - self._left_at
        self._round += 1
        round = self._round
        self._offer(round, values)
        values = self._collect(*self._await(round, is_sync_point), values)
        if self._auto is not None:
            self._decide_parts(self._auto, round)
        self._left_at = time.monotonic()
        self.exchange_s += self._left_at - began - (self.wait_s - waited_s)
        return values

    def _offer(self, round: int, values: np.ndarray) -> None:
        leaving = self._rule.offer(round, self._schedule.slice(round), values)
        extras: dict[str, float] = {}
        if self._auto is not None:
            extras = {"p": float(self._schedule.parts), "w": float(self._auto.proposal)}
            self._auto.note(self._bus.worker, round, self._auto.proposal)
        self._publisher.submit(leaving, extras)

    def _await(self, round: int, is_sync_point: Callable[[], bool]) -> tuple[int, int]:
        """Wait under the bound; returns the round through which to collect, and how many peers share a mean."""
        with self._session.waiting():
            sharers = self.gate.wait(round)
            is_synchronous = self._options.slack is not None and is_sync_point()
            if is_synchronous:
                sharers = self.gate.wait(round, slack=0)
            through = self._rule.through(round, is_synchronous)
            self.gate.until(
                lambda: not self._publisher.has_lent and self._rule.is_ready(through),
                lambda: f"our own round {self._round} to be published",
            )
        return through, len(sharers)

    def _collect(self, through: int, sharers: int, values: np.ndarray) -> np.ndarray:
        self.gate.check()
        items = self._accumulator.take(through)
        for item in items:
            self._staleness.append(max(0, self._round - item.round))
            self._taken[item.sender] = Cursor(item.incarnation, item.round, item.last_sequence)
        values = self._rule.collect(through, values, items, sharers)
        for item in items:
            self._buffers.give(item.values)
        return values

    def _decide_parts(self, auto: AutoParts, step: int) -> None:
        """Measure the step that ends here, and change the number of parts where all workers do."""
        busy_s = self._bus.read_busy_s, self._bus.publish_busy_s
        auto.measure(self._schedule, self._computed_s, queued_s(), *busy_s, time.monotonic())
        if (schedule := auto.decide(self._schedule, step)) is not self._schedule:
            self._log(f"parts {self._schedule.parts} -> {schedule.parts} after step {step}")
            self._reschedule(schedule)

    def _reschedule(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._rule.reschedule(schedule)

    def _parts_plain(self) -> dict[str, Any]:
        return {} if self._auto is None else self._auto.to_plain(self._schedule)

    def _load_parts(self, plain: dict[str, Any]) -> None:
        if self._auto is not None:
            self._reschedule(self._auto.load_plain(plain, self._schedule))

    def average(self, values: np.ndarray) -> np.ndarray:
        """The mean over the members of small vectors that belong to this round (BatchNorm statistics).

        Args:
            values: float32 (layout.state_size,).
        """
        if not values.size:
            return values
        copy, round, whole = values.copy(), self._round, Slice(0, values.size)
        self._session.submit(lambda: self._bus.publish(encode_vector(self._layout, "state", round, whole, copy)))
        with self._session.waiting():
            states = self.gate.wait_states(round)
        states[self._bus.worker] = copy
        total: Any = sum(states[worker] for worker in sorted(states))
        return np.asarray(total / np.float32(len(states)), np.float32)

    def ask_to_stop(self, step: int) -> None:
        """All workers stop together after the first step that every worker can still reach."""
        at = step + 1 + (self._options.slack or 0)
        self.gate.stop(at)
        self._session.publish("stop", at, {})

    # --- the end ------------------------------------------------------------------------------

    def finish(self, values: np.ndarray) -> np.ndarray | None:
        """Publish our rest, collect the rest of the peers; returns values that are still to be applied, or loaded.

        Waits for the members to finish as well, at most `finish_timeout_s`; messages that did not come by then are
        counted as `unfinished`.

        Args:
            values: zeros for gradients, or the present parameters; float32 (size,), changed in place.

        Returns:
            The values, or None where nothing was left.
        """
        self._flush(values)
        last = self._round
        missing = self._session.finish(last, lambda: self.gate.unfinished(last))
        if missing:
            self._inbox.count("unfinished", missing)
        has_any = self._accumulator.has_any()
        values = self._collect(self._rule.through(last, True), len(self.gate.sharers(last)), values)
        return values if self._rule.has_rest() or has_any else None

    def leave(self, is_resumable: bool = False) -> None:
        """Say goodbye in the middle of the run.

        Args:
            is_resumable: all stop together and go on from here, so the window stays as it is; otherwise the rest
                of the window is sent, because the peers go on without us.
        """
        if not is_resumable and self._options.exchange == "gradients":
            self._flush(np.zeros(self._schedule.size, np.float32))
        self._session.leave(self._round)

    def _flush(self, values: np.ndarray) -> None:
        """Publish every part that may still have values to send."""
        for _ in range(self._rule.begin_flush()):
            self._round += 1
            self._offer(self._round, values)

    def close(self) -> None:
        """Stop the threads; the bus is the caller's to close."""
        self._session.close()

    # --- state and statistics -----------------------------------------------------------------

    def state(self) -> tuple[State, dict[str, Any]]:
        """For a checkpoint: window and error feedback (our unsent values), and cursors (the peers' applied rounds)."""
        self._session.drain()
        arrays, values = self._rule.state()
        followed = {str(peer): cursor.to_plain() for peer, cursor in self._taken.items()}
        return arrays, {"followed": followed, "rule": values, "parts": self._parts_plain()}

    def load_state(self, arrays: State, values: dict[str, Any]) -> None:
        """The inverse of `state`; before `start`."""
        self._load_parts(values["parts"])
        self._rule.load_state(arrays, values["rule"])
        self._taken = {int(peer): Cursor.from_plain(plain) for peer, plain in values["followed"].items()}

    def stats(self) -> dict[str, Any]:
        """Since the last call: staleness in steps; now: parts; since the start: bytes, seconds, dropped messages."""
        staleness, self._staleness = self._staleness, []
        found = self._session.stats(len(self.gate.members()), self._rule.screen, self._inbox.dropped())
        return found | {
            "staleness_mean": sum(staleness) / len(staleness) if staleness else 0.0,
            "staleness_max": max(staleness, default=0),
            "parts": self._schedule.parts,
            "exchange_s": self.exchange_s,
        }
