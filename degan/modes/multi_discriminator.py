"""Multi-discriminator (MD-GAN): the leader holds the one generator, every worker a discriminator and its own data.

    leader: k batches of fakes, published once (`batch`), and `round_start`
    worker at place j of the list: discriminator steps on its own data and fakes j + 1 (mod k) -> the gradient of G's
        loss at fakes j (mod k), `feedback` to the leader
    leader: each batch's feedbacks summed, over the number of answers -> back through G -> one step of its optimiser
    every few epochs: each worker sends its discriminator to another (`swap`, a derangement of the asked workers)

A feedback is the gradient of the mean loss over a batch, so the chain rule does the rest: with one worker a round is
a plain alternating GAN step, and with equal discriminators a step on their mean loss. D is in its training mode
throughout; for a feedback its parameters stay, and its running statistics take the fakes in, as in any GAN step.

`reduce` selects a robust rule instead of the sum, over the feedbacks to one batch; the rule needs at least three. The
non-finite guard checks each worker's own steps: D stays unchanged where its gradient is not finite, and a feedback that
is not finite is sent as zeros.

What always holds: a feedback is left out and counted if it is late or not finite, or if its norm is far above usual.
Without a quorum G stays unchanged. A swapped discriminator is replaced only by one that has come whole. No worker waits
for another worker's swap, and a slow discriminator is loaded between two later rounds. Every `state_every` rounds and
at sync points the leader puts G under its state key (weights, running statistics, Adam's moments, moving average). The
workers that may lead fetch this state; at a sync point all workers do. When the leader dies, G's training since that
state is lost, and of the discriminators only the leader's.

Source: Hardy, Le Merrer, Sericola, "MD-GAN", IPDPS 2019, algorithm 1. Departures: succession of leaders, an adaptive
deadline and a quorum (there the server waits for all); each discriminator step has a batch of its own; the swap is a
derangement; Adam's moments go with a discriminator unless `swap_optimiser` is false.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.learners import names, scaling
from degan.learners.casts import torch_cast
from degan.learners.chain import attack, chain
from degan.learners.flat import to_numpy
from degan.learners.protocols import Adversarial
from degan.modes import Context, swaps
from degan.modes.connect import open_bus
from degan.modes.leader.claims import answer_extras, mean_losses, whole
from degan.modes.leader.join import MISSED
from degan.modes.leader.leader_based import LeaderBased
from degan.modes.needs import Needs, leader_outbox_bytes
from peers.bus.door import Bus
from peers.codecs.exact import Codec
from peers.codecs.exact import build as build_codec
from peers.errors import MessageError
from peers.rounds.layout import RoundLayout
from peers.rounds.versions import Piece, Versions
from peers.session.transfer import encoded_bytes
from peers.types import Received
from peers.vectors import reduce as robust

# Names of the vectors in a state, and the number of states that are kept for slow workers.
NETWORK, SMOOTH, MOMENTS = "generator", "smooth", "moments"
KEPT_STATES = 2
# The bound of an announced deadline.
MAX_DEADLINE_S = 1e7

# The term, the round and the leader of a state.
Version = tuple[int, int, int]


class Plan(NamedTuple):
    """The announcement of a round: its workers in their places, and whether they swap discriminators after it."""

    workers: list[int]
    is_swap: bool
    deadline_s: float
    state: Version | None


class MultiDiscriminator(LeaderBased):
    """See `degan.modes.Mode` and `degan.modes.leader.leader_based.LeaderBased`."""

    maps = LeaderBased.maps | {"want"}

    def __init__(
        self,
        settings: Experiment,
        learner: Adversarial,
        bus: Bus,
        facts: dict[str, Any],
        peer_info: dict[str, Any],
        log: Callable[[str], None],
    ):
        mode = self._mode = settings.mode
        self._shape = (settings.data.batch_size, *learner.sample_shape)
        self._batches = batches_of(settings)
        self._has_scale = mode.feedback_codec == "float16"
        # The newest state of G that was put or fetched; the term in which this worker has begun to lead.
        self._version: Version | None = None
        self._leads_since: int | None = None
        self._of_discriminator, self._of_generator = learner.sections("alternating")
        self._sizes = {
            NETWORK: names.size_of(learner.sizes, names.of_network(learner.sizes, NETWORK, has_moments=False)),
            SMOOTH: names.size_of(learner.sizes, names.of_average(learner.sizes)),
        }
        self._more = {
            MOMENTS: names.size_of(learner.sizes, names.of_network(learner.sizes, NETWORK)) - self._sizes[NETWORK]
        }
        kinds = kinds_of(settings, learner)
        self._bytes = {kind: encoded_bytes(*kinds[kind]) for kind in kinds}
        super().__init__(settings, learner, bus, facts, {"samples": peer_info["samples"]}, kinds, log)
        self._versions: Versions[Version] = Versions(self._rounds, newest=KEPT_STATES)
        self._swaps = swaps.Swaps(settings, learner, self._rounds, bus.worker, self._predicted, log)
        down, up, swapped = (self._bytes[kind] / 1e6 for kind in kinds)
        log(
            f"a round's {self._batches} x {self._shape[0]} fakes travel as {down:,.3f} MB to each worker, a feedback "
            f"as {up:,.3f} MB, a discriminator as {swapped:,.2f} MB; {needs(settings, learner)}"
        )

    # --- a round ------------------------------------------------------------------------------

    def step(self, step: int, next_batch: Callable[[], Batch], is_sync_point: bool) -> dict[str, float]:
        self._enter(step, next_batch)
        self._swaps.give(step)
        found = self._await_start(step)
        self._swaps.take()
        if found is None:
            return self._lead(step)
        message = found[1]
        if message.kind != "round_start" or message.round > step:
            return {}  # This worker is behind: continue with the newest round.
        return self._follow(*found)

    def _follow(self, sender: int, received: Received) -> dict[str, float]:
        step, losses = received.round, {}
        try:
            plan = _plan(received)
            self._asked = len(plan.workers)
            if self._me in plan.workers:
                losses = self._answer(sender, received, plan)
            if self._rounds.leadership.may_lead(self._me):
                self._fetch_state(sender, received.incarnation, plan.state)
        except MISSED as error:
            self._log(f"round {step}: {error}" + ("" if losses else "; not taking part in it"))
        self._swaps.wait(step)
        return losses

    def _answer(self, sender: int, received: Received, plan: Plan) -> dict[str, float]:
        """Do this worker's part in another worker's round. Raises one of `MISSED`."""
        step = received.round
        batch = self._rounds.messages.received("batch", sender, step)
        # The batch was published before the announcement of the round, so it is here or lost.
        if batch is None or batch.incarnation != received.incarnation:
            raise MessageError("incomplete", f"the batch of worker {sender} has not come whole")
        self._predicted["received"] += self._bytes["batch"]
        fakes, incarnations = (
            batch.values.reshape(self._batches, *self._shape),
            self._rounds.messages.incarnations(),
        )
        feedback, losses = self._train(plan.workers, list(fakes))
        extras = answer_extras(received, losses)
        if self._has_scale:
            feedback, exponent = scaling.scaled(feedback)
            extras["exponent"] = float(exponent)
        self._rounds.send(sender, "feedback", step, feedback, extras)
        self._predicted["sent"] += self._bytes["feedback"]
        if plan.is_swap:
            self._swaps.begin(step, plan.workers, plan.deadline_s, incarnations)
        return losses

    def _train(self, workers: list[int], fakes: list[np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
        """Train this worker's discriminator; returns the feedback, float32 (values of a batch,), and the losses."""
        place, count = workers.index(self._me), self._mode.discriminator_steps
        learned, judged = fakes[(place + 1) % self._batches], fakes[place % self._batches]
        d_loss = sum(self._learn(self._next_batch().samples, learned) for _ in range(count)) / count
        context = self._guard.context()
        feedback, g_loss = self._learner.feedback(judged)
        feedback = chain(self._guard, *attack(self._attack))(feedback, context)
        return feedback.reshape(-1), {"d_loss": d_loss, "g_loss": g_loss}

    def _learn(self, real: torch.Tensor, fake: np.ndarray) -> float:
        """One step of this worker's discriminator; returns the loss."""
        context = self._guard.context()
        gradient, loss = self._learner.discriminator_gradient(real, fake)
        if self._guard.passes(gradient, context):
            self._learner.apply(self._of_discriminator, gradient)
        return loss

    def _lead(self, step: int) -> dict[str, float]:
        common = self._announcement(step)
        workers = self._await_live()
        if self._leads_since != common["term"] and step > 1:
            # If this leader dies, the others continue from its initial state.
            self._put_state(step - 1)
        self._leads_since = common["term"]
        plan = Plan(workers, self._is_swap(step, workers), self._rounds.deadline.seconds, self._version)
        began = time.monotonic()
        fakes = self._learner.make_fakes(self._batches, self._shape[0])
        shown = [to_numpy(fake) for fake in fakes]
        if workers != [self._me]:
            self._rounds.publish("batch", step, np.concatenate(shown).reshape(-1))
            self._predicted["sent"] += self._bytes["batch"]
        self._rounds.open("feedback", step)
        self._rounds.publish("round_start", step, common | plan._asdict())
        own, losses = None, {}
        if self._me in workers:
            own, losses = self._train(workers, shown)
            if plan.is_swap:
                self._swaps.begin(step, workers, plan.deadline_s, self._incarnations)
        until_s, size_bytes = began + plan.deadline_s, self._bytes["feedback"]
        gathered = self._gather("feedback", step, workers, own, until_s, size_bytes, _feedback)
        if gathered is not None:
            if not gathered.is_void:
                self._update(workers, fakes, gathered.answers)
            if step % self._mode.state_every == 0:
                self._put_state(step)
        answered = gathered.messages if gathered else {}
        self._swaps.wait(step, lambda sender: sender in answered)
        return losses or mean_losses(answered, self._learner.losses)

    def _update(self, workers: list[int], fakes: list[torch.Tensor], answers: dict[int, np.ndarray]) -> None:
        """One step of G: for each batch with a feedback the sum of its feedbacks, over the number of all answers."""
        judged: dict[int, list[np.ndarray]] = {}
        for place, worker in enumerate(workers):
            if worker in answers:
                judged.setdefault(place % self._batches, []).append(answers[worker])
        gradients = [self._sum(some).reshape(self._shape) / np.float32(len(answers)) for some in judged.values()]
        gradient = self._learner.generator_gradient([fakes[batch] for batch in judged], gradients)
        if self._guard.allows_together(gradient):
            self._learner.apply(self._of_generator, gradient)
            self._learner.average(self._of_generator)

    def _sum(self, feedbacks: list[np.ndarray]) -> np.ndarray:
        """The sum of the feedbacks to one batch, in worker order; by a robust rule if set, for at least three."""
        if self._mode.reduce != "mean" and len(feedbacks) >= 3:
            return robust.build(self._mode.reduce, self._mode.byzantine)(feedbacks) * np.float32(len(feedbacks))
        with np.errstate(over="ignore", invalid="ignore"):
            return functools.reduce(np.add, feedbacks)

    def _is_swap(self, step: int, workers: list[int]) -> bool:
        """Whether the workers swap discriminators after this round: every `swap_every` epochs of the mean shard."""
        every = self._mode.swap_every
        every = float(self._settings.workers > 1) if every is None else every
        if self._joined_at == step - 1:
            return False  # The others may have had this round, with its swap, with this worker's former incarnation.
        samples = [
            peer_info["samples"]
            for _, peer_info in self._peer_infos.values()
            if isinstance(peer_info.get("samples"), int)
        ]
        if not every or len(workers) < 2 or not samples:
            return False
        return step % max(1, round(every * sum(samples) / len(samples) / self._shape[0])) == 0

    # --- the state of G -----------------------------------------------------------------------

    def _put_state(self, step: int, is_sync_point: bool = False) -> None:
        """Put G after a round under this worker's state key; states that no worker can be fetching are removed."""
        version = self._rounds.leadership.term, step, self._me
        if version != self._version:
            network, counters = self._learner.state(names.of_network(self._learner.sizes, NETWORK))
            average, more = self._learner.state(names.of_average(self._learner.sizes))
            values, border = names.joined(network), self._sizes[NETWORK]
            vectors = {NETWORK: values[:border], SMOOTH: names.joined(average)}
            self._predicted["sent"] += self._versions.put(
                version,
                Piece(_name("g", version), vectors, {"counters": counters | more}),
                Piece(_name("o", version), {MOMENTS: values[border:]}),
            )
            self._version = version
        if is_sync_point:
            self._versions.keep(version)
        self._versions.forget()

    def _fetch_state(self, sender: int, incarnation: str, version: Version | None) -> None:
        """Fetch the G that an announcement names; if this worker may lead, its moments too. Raises one of `MISSED`."""
        if version is None or version == self._version:
            return
        if version[2] != sender:
            raise MessageError("malformed", f"worker {sender} names a state of worker {version[2]}")
        arrays, meta = self._rounds.fetch(sender, incarnation, _name("g", version), self._sizes)
        self._predicted["received"] += 4 * sum(self._sizes.values())
        has_moments, sizes = self._rounds.leadership.may_lead(self._me), self._learner.sizes
        of_network, of_average = names.of_network(sizes, NETWORK, has_moments), names.of_average(sizes)
        counters, (_, own) = meta.get("counters"), self._learner.state([*of_network, *of_average])
        if not isinstance(counters, dict) or counters.keys() != own.keys():
            raise MessageError("malformed", f"the state of worker {sender} does not say what it has counted")
        counters = {name: whole(counters, name) for name in own}
        values = arrays[NETWORK]
        if has_moments:
            more, _ = self._rounds.fetch(sender, incarnation, _name("o", version), self._more)
            self._predicted["received"] += 4 * self._more[MOMENTS]
            values = np.concatenate([values, more[MOMENTS]])
        network, average = names.split(values, sizes, of_network), names.split(arrays[SMOOTH], sizes, of_average)
        self._learner.load(network | average, counters)
        self._version = version

    # --- the methods of a leader-based mode ---------------------------------------------------

    def _end_fields(self, step: int) -> dict[str, Any]:
        self._put_state(step, is_sync_point=True)
        return {"state": self._version}

    def _load_end(self, sender: int, received: Received) -> None:
        self._fetch_state(sender, received.incarnation, _version(received))

    def _catch_up(self, sender: int, received: Received) -> None:
        if self._rounds.leadership.may_lead(self._me):
            self._fetch_state(sender, received.incarnation, _version(received))
        # A leader that does not train has an untrained discriminator.
        but = () if self._mode.leader_trains else (sender,)
        self._swaps.ask(received.round, self._rounds.deadline.seconds, but)

    def state(self):
        return {}, {
            "version": self._version,
            "term": self._rounds.leadership.term,
            "void_rounds": self._void_rounds,
            "answers_s": self._rounds.deadline.to_plain(),
            "swaps": self._swaps.done,
            "swaps_missed": self._swaps.missed,
        }

    def _load_state(self, arrays: dict, values: dict[str, Any]) -> None:
        self._version = tuple(map(int, values["version"])) if values["version"] else None
        self._rounds.leadership.term = int(values["term"])
        self._rounds.deadline.load_plain(values.get("answers_s", []))
        self._void_rounds = int(values["void_rounds"])
        self._swaps.done, self._swaps.missed = int(values["swaps"]), int(values["swaps_missed"])

    def stats(self) -> dict[str, Any]:
        return super().stats() | {"swaps": self._swaps.done, "swaps_missed": self._swaps.missed}


