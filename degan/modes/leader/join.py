"""How a worker joins running rounds: after which round, and with which peers."""

from __future__ import annotations

import time
from collections.abc import Callable

from peers.errors import BusError, LeaseExpiredError, MessageError, StalledError
from peers.rounds.rounds import Rounds
from peers.session.meet import Rendezvous, Start
from peers.types import Received

# The errors of an announced model that cannot be used: this worker then misses one round.
MISSED = (StalledError, BusError, MessageError)


def join(
    rounds: Rounds,
    rendezvous: Rendezvous,
    start: Start,
    own: int,
    steps: int,
    patience_s: float,
    may_lead: bool,
    catch_up: Callable[[int, Received], None],
    log: Callable[[str], None],
) -> tuple[int, Received | None]:
    """Find the round of the other workers.

    Args:
        start: the result of the rendezvous.
        own: the round of this worker's newest checkpoint.
        steps: rounds of the whole run.
        patience_s: how long to wait for an announcement that is as new as the leases.
        may_lead: whether this worker leads where no other worker does.
        catch_up: fetches the state that an announcement names; raises one of `MISSED`.
        log: called with one line for a person.

    Returns:
        the newest round that is over for this worker, and a leader's announcement of it; None where no worker leads.

    Raises:
        LeaseExpiredError: all peers that this worker was to join have restarted; the rendezvous must be repeated.
    """
    leadership, messages = rounds.leadership, rounds.messages
    leadership.term = max(leadership.term, start.term)
    tried: Received | None = None
    until_s = time.monotonic() + patience_s

    def is_left_alone() -> bool:
        live = messages.live()
        return any(peer in live for peer in start.incarnations) and all(
            peer not in live or messages.incarnation(peer) != incarnation
            for peer, incarnation in start.incarnations.items()
        )

    while True:
        found: list[tuple[int, Received]] = []

        def look(tried=tried, found=found) -> bool:
            newest = rounds.newest()
            # The oldest kept announcement is read first. A worker in a round has read that of the round before.
            if newest and newest[1] is not tried:
                is_new = newest[1].round >= start.furthest - 1 or time.monotonic() >= until_s
                found[:] = [newest] if is_new else []
            return bool(found) or (rounds.leader() is None if may_lead else is_left_alone())

        rounds.until(look, lambda: "a leader's next round")
        if found:
            sender, received = found[0]
            tried = received
            try:
                catch_up(sender, received)
                return received.round, received
            except MISSED as error:
                log(f"{error}; waiting for the next round")
        elif may_lead:
            furthest, term = rendezvous.furthest(start)
            leadership.term = max(leadership.term, term)
            # The other workers wait in that round: for its beginning, or for its end.
            round = max(own, min(furthest, steps) - 1)
            log(f"nobody leads any more; going on from what this worker has, at round {round}")
            return round, None
        else:
            raise LeaseExpiredError("all workers that this one was to join were started again")
