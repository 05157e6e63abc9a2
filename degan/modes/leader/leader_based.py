"""What the modes with a leader have in common: how a worker begins, whom it follows, what it shows, how it ends.

A step is a round. The leader announces it (`round_start`), the others do their part and send it to the leader. At a
cut (an evaluation, a snapshot, a checkpoint, the end) the leader puts what holds then under its state key and says so
(`round_end`), and everybody fetches it: all live workers then hold the same model.

When the leader is gone, the next live worker of the list goes on from the newest that it has. A worker that was
started again fetches what it needs and takes part in the next round; one that was too slow for a round runs on
to the newest. One that has led alone where it was cut off, and finds the others behind it, begins a new life with
what they have.
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

# How many rounds who follows may have seen of a leader that died and its successor has not.
AHEAD = 3


class LeaderBased(abc.ABC):
    """The base of a mode with a leader; see `degan.modes.Mode`.

    A mode gives `step`, `_follow`, `_end_fields`, `_load_end`, `_catch_up`, `state` and `_load_state`.

    Args:
        settings, learner, bus, facts, say: as of `degan.modes.partial_exchange.PartialExchange`.
        about: what the peers should know of us: `samples`, and `histogram` if it is shared.
        kinds: the vectors that travel: number of values and codec by kind.
    """

    # At a cut all workers hold the same model: one of them shows it.
    is_shared = True
    # The small maps that travel beside those of all rounds.
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
        # What we know of each worker, and in which life it said so.
        self._peer_infos: dict[int, tuple[str, dict[str, Any]]] = {bus.worker: (bus.incarnation, peer_info)}
        self._step = self._void_rounds = 0
        # At which round we joined, if we did; and the term in which we have had our part in the newest round: before
        # our first no part is asked for again.
        self._joined_at: int | None = None
        self._term = math.inf
        # Of the newest round; only who leads knows how many answered.
        self._asked, self._answered = 0, None
        # As the leader: in which life each could be asked.
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
        """Find out where the others are, and stand there."""
        settings, may_lead = self._settings, self._rounds.leadership.may_lead(self._me)
        own, steps, lease_s = self._step, settings.run.steps, settings.bus.lease_s
        self._step, received = join(
            self._rounds, self._rendezvous, start, own, steps, lease_s, may_lead, self._catch_up, self._log
        )
        self._joined_at = self._step
        self._rounds.note_caught_up(self._step)
        self._rendezvous.lease.joined(self._step)
        if received and self._step in (settings.run.steps, received.fields.get("stop_at")):
            # No other round comes: what holds after this one is what we end with.
            self._note_announced(received)
            self.synchronise(self._step)

    # --- rounds -------------------------------------------------------------------------------

    def _enter(self, step: int, next_batch: Callable[[], Batch]) -> None:
        """At the beginning of a step."""
        self._step, self._next_batch = step, next_batch
        self._rendezvous.lease.progress(step)

    def _await_start(self, step: int) -> tuple[int, Received] | None:
        """Wait until something is announced of this round or a later one; None if it is us who leads."""
        if newest := self._await(lambda: self._at_least(step), f"the start of round {step}"):
            self._note_leader(*newest)
        return newest

    def _note_leader(self, sender: int, received: Received) -> None:
        """Somebody else leads this round."""
        self._answered, self._leader, self._term = None, sender, term_of(received)
        self._note_announced(received)

    def _at_least(self, step: int) -> tuple[int, Received] | None:
        newest = self._rounds.newest()
        return newest if newest and newest[1].round >= step else None

    def _await(self, wanted: Callable[[], tuple[int, Received] | None], what: str) -> tuple[int, Received] | None:
        """Wait for an announcement. What was announced counts even when who said it has left since."""
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
        """Whether who leads is about where we are. Raises LapsedError if we have led on where nobody could hear it."""
        newest = self._rounds.newest()
        if newest and newest[0] != self._me and newest[1].round + AHEAD < self._step:
            # It would be asked in every round until the others are where it is, and keep each to its deadline.
            raise LeaseExpiredError(
                f"worker {newest[0]} leads at round {newest[1].round}, and this one has gone on to "
                f"round {self._step} by itself"
            )

    def _note_announced(self, received: Received) -> None:
        """Take over what a leader says of the whole run, so that we could go on in its place."""
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
        """What we say of the whole run when we lead; we do from here on."""
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
        """Whether somebody else leads with a better claim, while we thought that we do."""
        return self._rounds.leader() != self._me

    def _await_live(self) -> list[int]:
        """As the leader: who can be asked to take part, in worker order; waits until there is somebody."""
        mine = {self._me} if self._settings.mode.leader_trains else set()
        live: list[int] = []

        def look() -> bool:
            # Who still catches up could not answer, and the others would wait for it.
            live[:] = sorted(self._rounds.messages.caught_up() | mine)
            self._incarnations = self._rounds.messages.incarnations()
            return bool(live)

        self._rounds.until(look, lambda: "workers that take part")
        return live

    def _peer_info(self, worker: int) -> dict[str, Any]:
        """What a worker says of itself; asked for where a new life has not been asked yet."""
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
        """As the leader: the answers of a round, void ones counted; None if somebody else leads by now.

        Args:
            asked: who takes part, ourselves included.
            own, read, length: as of `Rounds.gather`.
            until_s: when the deadline is (monotonic).
            answer_bytes: of one answer on the wire.
        """
        others, self._asked = [worker for worker in asked if worker != self._me], len(asked)
        quorum = cohorts.quorum(self._settings.mode.quorum, len(asked))
        # Our own steps may have taken longer than the others': they still get a chance.
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

    # --- cuts ---------------------------------------------------------------------------------

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
        """The end of this round if it was announced, else that it begins once more, else anything later."""
        ends = [
            (sender, received)
            for sender, kept in self._rounds.messages.kept("round_end").items()
            for received in kept
            if received.round == step and received is not tried and self._rounds.is_in_force(sender, received)
        ]
        if ends:
            return max(ends, key=lambda end: end[1].fields.get("term", 0))
        # A leader that was started again has not got what we sent to its former life.
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

    # --- what a mode gives --------------------------------------------------------------------

    @abc.abstractmethod
    def _follow(self, sender: int, received: Received) -> dict[str, float]:
        """Our part in a round that somebody else has announced; returns the losses."""

    @abc.abstractmethod
    def _end_fields(self, step: int) -> dict[str, Any]:
        """As the leader: put what holds after this round, hold it ourselves, and say where it is."""

    @abc.abstractmethod
    def _load_end(self, sender: int, received: Received) -> None:
        """Fetch and hold what holds after a round. Raises one of `MISSED`."""

    @abc.abstractmethod
    def _catch_up(self, sender: int, received: Received) -> None:
        """Fetch what it takes to begin in the middle, after this announcement. Raises one of `MISSED`."""

    @abc.abstractmethod
    def _load_state(self, arrays: dict, values: dict[str, Any]) -> None:
        """The inverse of `state`; the learner has been loaded."""
