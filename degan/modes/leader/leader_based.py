"""The base of the leader-based modes: how a worker begins, follows a leader, synchronises and ends.

A step is a round. The leader announces the round (`round_start`); the other workers do their part and send the result
to the leader. At a sync point (an evaluation, a snapshot, a checkpoint, the end) the leader puts the current model
under its state key and announces this (`round_end`). All live workers fetch that model and then hold the same one.

When the leader is gone, the next live worker of the list continues from its newest model. A restarted worker fetches
the current state and takes part in the next round. A worker that was too slow for a round continues with the newest
round. A worker that has led alone while it was isolated, and then finds the others behind, begins a new incarnation
with their state.
"""

from __future__ import annotations

import abc
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.federation import cohorts
from degan.learners.guard import NonFiniteGuard
from degan.learners.protocols import Adversarial, Trainable
from degan.modes.connect import agreement, attack_on, fingerprint
from degan.modes.leader.claims import plain_peer_info
from degan.modes.leader.join import MISSED, join
from degan.modes.needs import leaders_of
from peers.bus.door import Bus
from peers.codecs.exact import Codec
from peers.errors import LeaseExpiredError
from peers.rounds.deadline import Deadline
from peers.rounds.layout import RoundLayout
from peers.rounds.leadership import Leadership
from peers.rounds.rounds import Gathered, Rounds, term_of
from peers.session.meet import Rendezvous, Start
from peers.types import Received
from peers.vectors.reduce import norm
from peers.vectors.screen import Screen

# Rounds of a dead leader that a follower may have seen and the leader's successor has not.
AHEAD = 3


