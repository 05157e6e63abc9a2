"""Federated rounds (FL-GAN, FeGAN): a cohort trains the leader's model on its own data; the mean is the next model.

    leader: choose a cohort, put the model, `round_start`
    member: fetch the model -> `local_steps` steps on its own shard -> `result` to the leader
    leader: weighted mean of the answers before the deadline -> next model; without a quorum the round is void

`reduce` selects a robust rule instead of the weighted mean. The rule reduces the differences between the answers and
the global model. All answers have the same weight, because a byzantine worker could claim too high a weight.

The other workers that may lead fetch every round's model, so that each can continue from there. All workers fetch the
model at a sync point. The optimisers' moments stay with their worker (`optimiser_state: keep`), are reset in every
round (`reset`), or are averaged and sent with the model (`average`). The workers that may lead keep G's moving average,
in which a round counts as `local_steps` steps.

What always holds: between two rounds there is one model. A member that dies is missing from its round only. When the
leader dies, at most its round is lost. With all workers in the cohort, equal shards, one local SGD step and uniform
weights a round is one step on the union of the batches.

FL-GAN is `sampling: uniform, weighting: size`; FeGAN is `sampling: balanced, weighting: kl`.

Sources: McMahan et al. 2017, algorithm 1; Guerraoui, Guirguis, Kermarrec, Le Merrer, "FeGAN", Middleware 2020, with
its released code. Departures: succession of leaders and an adaptive deadline (there the server is one process and
waits for ever), weights over the workers that answered, and the departures in `degan.federation.cohorts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.federation import cohorts
from degan.learners import names
from degan.learners.casts import torch_cast
from degan.learners.chain import attack, chain
from degan.learners.protocols import Trainable
from degan.modes import Context
from degan.modes.connect import open_bus
from degan.modes.leader.claims import answer_extras, mean_losses, whole
from degan.modes.leader.join import MISSED
from degan.modes.leader.leader_based import LeaderBased
from degan.modes.needs import Needs, leader_outbox_bytes, leaders_of
from degan.seeds import spawn_seed
from peers.bus.door import Bus
from peers.codecs.exact import Codec
from peers.codecs.exact import build as build_codec
from peers.errors import MessageError
from peers.rounds.layout import RoundLayout
from peers.rounds.versions import Piece, Versions
from peers.session.transfer import encoded_bytes
from peers.types import Received
from peers.vectors import reduce as robust

MODEL, SMOOTH = "model", "smooth"


class Federated(LeaderBased):
    """See `degan.modes.Mode` and `degan.modes.leader.leader_based.LeaderBased`."""

    def __init__(
        self,
        settings: Experiment,
        learner: Trainable,
        bus: Bus,
        facts: dict[str, Any],
        peer_info: dict[str, Any],
        log: Callable[[str], None],
    ):
        mode = self._mode = settings.mode
        if not mode.share_histograms:
            peer_info = {"samples": peer_info["samples"]}
        self._codec = build_codec(mode.codec, cast=torch_cast)
        self._has_moments = mode.optimiser_state == "average"
        self._sections = learner.sections("simultaneous" if mode.order == "generator_first" else "alternating")
        # The global model, never changed in place. Its version is the term of its leader, and the round that made it.
        self._names = names.of_model(learner.sizes, self._has_moments)
        self._average_names = names.of_average(learner.sizes)
        self._model = self._rounded(self._model_of(learner))
        self._version = (0, 0)
        self._steps_taken = 0
        self._sampled: cohorts.BalancedState | None = None
        self._weak = stragglers(settings)
        self._me = bus.worker
        kinds = kinds_of(settings, learner)
        sizes = {MODEL: self._model.size, SMOOTH: names.size_of(learner.sizes, self._average_names)}
        self._model_bytes = encoded_bytes(sizes[MODEL], self._codec)
        self._smooth_bytes = 4 * sizes[SMOOTH]
        self._smooth_sizes = {SMOOTH: sizes[SMOOTH]}
        super().__init__(settings, learner, bus, facts, peer_info, kinds, log)
        self._versions: Versions[tuple[int, int]] = Versions(self._rounds, newest=1)
        steps = self._local_steps()
        log(
            f"a model of {sizes[MODEL]:,} values travels as {self._model_bytes / 1e6:,.2f} MB; "
            f"{needs(settings, learner)}; this worker takes {steps} local steps a round"
            + (" (a weak worker)" if bus.worker in self._weak else "")
        )

    def _model_of(self, learner: Trainable) -> np.ndarray:
        """The vectors of a learner that are sent: all trained values, float32 (model,); a copy."""
        return names.joined(learner.state(self._names)[0])

    def _hold_model(self, counters: dict[str, int] | None = None) -> None:
        """Load the global model into the learner."""
        self._learner.load(names.split(self._model, self._learner.sizes, self._names), counters or {})

    def _rounded(self, model: np.ndarray) -> np.ndarray:
        """The model rounded as the codec sends it, so that all workers hold the same."""
        if self._codec.is_exact:
            return model
        step = self._codec.chunk_values
        for start in range(0, model.size, step):
            piece = model[start : start + step]
            self._codec.decode(self._codec.encode(piece), piece)
        return model

    # --- a round ------------------------------------------------------------------------------

    def step(self, step: int, next_batch: Callable[[], Batch], is_sync_point: bool) -> dict[str, float]:
        self._enter(step, next_batch)
        found = self._await_start(step)
        if found is None:
            return self._lead(step)
        message = found[1]
        if message.kind != "round_start" or message.round > step:
            return {}  # This worker is behind: continue with the newest round.
        return self._follow(*found)

    def _follow(self, sender: int, received: Received) -> dict[str, float]:
        step = received.round
        try:
            cohort = self._note_start(received)
            is_member = self._me in cohort
            if is_member or self._rounds.leadership.may_lead(self._me):
                self._fetch(sender, received)
        except MISSED as error:
            self._log(f"round {step}: {error}; not taking part in it")
            return {}
        if not is_member:
            return {}
        result, losses = self._train()
        self._predicted["sent"] += self._model_bytes
        self._rounds.send(sender, "result", step, result, answer_extras(received, losses))
        return losses

    def _lead(self, step: int) -> dict[str, float]:
        common = self._announcement(step)
        cohort = self._choose(self._await_live(), step)
        self._put_model(is_sync_point=False)
        deadline_s, began = self._rounds.deadline.seconds, time.monotonic()
        self._rounds.open("result", step)
        fields = common | {
            "cohort": cohort,
            "model": list(self._version),
            "steps": self._steps_taken,
            "deadline_s": deadline_s,
            "sampled": self._sampled.to_plain() if self._sampled else None,
        }
        self._rounds.publish("round_start", step, fields)
        own, losses = self._train() if self._me in cohort else (None, {})
        gathered = self._gather(
            "result",
            step,
            cohort,
            own,
            began + deadline_s,
            self._model_bytes,
            measure=lambda model: robust.distance(model, self._model),
        )
        if gathered is None:
            return losses
        if not gathered.is_void:
            self._adopt(self._mean(gathered.answers), (self._rounds.leadership.term, step))
        self._versions.forget()
        return losses or mean_losses(gathered.messages, self._learner.losses)

    def _choose(self, live: list[int], step: int) -> list[int]:
        wanted = self._mode.cohort or cohorts.cohort_size(self._mode.fraction, max(1, len(live)))
        size = min(wanted, len(live))
        if self._mode.sampling == "uniform":
            return cohorts.uniform(live, size, spawn_seed(self._settings.seed, "cohorts"), step)
        histograms = self._histograms(live)
        classes = max(row.size for row in histograms.values())
        if self._sampled is None or len(self._sampled.counts) != classes:
            self._sampled = cohorts.BalancedState.fresh(classes)
        cohort, self._sampled = cohorts.balanced(live, size, histograms, self._sampled)
        return cohort

    def _histograms(self, workers: list[int]) -> dict[int, np.ndarray]:
        """The samples of each class that each worker holds; zeros for a worker whose histogram cannot be read."""
        rows = {worker: np.array(self._peer_info(worker).get("histogram", []), dtype=np.int64) for worker in workers}
        classes = max([1, *(row.size for row in rows.values())])
        return {worker: row if row.size == classes else np.zeros(classes, np.int64) for worker, row in rows.items()}

    def _mean(self, answers: dict[int, np.ndarray]) -> np.ndarray:
        mode, workers = self._mode, sorted(answers)
        if mode.reduce != "mean":
            changes = [answers[worker] - self._model for worker in workers]
            return self._rounded(self._model + robust.build(mode.reduce, mode.byzantine)(changes))
        sizes = {worker: int(self._peer_info(worker).get("samples", 0)) for worker in workers}
        histograms = self._histograms(sorted(self._peer_infos)) if mode.weighting == "kl" else None
        weights = cohorts.weights(mode.weighting, mode.scheme, mode.sign, workers, sizes, histograms)
        total = np.zeros(self._model.size, np.float32)
        for worker in workers:
            total += np.float32(weights[worker]) * answers[worker]
        return self._rounded(total)

    def _train(self) -> tuple[np.ndarray, dict[str, float]]:
        """The model after this worker's local steps, and the mean losses of these steps."""
        learner, steps = self._learner, self._local_steps()
        has_moments = {names.network_of(name) for name in self._names if names.is_moment(name)}
        self._hold_model(dict.fromkeys(has_moments, self._steps_taken))
        if self._mode.optimiser_state == "reset":
            learner.reset_optimisers()
        context = self._guard.context()
        sums: dict[str, float] = {}
        for _ in range(steps):
            batch = self._next_batch()
            for section in self._sections:
                gradient, losses, is_usable = self._guard.gradients(section, batch)
                if is_usable:
                    learner.apply(section, gradient)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value / steps
        model = self._model_of(learner)
        if self._attack:
            model = self._model + chain(*attack(self._attack))(model - self._model, context)
        return model, sums

    def _local_steps(self) -> int:
        return self._weak.get(self._me, self._mode.local_steps)

    # --- the global model ---------------------------------------------------------------------

    def _adopt(self, model: np.ndarray, version: tuple[int, int]) -> None:
        """Take over a new global model; a worker that may lead updates G's moving average as well."""
        self._model, self._version = model, version
        self._steps_taken += self._mode.local_steps
        if self._rounds.leadership.may_lead(self._me):
            self._hold_model()
            self._learner.average((0, self._learner.size), self._mode.local_steps)

    def _put_model(self, is_sync_point: bool) -> None:
        """Put the global model under this worker's state key, if missing; at a sync point the moving average too."""
        version, versions = self._version, self._versions
        if version not in versions:
            model = Piece(_name(version), {MODEL: self._model}, codec=self._codec)
            self._predicted["sent"] += versions.put(version, model)
        if is_sync_point:
            if self._average_names:
                smooth = names.joined(self._learner.state(self._average_names)[0])
                self._predicted["sent"] += versions.put(version, Piece(_name(version, "s"), {SMOOTH: smooth}))
            versions.keep(version)

    def _fetch(self, sender: int, received: Received) -> None:
        """Fetch and adopt the model that an announcement names. Raises one of `MISSED`."""
        version, steps = _version(received), whole(received.fields, "steps")
        if version == self._version:
            return
        arrays, _ = self._rounds.fetch(
            sender, received.incarnation, _name(version), {MODEL: self._model.size}, self._codec
        )
        self._predicted["received"] += self._model_bytes
        self._adopt(arrays[MODEL], version)
        self._steps_taken = steps

    def _note_start(self, message: Received) -> list[int]:
        """Return the announced cohort, and keep the state for leading in the leader's place. Raises MessageError."""
        cohort, sampled = message.fields.get("cohort"), message.fields.get("sampled")
        if not isinstance(cohort, list) or not all(isinstance(worker, int) for worker in cohort):
            raise MessageError("malformed", f"round {message.round} has no cohort")
        self._asked = len(cohort)
        if sampled is not None:
            try:
                self._sampled = cohorts.BalancedState.from_plain(sampled)
            except ValueError as error:
                raise MessageError("malformed", f"round {message.round}: {error}") from None
        return cohort

    # --- the methods of a leader-based mode ---------------------------------------------------

    def _end_fields(self, step: int) -> dict[str, Any]:
        self._hold_model()
        self._put_model(is_sync_point=True)
        self._versions.forget()
        return {"model": list(self._version), "steps": self._steps_taken}

    def _load_end(self, sender: int, received: Received) -> None:
        self._fetch(sender, received)
        average: dict[str, np.ndarray] = {}
        if self._average_names:
            name = _name(self._version, "s")
            arrays, _ = self._rounds.fetch(sender, received.incarnation, name, self._smooth_sizes)
            self._predicted["received"] += self._smooth_bytes
            average = names.split(arrays[SMOOTH], self._learner.sizes, self._average_names)
        self._hold_model()
        self._learner.load(average, {})

    def _catch_up(self, sender: int, received: Received) -> None:
        if self._rounds.leadership.may_lead(self._me):
            self._fetch(sender, received)

    def leave(self, is_together: bool) -> None:
        # The checkpoint must hold the global model of this version, not the result of this worker's last local steps.
        self._hold_model()
        super().leave(is_together)

    def state(self):
        return {}, {
            "version": list(self._version),
            "steps_taken": self._steps_taken,
            "void_rounds": self._void_rounds,
            "answers_s": self._rounds.deadline.to_plain(),
            "sampled": self._sampled.to_plain() if self._sampled else None,
        }

    def _load_state(self, arrays: dict, values: dict[str, Any]) -> None:
        self._model = self._rounded(self._model_of(self._learner))
        self._version = (int(values["version"][0]), int(values["version"][1]))
        self._steps_taken, self._void_rounds = int(values["steps_taken"]), int(values["void_rounds"])
        self._sampled = cohorts.BalancedState.from_plain(values["sampled"]) if values["sampled"] else None
        self._rounds.leadership.term = self._version[0]
        self._rounds.deadline.load_plain(values.get("answers_s", []))


