"""Where the main thread waits: for the staleness bound, and for every other message of the peers.

A network can split, and then each side drops the other. With `min_peers` the smaller side is a minority:
it pauses until the others are back. A worker that finds most peers further ahead than a peer that awaits it can be
has been dropped without noticing: it takes their state, so that there is one line of training.

The gate guards the `SspClock` with a condition. Threads that receive call `note`, `admit`, `drop`
and `leave`; the main thread calls `wait`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from peers.errors import LeaseExpiredError
from peers.exchange.clock import SspClock
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.session.waiting import Waiting


class ClockGate(Waiting):
    """The clocks of the peers, the states they sent, and the round at which the run was told to stop.

    Args:
        clock: the pure clock that is guarded.
        stall_timeout_s: how long a live peer may hold a wait up before that is an error.
        log: called with one line for a person.
        lead: how many rounds a peer that awaits us can be ahead; None if no peer is awaited.
        min_peers: with fewer peers that are there, or have finished, this worker waits.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        clock: SspClock,
        stall_timeout_s: float,
        log: Callable[[str], None] = lambda line: None,
        lead: int | None = None,
        min_peers: int = 0,
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__(stall_timeout_s, log, now)
        self._clock, self._lead = clock, lead
        self._min_peers = min_peers
        # Whether we have been where the others can await us since this incarnation began.
        self._is_caught_up = False
        # True until all entries have been read that the streams had when this worker was restarted.
        self.is_replaying = False
        self._states: dict[tuple[int, int], np.ndarray] = {}
        self._averaged = -1
        self.stop_at: int | None = None

    # --- called by the threads that receive ---------------------------------------------------

    def note(self, peer: int, round: int) -> None:
        with self._changed:
            self._clock.note(peer, round)
            self._changed.notify_all()

    def admit(self, peer: int, round: int) -> None:
        with self._changed:
            is_new = peer not in self._clock.members()
            self._clock.admit(peer, round)
            self._changed.notify_all()
        if is_new:
            self._log(f"worker {peer} takes part from round {round + 1}")

    def returned(self, peer: int) -> None:
        """The same incarnation of the peer is there again; its clock stands where it stood."""
        self.admit(peer, self.clock(peer))

    def drop(self, peer: int, reason: str) -> None:
        """Do not await the peer any more; logged once. A peer that said goodbye is not dropped."""
        with self._changed:
            was_member = not self._clock.has_left(peer) and self._clock.drop(peer)
            self._changed.notify_all()
        if was_member:
            self._log(f"worker {peer} is dropped from the bound: {reason}; going on without it")

    def leave(self, peer: int) -> None:
        """The peer has said goodbye; logged once."""
        with self._changed:
            was_member = peer in self._clock.members()
            self._clock.leave(peer)
            self._changed.notify_all()
        if was_member:
            self._log(f"worker {peer} has said goodbye")

    def put_state(self, peer: int, round: int, values: np.ndarray) -> None:
        """Averaged buffers of a peer, float32; kept until its round is past (without a bound: the newest)."""
        with self._changed:
            if self._clock.slack is None:
                self._states = {key: kept for key, kept in self._states.items() if key[0] != peer}
            if round > self._averaged:
                self._states[peer, round] = values
            self._changed.notify_all()

    def stop(self, step: int) -> None:
        """A worker proposes that the run stops together after a step; the earliest step counts."""
        with self._changed:
            self.stop_at = step if self.stop_at is None else min(self.stop_at, step)
            self._changed.notify_all()

    # --- called by the main thread ------------------------------------------------------------

    def is_member(self, peer: int) -> bool:
        with self._changed:
            return peer in self._clock.members()

    def clock(self, peer: int) -> int:
        with self._changed:
            return self._clock.clock(peer)

    def members(self) -> tuple[int, ...]:
        with self._changed:
            return self._clock.members()

    def wait(self, round: int, slack: int | None = None) -> tuple[int, ...]:
        """Wait until no member holds up `round`; returns the peers that share its mean.

        Raises:
            StalledError: a live member made no progress for the stall timeout.
            LeaseExpiredError: the others went on without us.
            PeersError: the first failure of another thread.
        """

        def missing() -> int:
            return self._min_peers - self._clock.reachable()

        def describe() -> str:
            if missing() > 0:
                return f"{missing()} more peers, to be no minority (bus.min_peers {self._min_peers})"
            return "; ".join(
                f"worker {peer} (its clock is {self._clock.clock(peer)}, this is round {round})"
                for peer in self._clock.awaited(round, slack)
            )

        self.until(lambda: missing() <= 0 and not self._clock.awaited(round, slack), describe)
        with self._changed:
            self._check_lead(round)
        return self.sharers(round)

    def _check_lead(self, round: int) -> None:
        """Check that the others are still on our line of training. Raises LeaseExpiredError."""
        if self._lead is None:
            return
        clocks = self._clock.line()
        ahead = [peer for peer, clock in clocks.items() if clock > round + self._lead]
        # A single peer ahead may be the isolated one.
        are_most = len(ahead) > max(len(clocks) / 2, self._min_peers)
        if are_most and self._is_caught_up:
            raise LeaseExpiredError(
                f"worker {ahead[0]} is at round {clocks[ahead[0]]}, this one at {round}: the others have not awaited it"
            )
        # While the others' messages from before a restart are replayed, the others are ahead.
        self._is_caught_up = self._is_caught_up or not ahead and not self.is_replaying

    def unfinished(self, round: int) -> list[int]:
        """The members that have neither said goodbye nor reached a round. For `until`: the lock is held."""
        return [peer for peer in self._clock.members() if self._clock.clock(peer) < round]

    def wait_states(self, round: int) -> dict[int, np.ndarray]:
        """Wait for every member's state of a round; returns those that came, by worker."""

        def missing() -> list[int]:
            # A peer that was admitted with this very round has no state of it to send.
            return [peer for peer in self._clock.members(round) if (peer, round) not in self._states]

        if self._clock.slack is not None:
            self.until(lambda: not missing(), lambda: f"the buffers of workers {missing()} at round {round}")
        with self._changed:
            if self._clock.slack is None:
                # Without a bound no peer is awaited: the newest state of each peer.
                return {peer: values for (peer, _), values in self._states.items()}
            found = {peer: values for (peer, at), values in self._states.items() if at == round}
            self._averaged = round
            self._states = {key: kept for key, kept in self._states.items() if key[1] > round}
            return found

    def sharers(self, round: int) -> tuple[int, ...]:
        """The peers that share the mean of `round` at this moment."""
        with self._changed:
            return self._clock.contributors(round)


def make_gate(
    options: Options, peers: tuple[int, ...], layout: ExchangeLayout, log: Callable[[str], None]
) -> ClockGate:
    """The gate of one worker; see `peers.exchange.exchange.Exchange` for the arguments."""
    clock = SspClock(peers, options.slack)
    return ClockGate(clock, options.stall_timeout_s, log, furthest_lead(options, layout), options.min_peers)


def furthest_lead(options: Options, layout: ExchangeLayout) -> int | None:
    """How many rounds a peer that awaits us can be ahead: the bound, and its rounds after the last step."""
    most_parts = max(layout.parts, default=layout.schedule.parts)
    return None if options.slack is None else options.slack + 2 + most_parts
