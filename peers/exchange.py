"""Partial exchange: a round is offered, awaited, collected. Threads stay below this door.

    gradient of step t -> push, offer(t) -> wait until every member's clock >= t - slack -> collect

What always holds (conservation): everything pushed leaves exactly once; what a lossy codec drops
stays behind as error feedback; so after `finish`, for every worker, delivered + kept = produced.
With slack 0 every worker applies exactly the rounds up to t, summed in worker order, and the run
is bit-reproducible.

Sources: Ako (SoCC 2016, section 3) for partial gradients, Ho et al. (NIPS 2013) for the bound. The
released DEGAN reads and swaps its inbox without a lock, which loses and doubles gradients; here a
contribution has one owner at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from peers import transfer
from peers.bus import Bus
from peers.clock import SspClock
from peers.errors import MessageError, StalledError
from peers.gate import ClockGate, failed
from peers.inbox import Inbox
from peers.lossy import ErrorFeedback
from peers.message import MAX_ROUND, Layout, encode_fields, encode_vector
from peers.pool import SerialPool
from peers.pump import Pump
from peers.rendezvous import Start
from peers.transfer import State
from peers.types import Cursor, Slice
from peers.window import Accumulator, Contribution, GradientWindow

OUT = ("out",)

Load = Callable[[State, dict[str, Any]], None]


@dataclass(frozen=True)
class Rules:
    """How an exchange behaves. Times in seconds.

    Attributes:
        slack: the staleness bound in steps; None for none.
        reduce: mean (of the members) or sum.
        keep_rounds: how many rounds an outbox keeps for those who lag or replay.
        cut_periods: steps between the `state` messages, for sizing the outbox.
        lease_s, stall_timeout_s, finish_timeout_s: as in the settings.
        pool_threads: threads that decode, accumulate, encode and publish.
    """

    slack: int | None = 2
    reduce: str = "mean"
    keep_rounds: int = 64
    cut_periods: tuple[int, ...] = ()
    lease_s: float = 30.0
    stall_timeout_s: float = 600.0
    finish_timeout_s: float = 60.0
    pool_threads: int = 2


class Exchange:
    """One worker's part in the exchange of a vector.

    Args:
        bus: our door; `claim` and `meet` of the rendezvous come before `start`.
        layout: what all workers agree on.
        size: number of values in the vector.
        rules: bound, reduction and patience.
        say: called with one line for a person.
    """

    def __init__(self, bus: Bus, layout: Layout, size: int, rules: Rules, say: Callable[[str], None]):
        self._bus, self._layout, self._rules, self._say = bus, layout, rules, say
        self._peers = tuple(sorted(peer for group in bus.servers for peer in group))
        rounds = layout.schedule.rounds_per_step
        slack = None if rules.slack is None else rules.slack * rounds
        self.gate = ClockGate(SspClock(self._peers, slack), rules.stall_timeout_s, say)
        self._window = GradientWindow(size)
        self._lossy = ErrorFeedback(layout.codec, size)
        self._accumulator = Accumulator()
        self._inbox = Inbox(bus.worker, layout, self._accumulator, self.gate)
        self._pool = SerialPool(rules.pool_threads, lambda error: self.gate.fail(failed(error, "exchanging")))
        self._pumps: list[Pump] = []
        # States that were given to joiners: until when they stay, and their fields.
        self._given: list[tuple[float, list[str]]] = []
        self._round = 0
        # What has been applied of every peer.
        self._taken: dict[int, Cursor] = {}
        self.wait_s = 0.0
        self._staleness: list[int] = []
        keep = rules.keep_rounds
        states = sum(keep // (period * rounds) + 2 for period in rules.cut_periods)
        self.outbox_entries = keep * layout.entries_per_round() + states * layout.entries_per_state() + 16
        bus.configure(self.outbox_entries, layout.largest_payload_bytes())

    # --- beginning ----------------------------------------------------------------------------

    def start(self, start: Start, round: int, sizes: dict[str, int] | None = None, load: Load | None = None) -> int:
        """Follow the peers and say hello; returns the round after which this worker goes on.

        However it begins, it then stands at one round with a cursor into every peer's stream: at the beginning
        of the streams, where its own checkpoint left them, or where the state of a helper left them.

        Args:
            start: what the rendezvous found.
            round: the round that the loaded checkpoint ended with; 0 for the beginning.
            sizes: for a join, number of values of the helper's vectors by name.
            load: for a join, called with the helper's vectors and values.

        Raises:
            StalledError, BusError, MessageError: for a join, the helper's state did not come; meet again.
        """
        self._round = round
        newest = self._layout.schedule.newest_rounds(round)
        is_joining = start.kind == "join"
        self._say_hello(is_joining, start.kind == "replay")
        if is_joining:
            self._join(start, sizes, load)
        elif start.kind == "together" or not self._taken:
            nowhere = (0,) * len(newest)
            self._taken = {peer: Cursor(life, newest, nowhere) for peer, life in start.incarnations.items()}
        for peer, cursor in self._taken.items():
            self._bus.follow(peer, cursor.incarnation, cursor.sequence)
            self._inbox.expect_after(peer, cursor)
            self.gate.admit(peer, cursor.complete)
        known = {peer: cursor.incarnation for peer, cursor in self._taken.items()}
        for server in range(len(self._bus.servers)):
            pump = Pump(self._bus, server, self._pool, self._inbox, self.gate, self._rules.lease_s, known, self._say)
            self._pumps.append(pump)
            pump.start()
        if is_joining:
            self._say_hello(False, False)
        return self._round

    def _say_hello(self, is_joining: bool, is_replaying: bool) -> None:
        self._publish_fields("hello", self._round, {"is_joining": is_joining, "is_replaying": is_replaying})

    def _join(self, start: Start, sizes: dict[str, int], load: Load) -> None:
        """Ask the helper for its state, and stand where it stands: its weights, its round, its cursors."""
        helper, token = start.helper, os.urandom(8).hex()
        life = start.incarnations[helper]
        self._say(f"the others are training; asking worker {helper} for its state")
        want = encode_fields(self._layout, "want", 0, {"token": token})
        self._pool.submit(OUT, lambda: self._bus.send(helper, want))
        vectors, meta = transfer.take(self._bus, helper, life, token, sizes, self._rules.lease_s + 5, self.gate.check)
        try:
            self._round = int(meta["round"])
            newest = self._layout.schedule.newest_rounds(self._round)
            self._taken = {int(peer): Cursor.from_plain(plain) for peer, plain in meta["cursors"].items()}
            self._taken.pop(self._bus.worker, None)
            self._taken[helper] = Cursor(life, newest, (int(meta["sequence"]),) * len(newest))
            if meta["stop_at"] is not None:
                self.gate.stop(int(meta["stop_at"]))
            load(vectors, meta["values"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MessageError("malformed", f"the state of worker {helper}: {error}") from None
        self._say(f"took the state of worker {helper} at round {self._round}")

    def serve(self, make_state: Callable[[], tuple[State, dict]]) -> None:
        """Between two steps: give our state to the peers that have asked for it, and await them from now on.

        Args:
            make_state: returns float32 vectors by name, which are ours to keep, and a small map of values.
        """
        while self._given and time.monotonic() >= self._given[0][0]:
            _, names = self._given.pop(0)
            self._pool.submit(OUT, lambda names=names: self._bus.delete_state(names))
        for peer, (life, token) in self._inbox.take_wishes().items():
            vectors, values = make_state()
            members = self.gate.members()
            meta = {
                "round": self._round,
                "values": values,
                "stop_at": self.gate.stop_at,
                "cursors": {str(p): c.to_plain() for p, c in self._taken.items() if p in members and p != peer},
            }
            # From our next round on everyone awaits the peer: the others read `admit` before that round.
            self._publish_fields("admit", self._round, {"worker": peer, "life": life})
            self._inbox.note_admitted(peer, life)
            self.gate.admit(peer, self._round)
            self._pool.submit(OUT, lambda v=vectors, m=meta, t=token: self._give(v, m, t))

    def _give(self, vectors: State, meta: dict, token: str) -> None:
        """On the pool, right after `admit`: the joiner reads our stream from there."""
        fields = transfer.fields_of(vectors, {**meta, "sequence": self._bus.sequence}, token)
        self._given.append((time.monotonic() + 2 * self._rules.lease_s, list(fields)))
        transfer.give(self._bus, fields, self._rules.lease_s)

    # --- one round ----------------------------------------------------------------------------

    def exchange(self, gradient: np.ndarray, is_cut: Callable[[], bool] = lambda: False) -> np.ndarray:
        """One round: publish a part of what has gathered, take what came, return the combined gradient.

        Args:
            gradient: float32 (section.size,) of the next round's section; not kept.
            is_cut: asked once the bound is passed; True waits for every member to be at this very round, so
                that a checkpoint taken now has nothing in flight.

        Returns:
            float32 (section.size,): own gradient and what the peers' windows brought, as mean or sum.
        """
        self._round += 1
        round, schedule = self._round, self._layout.schedule
        section = schedule.section(round)
        self._window.push(section, gradient)
        self._offer(round)
        started = time.monotonic()
        sharers = self.gate.wait(round)
        if self._rules.slack is not None and is_cut():
            sharers = self.gate.wait(round, slack=0)
        self.wait_s += time.monotonic() - started
        return self._reduce(self._collect(round, section, gradient), sharers)

    def _reduce(self, total: np.ndarray, sharers: tuple[int, ...]) -> np.ndarray:
        if self._rules.reduce == "mean":
            total /= np.float32(1 + len(sharers))
        return total

    def _offer(self, round: int) -> None:
        drained = self._window.drain(self._layout.schedule.slice(round))
        self._pool.submit(OUT, lambda: self._publish_part(round, drained), self._rules.stall_timeout_s)

    def _publish_part(self, round: int, values: np.ndarray) -> None:
        self._bus.publish(encode_vector(self._layout, "part", round, values, self._lossy))

    def _collect(self, round: int, section: Slice, own: np.ndarray | None) -> np.ndarray:
        """The sum of our own gradient and everything that came, in worker order."""
        self.gate.check()
        combined = np.zeros(section.size, dtype=np.float32)
        is_own_added = own is None
        # Without a bound there is no round to wait for, and what a faster peer said is as good as any.
        through = MAX_ROUND if self._rules.slack is None else round
        for item in self._accumulator.take(through, section):
            if not is_own_added and item.sender > self._bus.worker:
                combined += own
                is_own_added = True
            start = item.slice.start - section.start
            combined[start : start + item.slice.size] += item.values
            self._staleness.append(max(0, round - item.round) // self._layout.schedule.rounds_per_step)
            self._note_taken(item)
        if not is_own_added:
            combined += own
        return combined

    def _note_taken(self, item: Contribution) -> None:
        schedule = self._layout.schedule
        newest = schedule.newest_rounds(item.round - 1)
        cursor = self._taken.get(item.sender) or Cursor(item.incarnation, newest, (0,) * len(newest))
        self._taken[item.sender] = cursor.advanced(
            item.incarnation, schedule.section_index(item.round), item.round, item.last_sequence
        )

    def average(self, values: np.ndarray) -> np.ndarray:
        """The mean over the members of small vectors that belong to this round (BatchNorm statistics).

        Args:
            values: float32 (layout.state_size,).
        """
        if not values.size:
            return values
        copy, round = values.copy(), self._round
        self._pool.submit(OUT, lambda: self._bus.publish(encode_vector(self._layout, "state", round, copy)))
        started = time.monotonic()
        states = self.gate.wait_states(round)
        self.wait_s += time.monotonic() - started
        states[self._bus.worker] = copy
        total = np.zeros_like(copy)
        for worker in sorted(states):
            total += states[worker]
        return total / np.float32(len(states))

    def ask_to_stop(self, step: int) -> None:
        """All workers stop together after the first step that everyone can still reach."""
        at = step + 1 + (self._rules.slack or 0)
        self.gate.stop(at)
        self._publish_fields("stop", at, {})

    # --- the end ------------------------------------------------------------------------------

    def finish(self) -> list[tuple[Slice, np.ndarray]]:
        """Send what is left in the window, take what is left of the peers': a combined gradient a section.

        Sections for which nothing was left are not in the list.

        Waits for the members to finish as well, at most `finish_timeout_s`; what did not come by then is
        counted as `unfinished`.
        """
        schedule = self._layout.schedule
        self._flush()
        last = self._round
        self._publish_fields("goodbye", last, {})
        try:
            self.gate.until(
                lambda: not self.gate.unfinished(last),
                lambda: f"workers {self.gate.unfinished(last)} to finish",
                self._rules.finish_timeout_s,
            )
        except StalledError as error:
            self._say(f"{error}; ending without what is left of them")
            self._inbox.count("unfinished", len(self.gate.unfinished(last)))
        self._pool.drain(self._rules.finish_timeout_s)
        sharers, left = self.gate.sharers(last), []
        for section in schedule.sections:
            if self._accumulator.has(section):
                left.append((section, self._reduce(self._collect(last, section, None), sharers)))
        return left

    def leave(self, is_resumable: bool = False) -> None:
        """Say goodbye in the middle of the run.

        Args:
            is_resumable: all stop together and go on from here, so the window stays as it is; otherwise what
                is left in it is sent, because the peers go on without us.
        """
        if not is_resumable:
            self._flush()
        self._publish_fields("goodbye", self._round, {})
        self._pool.drain(self._rules.finish_timeout_s)

    def _flush(self) -> None:
        """Publish every part that has not left since it was last pushed to."""
        schedule = self._layout.schedule
        for _ in range((schedule.parts - 1) * schedule.rounds_per_step):
            self._round += 1
            self._offer(self._round)

    def close(self) -> None:
        """Stop the pumps and the pool; the bus is the caller's to close."""
        for pump in self._pumps:
            pump.stop()
        for pump in self._pumps:
            pump.close()
        self._pool.close()

    def _publish_fields(self, kind: str, round: int, fields: dict[str, Any]) -> None:
        entries = encode_fields(self._layout, kind, round, fields)
        self._pool.submit(OUT, lambda: self._bus.publish(entries))

    # --- what others want to know -------------------------------------------------------------

    @property
    def round(self) -> int:
        return self._round

    def state(self) -> tuple[State, dict]:
        """Window, error feedback and cursors, for a checkpoint: what of ours has not left, what of theirs has come."""
        if not self._pool.drain(self._rules.stall_timeout_s, OUT):
            raise StalledError("the exchange has not published everything in time")
        self.gate.check()
        followed = {str(peer): cursor.to_plain() for peer, cursor in self._taken.items()}
        return {"window": self._window.state(), "kept": self._lossy.state()}, {"followed": followed}

    def load_state(self, arrays: State, values: dict) -> None:
        """The inverse of `state`; before `start`."""
        self._window.load_state(arrays["window"])
        self._lossy.load_state(arrays["kept"])
        self._taken = {int(peer): Cursor.from_plain(plain) for peer, plain in values["followed"].items()}

    def stats(self) -> dict[str, Any]:
        """Since the last call: staleness in steps; since the start: bytes and what was not applied."""
        staleness, self._staleness = self._staleness, []
        return {
            "sent_bytes": self._bus.sent_bytes,
            "received_bytes": self._bus.received_bytes,
            "staleness_mean": sum(staleness) / len(staleness) if staleness else 0.0,
            "staleness_max": max(staleness, default=0),
            "live_peers": len(self.gate.members()),
            "dropped": self._inbox.dropped(),
        }
