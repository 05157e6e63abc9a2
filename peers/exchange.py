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

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from peers import transfer
from peers.bus import Bus
from peers.clock import SspClock
from peers.errors import StalledError
from peers.gate import ClockGate, failed
from peers.inbox import Inbox
from peers.lossy import ErrorFeedback
from peers.message import Layout, encode_fields, encode_vector
from peers.pool import SerialPool
from peers.pump import Pump
from peers.rendezvous import Start
from peers.transfer import State
from peers.types import Slice
from peers.window import Accumulator, GradientWindow

OUT = ("out",)


@dataclass(frozen=True)
class Rules:
    """How an exchange behaves. Times in seconds.

    Attributes:
        slack: the staleness bound in steps; None for none.
        reduce: mean (of the members) or sum.
        keep_rounds: how many rounds an outbox keeps for those who lag or replay.
        state_every: steps between `state` messages, for sizing the outbox; 0 for never.
        lease_s, stall_timeout_s, finish_timeout_s: as in the settings.
        pool_threads: threads that decode, accumulate, encode and publish.
    """

    slack: int | None = 2
    reduce: str = "mean"
    keep_rounds: int = 64
    state_every: int = 0
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
        # Per peer: the newest round applied, the life that said it, and the number of its last entry.
        self._taken: dict[int, tuple[int, str, int]] = {}
        self.wait_s = 0.0
        self._staleness: list[int] = []
        keep = rules.keep_rounds
        states = keep // max(1, rules.state_every * rounds) + 2 if rules.state_every else 0
        self.outbox_entries = keep * layout.entries_per_round() + states * layout.entries_per_state() + 16
        bus.configure(self.outbox_entries, layout.largest_payload_bytes())

    # --- beginning ----------------------------------------------------------------------------

    def start(self, start: Start, round: int, load: Callable[[State, dict], None] | None = None) -> int:
        """Follow the peers and say hello; returns the round after which this worker goes on.

        Args:
            start: what the rendezvous found.
            round: the round that the loaded checkpoint ended with; 0 for the beginning.
            load: for a join, called with the helper's arrays and values.

        Raises:
            StalledError: the helper did not send its state; meet again.
        """
        self._round = round
        if start.kind == "replay":
            for peer, (taken, incarnation, sequence) in self._taken.items():
                self._bus.follow(peer, incarnation, sequence)
                self._inbox.expect_after(peer, incarnation, taken)
                self.gate.admit(peer, taken)
        else:
            self._taken = {}
            for peer, incarnation in start.incarnations.items():
                self._bus.follow(peer, incarnation)
                self._inbox.expect_after(peer, incarnation, None if start.kind == "join" else round)
                if start.kind == "together":
                    self._taken[peer] = (round, incarnation, 0)
                    self.gate.admit(peer, round)
        rules = self._rules
        for server in range(len(self._bus.servers)):
            pump = Pump(
                self._bus, server, self._pool, self._inbox, self.gate, rules.lease_s, start.incarnations, self._say
            )
            self._pumps.append(pump)
        is_joining = start.kind == "join"
        self._publish_fields("hello", round, {"is_joining": is_joining, "is_replaying": start.kind == "replay"})
        for pump in self._pumps:
            pump.start()
        if is_joining:
            self._join(start, load)
            self._publish_fields("hello", self._round, {"is_joining": False, "is_replaying": False})
        return self._round

    def _join(self, start: Start, load: Callable[[State, dict], None] | None) -> None:
        """Ask the helper for its state and go on from there."""
        helper = start.helper
        self._say(f"the others are training; asking worker {helper} for its state")
        self._bus.send(helper, encode_fields(self._layout, "want", 0, {}))
        arrays, meta = transfer.take(
            self._bus, helper, start.incarnations[helper], self._rules.lease_s + 5, self.gate.check
        )
        if load is not None:
            load(arrays, meta["values"])
        self._round = int(meta["round"])
        taken = {int(peer): int(newest) for peer, newest in meta["taken"].items() if int(peer) != self._bus.worker}
        taken[helper] = self._round
        for peer, newest in taken.items():
            self._accumulator.discard(peer, newest)
            self._inbox.expect_more_than(peer, newest)
            self._taken[peer] = (newest, start.incarnations.get(peer, ""), 0)
            if peer in start.incarnations:
                self.gate.admit(peer, max(newest, self._inbox.newest(peer)))
        self._say(f"took the state of worker {helper} at round {self._round}")

    def serve(self, make_state: Callable[[], tuple[State, dict]]) -> None:
        """Between two steps: give our state to the peers that have asked for it, and await them from now on.

        Args:
            make_state: returns float32 vectors by name and a small map of values.
        """
        while self._given and time.monotonic() >= self._given[0][0]:
            _, names = self._given.pop(0)
            self._pool.submit(OUT, lambda names=names: self._bus.delete_state(names))
        for peer, incarnation in self._inbox.take_wishes().items():
            arrays, values = make_state()
            taken = {str(other): newest for other, (newest, _, _) in self._taken.items()}
            fields = transfer.fields_of(arrays, {"round": self._round, "taken": taken, "values": values}, incarnation)
            self._pool.submit(OUT, lambda fields=fields: transfer.give(self._bus, fields, self._rules.lease_s))
            self._given.append((time.monotonic() + 2 * self._rules.lease_s, list(fields)))
            # From our next round on everyone awaits the peer: the others read `admit` before that round.
            self._publish_fields("admit", self._round, {"worker": peer})
            self.gate.admit(peer, self._round)

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
        for item in self._accumulator.take(round, section):
            if not is_own_added and item.sender > self._bus.worker:
                combined += own
                is_own_added = True
            start = item.slice.start - section.start
            combined[start : start + item.slice.size] += item.values
            self._staleness.append((round - item.round) // self._layout.schedule.rounds_per_step)
            self._taken[item.sender] = (item.round, item.incarnation, item.last_sequence)
        if not is_own_added:
            combined += own
        return combined

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
        self._publish_fields("goodbye", last, {"is_finished": True})
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
        sharers, left = self.gate.wait(last), []
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
        self._publish_fields("goodbye", self._round, {"is_finished": False})
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
        followed = {str(peer): list(taken) for peer, taken in self._taken.items()}
        return {"window": self._window.state(), "kept": self._lossy.state()}, {"followed": followed}

    def load_state(self, arrays: State, values: dict) -> None:
        """The inverse of `state`; before `start`."""
        self._window.load_state(arrays["window"])
        self._lossy.load_state(arrays["kept"])
        self._taken = {int(peer): tuple(taken) for peer, taken in values["followed"].items()}

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