class LeaderBased(abc.ABC):
    """The base of a mode with a leader; see `degan.modes.Mode`.

    A mode implements `step`, `_follow`, `_end_fields`, `_load_end`, `_catch_up`, `state` and `_load_state`.

    Args:
        settings, learner, bus, facts, log: as of `degan.modes.partial_exchange.PartialExchange`.
        peer_info: facts about this worker for its peers: `samples`, and `histogram` if it is shared.
        kinds: the vectors on the wire: number of values and codec by kind.
    """

    # At a sync point all workers hold the same model, and one of them shows it.
    is_shared = True
    # The kinds of small maps of this mode, beside those of all rounds.
    maps = frozenset({"stop"})

    def __init__(
        self,
        settings: Experiment,
        learner: Trainable | Adversarial,
        bus: Bus,
        facts: dict[str, Any],
        peer_info: dict[str, Any],
        kinds: dict[str, tuple[int, Codec]],
        log: Callable[[str], None],
    ):
        self._settings, self._learner, self._bus, self._log = settings, learner, bus, log
        mode, lease_s = settings.mode, settings.bus.lease_s
        agreed = agreement(settings, learner, facts)
        self._layout = RoundLayout(fingerprint(agreed), kinds, self.maps)
        self._me = bus.worker
        self._rounds = Rounds(
            bus,
            self._layout,
            Leadership(leaders_of(settings)),
            Deadline(mode.deadline.floor_s, mode.deadline.ceiling_s),
            lease_s,
            settings.bus.stall_timeout_s,
            settings.bus.finish_timeout_s,
            log,
            settings.bus.min_peers,
            Screen(bus.worker, settings.bus.norm_gate, settings.bus.offences, log=log),
        )
        self._guard, self._attack = NonFiniteGuard(learner, log), attack_on(bus, log)
        fail = self._rounds.messages.fail
        self._rendezvous = Rendezvous(
            bus, agreed, lease_s, settings.connect_timeout_s, log, fail, peer_info=peer_info, may_replay=False
        )
        # The peer info of each worker, with the incarnation that sent it.
        self._peer_infos: dict[int, tuple[str, dict[str, Any]]] = {bus.worker: (bus.incarnation, peer_info)}
        self._step = self._void_rounds = 0
        # The round at which this worker joined, if it did. The term of its part in the newest round; before its first
        # round no part is repeated.
        self._joined_at: int | None = None
        self._term = math.inf
        # Counts of the newest round; only the leader knows the number of answers.
        self._asked, self._answered = 0, None
        # As the leader: the incarnation of each worker that can be asked.
        self._incarnations: dict[int, str] = {}
        self._leader: int | None = None
        self._stop_at: int | None = None
        self._wants_stop = False
        self._predicted = {"sent": 0, "received": 0}

    # --- beginning ----------------------------------------------------------------------------

    def begin(self, checkpoints, saved, load) -> int:
        self._rendezvous.claim(checkpoints)
        start = self._rendezvous.meet(checkpoints, {})
        for peer, peer_info in start.peer_infos.items():
            self._peer_infos[peer] = (start.incarnations.get(peer, ""), plain_peer_info(peer_info))
        is_joining = start.kind == "join"
        self._step = (checkpoints[-1] if checkpoints else 0) if is_joining else start.step
        if self._step:
            self._load_state(*load(self._step))
        self._rounds.start(start, self._step)
        if is_joining:
            self._join(start)
        self._rounds.messages.check()
        peers = ", ".join(map(str, sorted(start.incarnations))) or "nobody else"
        self._log(f"{'joins' if is_joining else 'begins'} at round {self._step} with worker {peers}")
        return self._step

    def _join(self, start: Start) -> None:
        """Find the round of the other workers, and continue from there."""
        settings, may_lead = self._settings, self._rounds.leadership.may_lead(self._me)
        own, steps, lease_s = self._step, settings.run.steps, settings.bus.lease_s
        self._step, received = join(
            self._rounds, self._rendezvous, start, own, steps, lease_s, may_lead, self._catch_up, self._log
        )
        self._joined_at = self._step
        self._rounds.note_caught_up(self._step)
        self._rendezvous.lease.joined(self._step)
        if received and self._step in (settings.run.steps, received.fields.get("stop_at")):
            # This round is the last one: this worker ends with the model after it.
            self._note_announced(received)
            self.synchronise(self._step)

    # --- rounds -------------------------------------------------------------------------------

    def _enter(self, step: int, next_batch: Callable[[], Batch]) -> None:
        """Note the beginning of a step."""
        self._step, self._next_batch = step, next_batch
        self._rendezvous.lease.progress(step)

    def _await_start(self, step: int) -> tuple[int, Received] | None:
        """Wait for an announcement of this round or a later one; None if this worker leads."""
        if newest := self._await(lambda: self._at_least(step), f"the start of round {step}"):
            self._note_leader(*newest)
        return newest

    def _note_leader(self, sender: int, received: Received) -> None:
        """Note that another worker leads this round."""
        self._answered, self._leader, self._term = None, sender, term_of(received)
        self._note_announced(received)

    def _at_least(self, step: int) -> tuple[int, Received] | None:
        newest = self._rounds.newest()
        return newest if newest and newest[1].round >= step else None

    def _await(self, wanted: Callable[[], tuple[int, Received] | None], what: str) -> tuple[int, Received] | None:
        """Wait for an announcement; None if this worker leads. One counts even if its sender has left since."""
        found: list[tuple[int, Received]] = []

        def look() -> bool:
            announced = wanted()
            found[:] = [announced] if announced else []
            if not found:
                self._check_line()
            return bool(found) or self._rounds.leader() == self._me

        def describe() -> str:
            leader = self._rounds.leader()
            listed = ", ".join(map(str, self._rounds.leadership.leaders))
            if leader is not None:
                return f"{what} from worker {leader}"
            least = self._settings.bus.min_peers
            return f"a leader: none of {listed} is alive" + (f", or has {least} peers" if least else "")

        self._rounds.until(look, describe)
        return found[0] if found else None

    def _check_line(self) -> None:
        """Raises LeaseExpiredError if this worker has led alone while isolated, and is now far ahead of the leader."""
        newest = self._rounds.newest()
        if newest and newest[0] != self._me and newest[1].round + AHEAD < self._step:
            # Until the others caught up, the leader would ask this worker in every round, and wait until each deadline.
            raise LeaseExpiredError(
                f"worker {newest[0]} leads at round {newest[1].round}, and this one has gone on to "
                f"round {self._step} by itself"
            )

    def _note_announced(self, received: Received) -> None:
        """Take over a leader's state of the whole run, so that this worker could continue as the leader."""
        fields = received.fields
        if isinstance(fields.get("stop_at"), int):
            self._stop_at = fields["stop_at"]
        if isinstance(fields.get("void"), int):
            self._void_rounds = max(self._void_rounds, fields["void"])
        deadline_s = fields.get("deadline_s")
        if isinstance(deadline_s, int | float) and math.isfinite(deadline_s):
            self._rounds.deadline.suggest(deadline_s)
        self._rendezvous.lease.follow_term(self._rounds.leadership.term)

    def _announcement(self, step: int) -> dict[str, Any]:
        """The fields of every announcement of a leader; this worker leads from here on."""
        before = self._rounds.leadership.term
        term = self._rounds.leadership.claim(self._me)
        self._leader, self._term = self._me, term
        if term != before:
            self._log(f"this worker leads from round {step} on (term {term})")
            self._rendezvous.lease.follow_term(term)
        if self._stop_at is None and (self._wants_stop or self._rounds.messages.kept("stop")):
            self._stop_at = step
        return {"term": term, "stop_at": self._stop_at, "void": self._void_rounds}

    def _is_deposed(self) -> bool:
        """Whether another worker leads with a better claim than this one."""
        return self._rounds.leader() != self._me

    def _await_live(self) -> list[int]:
        """As the leader: the workers that can be asked to take part, in order; waits until there is one."""
        mine = {self._me} if self._settings.mode.leader_trains else set()
        live: list[int] = []

        def look() -> bool:
            # A worker that still catches up could not answer, and the others would wait for it.
            live[:] = sorted(self._rounds.messages.caught_up() | mine)
            self._incarnations = self._rounds.messages.incarnations()
            return bool(live)

        self._rounds.until(look, lambda: "workers that take part")
        return live

    def _peer_info(self, worker: int) -> dict[str, Any]:
        """The peer info of a worker; requested again for a new incarnation."""
        incarnation = self._rounds.messages.incarnation(worker)
        known, peer_info = self._peer_infos.get(worker, ("", {}))
        if worker == self._me or incarnation is None or known == incarnation:
            return peer_info
        try:
            peer_info = self._rounds.ask(
                lambda: self._rendezvous.peer_info(worker, incarnation), f"what worker {worker} holds"
            )
        except MISSED as error:
            self._log(f"{error}")
            return peer_info
        self._peer_infos[worker] = (incarnation, plain_peer_info(peer_info))
        return self._peer_infos[worker][1]

    def _gather(
        self,
        kind: str,
        step: int,
        asked: list[int],
        own: np.ndarray | None,
        until_s: float,
        answer_bytes: int,
        read: Callable[[Received], np.ndarray] = lambda received: received.values,
        measure: Callable[[np.ndarray], float] = norm,
    ) -> Gathered | None:
        """As the leader: the answers of a round; None if another worker leads by now. Void rounds are counted.

        Args:
            asked: the workers that take part, this one included.
            own, read, measure: as of `Rounds.gather`.
            until_s: the time of the deadline (monotonic).
            answer_bytes: the size of one answer on the wire.
        """
        others, self._asked = [worker for worker in asked if worker != self._me], len(asked)
        quorum = cohorts.quorum(self._settings.mode.quorum, len(asked))
        # This worker's own steps may have taken until the deadline; the others still get the shortest wait.
        left_s = max(self._settings.mode.deadline.floor_s, until_s - time.monotonic())
        rounds, incarnations = self._rounds, self._incarnations
        gathered = rounds.gather(kind, step, others, quorum, left_s, self._is_deposed, own, read, measure, incarnations)
        self._predicted["received"] += len(gathered.messages) * answer_bytes
        if self._is_deposed():
            self._log(f"round {step}: worker {self._rounds.leader()} leads by now; this round of ours does not count")
            return None
        self._answered = len(gathered.answers)
        if gathered.is_void:
            self._void_rounds += 1
            self._log(f"round {step} is void: {self._answered} of {len(asked)} answered; the model stays as it was")
        return gathered

    # --- sync points --------------------------------------------------------------------------

    def synchronise(self, step: int) -> bool:
        tried: Received | None = None
        while True:
            found = self._await(lambda tried=tried: self._end_of(step, tried), f"the end of round {step}")
            if found is None:
                self._rounds.publish("round_end", step, self._announcement(step) | self._end_fields(step))
                self._rounds.drain()
                return True
            sender, received = found
            if received.round > step:
                self._log(f"too late for the model of round {step}; nothing is saved or shown of it")
                return False
            self._note_leader(sender, received)
            if received.kind == "round_start":
                self._log(f"worker {sender} leads round {step} once more, in term {self._term}")
                self._follow(sender, received)
                continue
            try:
                self._load_end(sender, received)
                self._rounds.drain()
                return True
            except MISSED as error:
                self._log(f"{error}; waiting for what comes next")
                tried = received

    def _end_of(self, step: int, tried: Received | None) -> tuple[int, Received] | None:
        """The announced end of this round, else its start in a new term, else an announcement of a later round."""
        ends = [
            (sender, received)
            for sender, kept in self._rounds.messages.kept("round_end").items()
            for received in kept
            if received.round == step and received is not tried and self._rounds.is_in_force(sender, received)
        ]
        if ends:
            return max(ends, key=lambda end: end[1].fields.get("term", 0))
        # A restarted leader has not received the messages to its former incarnation.
        newest = self._at_least(step)
        return newest if newest and (newest[1].round > step or term_of(newest[1]) > self._term) else None

    # --- the end ------------------------------------------------------------------------------

    def finish(self) -> None:
        self._rendezvous.lease.leaving()
        self._rounds.finish(self._step)

    def leave(self, is_together: bool) -> None:
        self._rendezvous.lease.leaving()
        if is_together:
            self._rounds.finish(self._step)
        else:
            self._rounds.leave(self._step)

    def ask_to_stop(self, step: int) -> None:
        self._wants_stop = True
        self._rounds.publish("stop", step, {})

    def is_stopping(self, step: int) -> bool:
        return self._stop_at is not None and step >= self._stop_at

    def is_first(self) -> bool:
        return all(self._me < peer for peer in self._rounds.messages.reached(self._step))

    def close(self) -> None:
        try:
            self._rounds.close()
            self._rendezvous.close()
        finally:
            self._bus.close()

    def stats(self) -> dict[str, Any]:
        found = self._rounds.stats()
        return found | {
            "dropped": dict(Counter(found["dropped"]) + self._guard.counts),
            "exchange_s": 0.0,
            "round": self._step,
            "leader": self._leader,
            "cohort": self._asked,
            "answered": self._answered,
            "void_rounds": self._void_rounds,
            "late": found["dropped"].get("late", 0),
            "predicted_sent_bytes": self._predicted["sent"],
            "predicted_received_bytes": self._predicted["received"],
        }

    # --- implemented by a mode ----------------------------------------------------------------

    @abc.abstractmethod
    def _follow(self, sender: int, received: Received) -> dict[str, float]:
        """Do this worker's part in a round that another worker has announced; returns the losses."""

    @abc.abstractmethod
    def _end_fields(self, step: int) -> dict[str, Any]:
        """As the leader: put and hold the model after this round; returns the fields that name it."""

    @abc.abstractmethod
    def _load_end(self, sender: int, received: Received) -> None:
        """Fetch and hold the model after a round. Raises one of `MISSED`."""

    @abc.abstractmethod
    def _catch_up(self, sender: int, received: Received) -> None:
        """Fetch the state to begin in the middle of a run, after this announcement. Raises one of `MISSED`."""

    @abc.abstractmethod
    def _load_state(self, arrays: dict, values: dict[str, Any]) -> None:
        """The inverse of `state`; called after the learner has been loaded."""
