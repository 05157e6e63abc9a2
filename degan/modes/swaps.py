"""Swaps of discriminators: sent after a round, loaded when they have come, given to workers that join.

After its feedback of a round with a swap each worker sends its discriminator to the worker that the derangement names,
and waits for its incoming discriminator. The wait is limited so that no worker misses a round. When the next round has
begun, the worker continues with its own discriminator. The incoming one is loaded between two later rounds, if it comes
before the deadline. A worker that joins asks a live worker, drawn at random, for a copy of its discriminator.

What always holds: a discriminator is replaced only by one that has come whole and is finite. Each incoming
discriminator is either loaded or counted as missed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from config.settings.experiment import Experiment
from degan.federation.derangement import derangement
from degan.learners import names
from degan.learners.protocols import Adversarial
from degan.seeds import spawn_seed
from peers.errors import MessageError, StalledError
from peers.rounds.rounds import Rounds
from peers.types import Received

NETWORK = "discriminator"


class Incoming(NamedTuple):
    """The incoming discriminator: its sender and the sender's incarnation, its round, and the limits of the wait.

    Attributes:
        until_s: the end of the wait (seconds, monotonic).
        grace_s: the longest wait after the next round has begun.
    """

    sender: int
    incarnation: str | None
    round: int
    until_s: float
    grace_s: float


class Swaps:
    """One worker's part in the swaps, from the main thread.

    Args:
        settings, learner: the experiment and this worker's learner.
        rounds: the rounds with the peers.
        me: this worker's number.
        predicted: bytes `sent` and `received` by the formula; those of the swaps are added.
        log: called with one line for a person.

    Attributes:
        done, missed: how many discriminators have come by a swap, and how many expected ones have not.
    """

    def __init__(
        self,
        settings: Experiment,
        learner: Adversarial,
        rounds: Rounds,
        me: int,
        predicted: dict[str, int],
        log: Callable[[str], None],
    ):
        self._seed, self._learner, self._rounds, self._messages, self._me = (
            settings.seed,
            learner,
            rounds,
            rounds.messages,
            me,
        )
        self._names = names.of_network(learner.sizes, NETWORK, settings.mode.swap_optimiser)
        self._bytes = 4 * size(learner, settings)
        self._predicted, self._log = predicted, log
        self._incoming: Incoming | None = None
        self.done = self.missed = 0

    # --- a swap -------------------------------------------------------------------------------

    def begin(self, round: int, workers: Collection[int], deadline_s: float, incarnations: Mapping[int, str]) -> None:
        """Send this worker's discriminator after its part in a round, and note the sender of the incoming one.

        Args:
            incarnations: each worker's when the round was announced; a later incarnation does not know the round.
        """
        if self._incoming is not None:
            self._give_up()
        takers = derangement(self._seed, round, workers)
        (sender,) = (giver for giver, taker in takers.items() if taker == self._me)
        self._send(takers[self._me], round, {})
        until_s = time.monotonic() + deadline_s
        self._incoming = Incoming(sender, incarnations.get(sender), round, until_s, deadline_s / 2)

    def wait(self, step: int, may_wait: Callable[[int], bool] = lambda sender: True) -> None:
        """Wait for the incoming discriminator, but not so long that this worker misses the round after `step`.

        Args:
            may_wait: whether the leader waits for this sender; all the others wait for the leader.
        """
        incoming = self._incoming
        if incoming is None:
            return

        def is_late() -> bool:
            newest = self._rounds.newest()
            if newest is None or newest[1].round <= step:
                return self._rounds.leader() == self._me and not may_wait(incoming.sender)
            waited_s = time.monotonic() - newest[1].at_s
            return newest[1].round > step + 1 or waited_s > incoming.grace_s

        # `take` logs a discriminator that has not come by the deadline.
        with contextlib.suppress(StalledError):
            self._rounds.until(
                lambda: self._come() or self._is_lost() or is_late(),
                lambda: f"the discriminator of worker {incoming.sender}",
                max(0.0, incoming.until_s - time.monotonic()),
            )
        self.take()

    def take(self) -> None:
        """Between two rounds: load the incoming discriminator if it has come, or give it up if it is lost or late."""
        if self._incoming is None:
            return
        received = self._come()
        if received is None:
            if self._is_lost() or time.monotonic() >= self._incoming.until_s:
                self._give_up()
            return
        try:
            self._load(received)
        except MessageError as error:
            self._log(f"{error}")
            self._give_up()
            return
        self.done += 1
        self._end()

    def _come(self) -> Received | None:
        return self._messages.received("swap", self._incoming.sender, self._incoming.round)

    def _is_lost(self) -> bool:
        """Whether the sender is gone. A message that it sent before its goodbye may still come."""
        sender, incarnation, round, *_ = self._incoming
        # In the first round no incarnation of the sender may be known yet.
        return sender not in self._messages.reached(round) or incarnation not in (
            None,
            self._messages.incarnation(sender),
        )

    def _give_up(self) -> None:
        self.missed += 1
        sender, _, round, *_ = self._incoming
        self._log(f"round {round}: the discriminator of worker {sender} has not come; this worker keeps its own")
        self._end()

    def _end(self) -> None:
        self._messages.close_round("swap", self._incoming.round)
        self._incoming = None

    # --- joining ------------------------------------------------------------------------------

    def ask(self, round: int, patience_s: float, but: Collection[int | None]) -> None:
        """Join at a round: begin with the discriminator of a live worker, or with this worker's if none comes.

        Args:
            patience_s: how long to try.
            but: workers that train no discriminator.
        """
        random = np.random.default_rng(spawn_seed(self._seed, "join", self._me, round))
        until_s, asked = time.monotonic() + patience_s, set(but)
        while time.monotonic() < until_s:
            givers = sorted(self._messages.caught_up() - asked)
            if not givers:
                break
            giver = int(random.choice(givers))
            asked.add(giver)
            try:
                if self._ask(giver, round, int(random.integers(2**48)), until_s):
                    self._log(f"begins with the discriminator of worker {giver}")
                    return
            except (StalledError, MessageError) as error:
                self._log(f"{error}")
        self._log("nobody has given its discriminator; going on with the one that this worker has")

    def _ask(self, giver: int, round: int, token: int, until_s: float) -> bool:
        def given() -> Received | None:
            received = self._messages.received("swap", giver)
            return received if received is not None and received.extras.get("token") == token else None

        incarnation = self._messages.incarnation(giver)
        self._rounds.send(giver, "want", round, {"token": token})
        self._rounds.until(
            # A new incarnation of the giver never reads this request.
            lambda: given() or giver not in self._messages.live() or self._messages.incarnation(giver) != incarnation,
            lambda: f"the discriminator of worker {giver}",
            max(0.0, until_s - time.monotonic()),
        )
        received = given()
        if received is not None:
            self._load(received)
            self._messages.close_round("swap", received.round)
        return received is not None

    def give(self, step: int) -> None:
        """Before a step: send copies of the discriminator after the step before to the workers that have asked."""
        for sender in self._messages.kept("want"):
            received = self._messages.take("want", sender)
            token = received.fields.get("token") if received else None
            if isinstance(token, int) and 0 <= token < 2**48:
                self._send(sender, step - 1, {"token": float(token)})

    # --- both ---------------------------------------------------------------------------------

    def _send(self, peer: int, round: int, extras: dict[str, float]) -> None:
        vectors, counters = self._learner.state(self._names)
        said = {name: float(count) for name, count in counters.items()}
        self._rounds.send(peer, "swap", round, names.joined(vectors), said | extras)
        self._predicted["sent"] += self._bytes

    def _load(self, message: Received) -> None:
        self._predicted["received"] += self._bytes
        counters = {name: message.extras.get(name, -1.0) for name in self._learner.state(self._names)[1]}
        if any(not 0 <= count < 2**48 for count in counters.values()) or not np.isfinite(message.values).all():
            raise MessageError("malformed", f"the discriminator after round {message.round} cannot be used")
        counters = {name: int(count) for name, count in counters.items()}
        self._learner.load(names.split(message.values, self._learner.sizes, self._names), counters)


def size(learner: Adversarial, settings: Experiment) -> int:
    """Number of values of a discriminator on the wire."""
    return names.size_of(learner.sizes, names.of_network(learner.sizes, NETWORK, settings.mode.swap_optimiser))
