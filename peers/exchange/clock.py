"""The staleness bound (SSP) as a pure object: which peers must still be awaited for a round.

A peer's clock is the newest of its rounds that has been received completely. Round t may be
applied when every member's clock is at least t - slack. Slack 0 is synchronous training; slack
None never waits. Every worker keeps its own `SspClock` from the messages that it has itself received: there is
no referee.

What always holds: a clock never goes back within one membership; a peer that is no member is
never awaited; with n members of which each obeys the bound, no worker leads another by more than
slack + 1 rounds.

Source: Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
Server", NIPS 2013, section 3; the parameter server's global clock is replaced by local ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Peer:
    clock: int = 0
    is_member: bool = False
    has_left: bool = False
    first_round: int = 1


class SspClock:
    """Everyone's progress as this worker has seen it. Not thread-safe: `ClockGate` locks it.

    Args:
        peers: the other workers; none of them is a member until admitted.
        slack: how many rounds a member may be behind; None for no bound.
    """

    def __init__(self, peers: tuple[int, ...], slack: int | None):
        self.slack = slack
        self._peers = {peer: _Peer() for peer in peers}

    def clock(self, peer: int) -> int:
        """The newest complete round of a peer, 0 before the first."""
        return self._peers[peer].clock

    def note(self, peer: int, round: int) -> None:
        """A round of a peer is complete."""
        state = self._peers[peer]
        state.clock = max(state.clock, round)

    def admit(self, peer: int, round: int) -> None:
        """From now on await the peer, which takes part from the round after `round`."""
        state = self._peers[peer]
        if not state.is_member or state.has_left:
            state.clock, state.first_round = round, round + 1
        state.clock = max(state.clock, round)
        state.is_member, state.has_left = True, False

    def drop(self, peer: int) -> bool:
        """Do not await the peer any more, because it is gone; returns whether it was a member."""
        was, self._peers[peer].is_member = self._peers[peer].is_member, False
        return was

    def leave(self, peer: int) -> None:
        """The peer has said goodbye: all of its messages have been received."""
        self._peers[peer].has_left = True

    def awaited(self, round: int, slack: int | None = None) -> list[int]:
        """The members that hold up `round`, under the clock's own slack or a tighter one."""
        bound = self.slack if slack is None else slack
        if bound is None:
            return []
        return [
            peer
            for peer, state in self._peers.items()
            if state.is_member and not state.has_left and state.clock < round - bound
        ]

    def members(self, round: int | None = None) -> tuple[int, ...]:
        """The peers in the bound that have not left, and take part in `round`, if that is given."""
        return tuple(
            peer
            for peer, state in self._peers.items()
            if state.is_member and not state.has_left and (round is None or state.first_round <= round)
        )

    def line(self) -> dict[int, int]:
        """The clocks of the peers in the bound, and of those that have left after their last round."""
        return {peer: state.clock for peer, state in self._peers.items() if state.is_member or state.has_left}

    def reachable(self) -> int:
        """How many peers are in the bound, or have left after all of their messages."""
        return sum(state.is_member or state.has_left for state in self._peers.values())

    def has_left(self, peer: int) -> bool:
        return self._peers[peer].has_left

    def contributors(self, round: int) -> tuple[int, ...]:
        """The peers among whom a mean at `round` is shared: members, and those that have left after the round."""
        return tuple(
            peer
            for peer, state in self._peers.items()
            if state.first_round <= round and (state.clock >= round or state.is_member and not state.has_left)
        )
