"""Where the main thread waits: the staleness bound, and everything else that peers must say first.

The gate guards the `SspClock` with a condition. Threads that receive call `note`, `admit`, `drop`
and `leave`; the main thread calls `wait`. Waiting is never silent and never without a deadline:
after a few seconds a line names who is awaited, and the first failure of any thread ends the wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from peers.clock import SspClock
from peers.errors import PeersError, StalledError

SAY_AFTER_S = 5.0


class ClockGate:
    """The clocks of the peers, the states they sent, and the round at which the run was told to stop.

    Args:
        clock: the pure clock that is guarded.
        stall_timeout_s: how long a live peer may hold a wait up before that is an error.
        say: called with one line for a person.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        clock: SspClock,
        stall_timeout_s: float,
        say: Callable[[str], None] = lambda line: None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._say = say
        self._now = now
        self._changed = threading.Condition(threading.RLock())
        self._failure: BaseException | None = None
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
            self._say(f"worker {peer} takes part from round {round + 1}")

    def drop(self, peer: int, reason: str) -> None:
        """Do not await the peer any more; said once. A peer that said goodbye is not dropped."""
        with self._changed:
            was_member = not self._clock.has_left(peer) and self._clock.drop(peer)
            self._changed.notify_all()
        if was_member:
            self._say(f"worker {peer} is dropped from the bound: {reason}; going on without it")

    def leave(self, peer: int) -> None:
        """The peer has said goodbye; said once."""
        with self._changed:
            was_member = peer in self._clock.members()
            self._clock.leave(peer)
            self._changed.notify_all()
        if was_member:
            self._say(f"worker {peer} has said goodbye")

    def put_state(self, peer: int, round: int, values: np.ndarray) -> None:
        """Averaged buffers of a peer, float32; kept until its round is past (without a bound: the newest)."""
        with self._changed:
            if self._clock.slack is None:
                self._states = {key: kept for key, kept in self._states.items() if key[0] != peer}
            if round > self._averaged:
                self._states[peer, round] = values
            self._changed.notify_all()

    def stop(self, step: int) -> None:
        """Someone wants the run to stop together after a step; the earliest wish counts."""
        with self._changed:
            self.stop_at = step if self.stop_at is None else min(self.stop_at, step)
            self._changed.notify_all()

    def touch(self) -> None:
        """Something that a wait may be for has changed."""
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End every wait, now and later, with the first failure of any thread."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    # --- called by the main thread ------------------------------------------------------------

    def check(self) -> None:
        """Raise the first failure of any thread."""
        if self._failure is not None:
            raise self._failure

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
            PeersError: the first failure of another thread.
        """
        self.until(
            lambda: not self._clock.awaited(round, slack),
            lambda: "; ".join(
                f"worker {peer} (its clock is {self._clock.clock(peer)}, this is round {round})"
                for peer in self._clock.awaited(round, slack)
            ),
        )
        return self.sharers(round)

    def unfinished(self, round: int) -> list[int]:
        """The members that have neither said goodbye nor reached a round. For `until`: the lock is held."""
        return [peer for peer in self._clock.members() if self._clock.clock(peer) < round]

    def wait_states(self, round: int) -> dict[int, np.ndarray]:
        """Wait for every member's state of a round; returns those that came, by worker."""

        def missing() -> list[int]:
            # Who was admitted with this very round has no state of it to send.
            return [peer for peer in self._clock.members(round) if (peer, round) not in self._states]

        if self._clock.slack is not None:
            self.until(lambda: not missing(), lambda: f"the buffers of workers {missing()} at round {round}")
        with self._changed:
            if self._clock.slack is None:
                # Without a bound nobody is awaited: the newest that each has said.
                return {peer: values for (peer, _), values in self._states.items()}
            found = {peer: values for (peer, at), values in self._states.items() if at == round}
            self._averaged = round
            self._states = {key: kept for key, kept in self._states.items() if key[1] > round}
            return found

    def sharers(self, round: int) -> tuple[int, ...]:
        """The peers that share the mean of `round`, as it stands."""
        with self._changed:
            return self._clock.contributors(round)

    def until(
        self,
        is_done: Callable[[], bool],
        describe: Callable[[], str],
        timeout_s: float | None = None,
    ) -> None:
        """Wait for a condition; called with the gate's lock held. Raises as `wait`."""
        start = self._now()
        timeout_s = self._stall_timeout_s if timeout_s is None else timeout_s
        next_line_s = SAY_AFTER_S
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if is_done():
                    return
                waited_s = self._now() - start
                if waited_s >= timeout_s:
                    raise StalledError(f"waited {waited_s:.0f} s for {describe()}")
                if waited_s >= next_line_s:
                    self._say(f"waiting for {describe()} since {waited_s:.0f} s")
                    next_line_s *= 2
                self._changed.wait(min(next_line_s - waited_s, timeout_s - waited_s, 1.0))


def failed(error: BaseException, where: str) -> PeersError:
    """Wrap what a thread raised, so that its message says where."""
    return error if isinstance(error, PeersError) else PeersError(f"{where}: {type(error).__name__}: {error}")