def kinds_of(settings: Experiment, learner: Trainable) -> dict[str, tuple[int, Codec]]:
    """The vectors on the wire: number of values and codec by kind."""
    has_moments = settings.mode.optimiser_state == "average"
    size = names.size_of(learner.sizes, names.of_model(learner.sizes, has_moments))
    return {"result": (size, build_codec(settings.mode.codec, cast=torch_cast))}


def build(context: Context) -> Federated:
    """The mode of one worker. Raises as `degan.modes.connect.open_bus`."""
    bus = open_bus(context.settings, context.worker, context.log, context.may_take_over)
    return Federated(context.settings, context.learner, bus, context.facts, context.peer_info, context.log)


def needs(settings: Experiment, learner: Trainable) -> Needs:
    """The needs of a worker: its results for each leader, and as a leader the models that the others fetch."""
    kinds = kinds_of(settings, learner)
    model_bytes = encoded_bytes(*kinds["result"])
    others = min(len(leaders_of(settings)), settings.workers - 1)
    return Needs(
        outbox_bytes=leader_outbox_bytes(RoundLayout(bytes(8), kinds), [("result",)] * others),
        # The newest model, the one before until its round is closed, that of the newest sync point with its average.
        state_bytes=3 * model_bytes + 2 * 4 * names.size_of(learner.sizes, names.of_average(learner.sizes)),
        step_bytes=model_bytes,
        vector_bytes=4 * learner.size,
    )


def stragglers(settings: Experiment) -> dict[int, int]:
    """FeGAN's weak workers and their local steps; drawn from the seed, the same on every worker."""
    mode = settings.mode
    random = np.random.default_rng(spawn_seed(settings.seed, "stragglers"))
    count = round(mode.stragglers.fraction * settings.workers)
    steps = mode.stragglers.local_steps
    steps = max(1, mode.local_steps // 2) if steps == "half" else min(steps, mode.local_steps)
    return {int(worker): steps for worker in random.choice(settings.workers, count, replace=False)}


def _name(version: tuple[int, int], prefix: str = "m") -> str:
    return f"{prefix}{version[0]}.{version[1]}"


def _version(message: Received) -> tuple[int, int]:
    found = message.fields.get("model")
    if not isinstance(found, list) or len(found) != 2:
        raise MessageError("malformed", f"round {message.round} names no model")
    term, round = ({"model": number} for number in found)
    return whole(term, "model"), whole(round, "model")