def kinds_of(settings: Experiment, learner: Adversarial) -> dict[str, tuple[int, Codec]]:
    """The vectors on the wire: number of values and codec by kind."""
    mode, size = settings.mode, settings.data.batch_size * math.prod(learner.sample_shape)
    return {
        "batch": (batches_of(settings) * size, build_codec(mode.codec, cast=torch_cast)),
        "feedback": (size, build_codec(mode.feedback_codec, cast=torch_cast)),
        "swap": (swaps.size(learner, settings), build_codec("raw")),
    }


def build(context: Context) -> MultiDiscriminator:
    """The mode of one worker. Raises as `degan.modes.connect.open_bus`."""
    bus = open_bus(context.settings, context.worker, context.log, context.may_take_over)
    return MultiDiscriminator(context.settings, context.learner, bus, context.facts, context.peer_info, context.log)


def needs(settings: Experiment, learner: Adversarial) -> Needs:
    """The needs of a worker: batches for all, feedbacks and discriminators for each peer, and the states of G."""
    kinds = kinds_of(settings, learner)
    streams = [("batch",), *[("feedback", "swap")] * (settings.workers - 1)]
    g = [*names.of_network(learner.sizes, NETWORK), *names.of_average(learner.sizes)]
    # The kept states, that of the newest sync point, and one that is being put.
    states = KEPT_STATES + 2
    return Needs(
        outbox_bytes=leader_outbox_bytes(RoundLayout(bytes(8), kinds), streams),
        state_bytes=states * 4 * names.size_of(learner.sizes, g),
        step_bytes=encoded_bytes(*kinds["batch"]),
        vector_bytes=4 * learner.size,
    )


def batches_of(settings: Experiment) -> int:
    """k: the number of batches in a round; the same for the whole run, however many workers are live."""
    batches = settings.mode.batches
    return max(1, math.floor(math.log(settings.workers))) if batches == "log" else batches


def _name(prefix: str, version: Version) -> str:
    return f"{prefix}{version[0]}.{version[1]}"


def _version(message: Received) -> Version | None:
    """The state that an announcement names; None as long as G is the initial one."""
    found = message.fields.get("state")
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 3:
        raise MessageError("malformed", f"round {message.round} names no state")
    term, round, worker = (whole({"state": number}, "state") for number in found)
    return term, round, worker


def _plan(message: Received) -> Plan:
    """A leader's announcement. Raises MessageError."""
    fields = message.fields
    workers, deadline_s = fields.get("workers"), fields.get("deadline_s")
    if not isinstance(workers, list) or not all(isinstance(worker, int) for worker in workers):
        raise MessageError("malformed", f"round {message.round} names no workers")
    if len(set(workers)) < len(workers):
        raise MessageError("malformed", f"round {message.round} names a worker twice")
    if not isinstance(deadline_s, int | float) or not 0 <= deadline_s <= MAX_DEADLINE_S:
        raise MessageError("malformed", f"round {message.round} has no deadline")
    return Plan(workers, fields.get("is_swap") is True and len(workers) > 1, deadline_s, _version(message))


def _feedback(message: Received) -> np.ndarray:
    """The gradient in a message. Raises ValueError."""
    return scaling.unscaled(message.values, message.extras.get("exponent", 0.0))
