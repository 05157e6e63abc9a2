"""Federated averaging written by hand in plain torch: weights, moments, averages and rounding of every round."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from degan.modes.federated import stragglers
from peers.chaos.attacks import Attack
from tests.federations import SHAPE, Fleet, assert_same_model, experiment, stream
from tests.fleets import memory_buses
from tests.learner_views import model_of, vectors_of
from tests.plain_gans import PlainGan, flat

# With these rates a step moves the weights by much more than float32 rounds, and averages soon reach their decay.
FAST = {"generator_lr": 0.004, "discriminator_lr": 0.01, "betas": (0.6, 0.9), "ema_decay": 0.22}
# The counts of two classes differ a lot between workers; the samples are not their sums, to tell the two apart.
HISTOGRAMS = [[12, 0], [0, 4], [8, 40]]
SAMPLES = [10, 30, 60]


def peer_info(worker):
    return {"samples": SAMPLES[worker], "histogram": HISTOGRAMS[worker]}


def shares(raw):
    """Weights by worker with the sum 1."""
    return {worker: value / sum(raw.values()) for worker, value in raw.items()}


def by_divergence(scheme, sign, answered):
    """The weights by the specification's formulas; the global histogram has all workers, with or without an answer."""
    everyone = [sum(row[c] for row in HISTOGRAMS) for c in range(2)]
    total, raw = sum(everyone), {}
    for worker in answered:
        row = HISTOGRAMS[worker]
        divergence = sum(
            x / sum(row) * math.log(x / sum(row) / (all_of / total))
            for x, all_of in zip(row, everyone, strict=True)
            if x
        )
        score = divergence * sum(row) / total
        if scheme == "linear":
            raw[worker] = score if sign == "as_released" else sum(row) / (1 + divergence)
        else:
            raw[worker] = math.exp(score if sign == "as_released" else -score)
    return shares(raw)


class ByHand:
    """Federated averaging in one process.

    Args:
        settings: the experiment.
        weigh: makes the weight of each worker with an answer.
        half: the dtype to which sent values are rounded; None for float32.
        rule: reduces the changes of the answers to one, in place of the weighted mean.

    Attributes:
        model: all weights, those of G, then those of D.
        leader: a GAN whose `average` is G's moving average.
        losses: for each round the losses by worker.
    """

    def __init__(self, settings, weigh, half=None, rule=None):
        self.settings, self.weigh, self.half, self.rule = settings, weigh, half, rule
        self.workers = [PlainGan(settings, SHAPE, worker) for worker in range(settings.workers)]
        self.data = [stream(worker) for worker in range(settings.workers)]
        self.leader = PlainGan(settings, SHAPE, 0)
        self.model = self.rounded(self.leader.weights())
        self.moments, self.steps, self.losses = None, 0, []

    def rounded(self, values):
        return values.to(self.half).float() if self.half else values

    def round(self, cohort, answering=None, local_steps=None, leader=0):
        """One round of a cohort, with the workers whose answers are used, the steps of some workers, and the leader."""
        mode, found = self.settings.mode, {}
        self.losses.append({})
        for worker in cohort:
            gan, count = self.workers[worker], (local_steps or {}).get(worker, mode.local_steps)
            gan.load_weights(self.model)
            for at, adam in enumerate((gan.g_adam, gan.d_adam)):
                if mode.optimiser_state == "reset":
                    adam.first, adam.second = ([torch.zeros_like(w) for w in adam.weights] for _ in range(2))
                    adam.steps = 0
                elif mode.optimiser_state == "average" and self.moments:
                    adam.first, adam.second = ([m.clone() for m in some] for some in self.moments[at])
                if mode.optimiser_state == "average":
                    adam.steps = self.steps
            is_g_first = mode.order == "generator_first"
            losses = [gan.learn(self.data[worker]().samples, is_g_first) for _ in range(count)]
            self.losses[-1][worker] = [sum(row) / count for row in zip(*losses, strict=True)]
            moments = [(gan.g_adam.first, gan.g_adam.second), (gan.d_adam.first, gan.d_adam.second)]
            # The leader's own answer is not sent.
            found[worker] = (gan.weights() if worker == leader else self.rounded(gan.weights())), moments
        used = {worker: found[worker] for worker in (cohort if answering is None else answering)}
        if not used:
            return
        weights = self.weigh(list(used))
        away = torch.stack([used[w][0] - self.model for w in used])
        reduced = self.model + self.rule(away) if self.rule else sum(weights[w] * used[w][0] for w in used)
        self.model = self.rounded(reduced)
        self.moments = [
            [[sum(weights[w] * used[w][1][net][kind][k] for w in used) for k in range(6)] for kind in range(2)]
            for net in range(2)
        ]
        self.steps += mode.local_steps
        self.leader.load_weights(self.model)
        for _ in range(mode.local_steps):
            self.leader.take_average()


def close(found, expected, start, tolerance=1e-3):
    """Compare two vectors, relative to how far training has moved them from the start."""
    found, expected, start = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (found, expected, start))
    moved = np.linalg.norm(expected - start)
    assert moved > 0.005 * np.linalg.norm(expected), "training moves it"
    assert np.linalg.norm(found - expected) <= tolerance * moved


def assert_like(pair, hand, tolerance=1e-3):
    """Compare a worker's weights and moving average after the last sync point."""
    start, mine = PlainGan(hand.settings, SHAPE, 0), vectors_of(pair)
    close(np.concatenate([mine["generator"], mine["discriminator"]]), hand.model, start.weights(), tolerance)
    close(mine["ema"], flat(hand.leader.average), flat(start.g), tolerance)


def even(answered):
    return shares(dict.fromkeys(answered, 1))


def by_size(answered):
    return shares({worker: SAMPLES[worker] for worker in answered})


# --- the model of a round -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "order"),
    [("keep", "generator_first"), ("reset", "discriminator_first"), ("average", "generator_first")],
)
def test_rounds_are_the_weighted_mean_of_plain_adam_steps(state, order):
    """There are three rounds of two steps, a sync point after the second, weights by size; all workers end alike."""
    settings = experiment(3, local_steps=2, optimiser=FAST, optimiser_state=state, order=order, leaders=2)
    fleet = Fleet(settings, memory_buses(3), sync_points=(2,), peer_info=peer_info)
    assert_same_model(fleet.run(3))
    hand = ByHand(settings, by_size)
    for _ in range(3):
        hand.round([0, 1, 2])
    assert_like(fleet.pairs[2], hand)
    if state == "average":
        mine = vectors_of(fleet.pairs[0])
        for net, name in enumerate(("generator", "discriminator")):
            for kind, moment in enumerate(("exp_avg", "exp_avg_sq")):
                expected = torch.cat([x.reshape(-1) for x in hand.moments[net][kind]])
                close(mine[f"{name}.{moment}"], expected, 0 * expected)
    for worker in range(3):
        for step, line in enumerate(fleet.losses[worker]):
            assert [line["d_loss"], line["g_loss"]] == pytest.approx(hand.losses[step][worker], rel=1e-4)


@pytest.mark.parametrize("sign", ["divergent_less", "as_released"])
@pytest.mark.parametrize("scheme", ["exp", "linear"])
def test_answers_weigh_by_their_divergence_from_everybodys_histogram(scheme, sign):
    """The global histogram includes that of worker 1, whose answer is spoilt."""
    settings = experiment(3, local_steps=1, optimiser=FAST, weighting="kl", scheme=scheme, sign=sign, leaders=1)
    fleet = Fleet(settings, memory_buses(3), peer_info=peer_info)
    fleet.modes[1]._attack = Attack("nan")
    fleet.run(1)
    hand = ByHand(settings, lambda answered: by_divergence(scheme, sign, answered))
    hand.round([0, 1, 2], [0, 2])
    assert_like(fleet.pairs[1], hand)


@pytest.mark.parametrize(("weighting", "weigh"), [("uniform", even), ("size", by_size)])
def test_answers_weigh_the_same_or_by_their_samples(weighting, weigh):
    settings = experiment(3, local_steps=1, optimiser=FAST, weighting=weighting, leaders=1)
    fleet = Fleet(settings, memory_buses(3), peer_info=peer_info)
    fleet.modes[2]._attack = Attack("nan")
    fleet.run(2)
    hand = ByHand(settings, weigh)
    for _ in range(2):
        hand.round([0, 1, 2], [0, 1])
    assert_like(fleet.pairs[2], hand)


@pytest.mark.parametrize("state", ["keep", "average"])
def test_a_worker_outside_the_cohort_goes_on_where_the_model_is(state):
    """The moments' steps are those of the model (`average`), or the worker's own (`keep`)."""
    settings = experiment(3, local_steps=2, cohort=2, optimiser=FAST, optimiser_state=state, leaders=2)
    settings = msgspec.structs.replace(settings, seed=10)
    fleet = Fleet(settings, memory_buses(3), peer_info=peer_info)
    fleet.run(4)
    # The seed gives these cohorts, in this and every later version.
    cohorts = [[0, 2], [0, 1], [1, 2], [0, 2]]
    assert [[w for w in range(3) if fleet.drawn[w][step]] for step in range(4)] == cohorts
    hand = ByHand(settings, by_size)
    for cohort in cohorts:
        hand.round(cohort)
    assert_like(fleet.pairs[0], hand)


@pytest.mark.parametrize(
    ("rule", "byzantine", "by_rule"),
    [
        ("median", 1, lambda away: away.sort(0).values[2]),
        ("trimmed_mean", 1, lambda away: away.sort(0).values[1:4].mean(0)),
        ("trimmed_mean", 2, lambda away: away.sort(0).values[2]),
    ],
)
def test_a_robust_rule_is_over_how_far_the_answers_are_away_from_the_model(rule, byzantine, by_rule):
    settings = experiment(5, local_steps=1, optimiser=FAST, reduce=rule, byzantine=byzantine, leaders=1)
    fleet = Fleet(settings, memory_buses(5))
    fleet.run(1)
    hand = ByHand(settings, even, rule=by_rule)
    hand.round(range(5))
    assert_like(fleet.pairs[4], hand)


def test_a_leader_that_does_not_train_gives_the_mean_losses():
    settings = experiment(3, local_steps=3, optimiser=FAST, leader_trains=False, leaders=1, weighting="uniform")
    fleet = Fleet(settings, memory_buses(3), peer_info=peer_info)
    fleet.run(2)
    hand = ByHand(settings, even)
    for step in range(2):
        hand.round([1, 2])
        for worker in (1, 2):
            line = fleet.losses[worker][step]
            assert [line["d_loss"], line["g_loss"]] == pytest.approx(hand.losses[step][worker], rel=1e-4)
        for name in ("d_loss", "g_loss"):
            rows = [fleet.losses[worker][step][name] for worker in (1, 2)]
            assert fleet.losses[0][step][name] == pytest.approx(sum(rows) / 2)
    assert_like(fleet.pairs[0], hand)


def test_weak_workers_take_their_own_number_of_steps():
    """The leader is weak and takes two of five steps; the model counts five steps all the same."""
    weak = {"fraction": 0.34}
    settings = experiment(3, local_steps=5, optimiser=FAST, stragglers=weak, optimiser_state="average", leaders=1)
    fleet = Fleet(settings, memory_buses(3), peer_info=peer_info)
    fleet.run(2)
    assert fleet.drawn == [[2, 2], [5, 5], [5, 5]]
    hand = ByHand(settings, by_size)
    for _ in range(2):
        hand.round([0, 1, 2], local_steps={0: 2})
    assert_like(fleet.pairs[1], hand)


def test_weak_workers_are_drawn_by_the_seed():
    """The share of all is rounded to the nearest; every version draws alike, because all workers have to."""
    for fraction, steps, expected in (
        (0.36, "half", dict.fromkeys((1, 4, 8, 9), 3)),
        (0.34, 1, dict.fromkeys((1, 4, 5), 1)),
        (0.1, 99, {2: 7}),
        (0.0, "half", {}),
    ):
        settings = experiment(10, local_steps=7, stragglers={"fraction": fraction, "local_steps": steps})
        assert stragglers(settings) == expected
    assert set(stragglers(experiment(10, local_steps=1, stragglers={"fraction": 0.1})).values()) == {1}


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "half", "model"), [("float16", torch.float16, "wide"), ("bfloat16", torch.bfloat16, "mlp")]
)
def test_with_half_precision_the_model_is_rounded_whole_in_every_round_and_still_learns(codec, half, model):
    """The wide model takes more than one chunk; the two models differ by a rounding between two halves."""
    fast = FAST | {"generator_lr": 0.02, "discriminator_lr": 0.02}
    settings = experiment(2, model, local_steps=1, optimiser=fast, codec=codec, leaders=1)
    fleet = Fleet(settings, memory_buses(2), peer_info=peer_info)
    assert_same_model(fleet.run(2))
    found = torch.from_numpy(model_of(fleet.pairs[1]))
    assert model == "mlp" or found.numel() > 2 * 262144, "two full chunks and a rest"
    assert torch.equal(found, found.to(half).float())
    hand = ByHand(settings, by_size, half)
    for _ in range(2):
        hand.round([0, 1])
    assert_like(fleet.pairs[1], hand, 0.02)
    # A model that is not rounded differs in nearly every value.
    assert (found == hand.model).float().mean() > 0.99


def test_moments_that_travel_in_half_precision_keep_the_steps_as_long_as_they_are():
    """Adam divides by the root of the second moment: a codec that rounds it to zero makes infinite steps."""
    settings = experiment(2, local_steps=2, optimiser=FAST, codec="bfloat16", optimiser_state="average", leaders=1)
    fleet = Fleet(settings, memory_buses(2), peer_info=peer_info)
    assert_same_model(fleet.run(4))
    hand = ByHand(settings, by_size, torch.bfloat16)
    for _ in range(4):
        hand.round([0, 1])
    assert_like(fleet.pairs[1], hand, 0.1)


# --- rounds that do not count ---------------------------------------------------------------------


@pytest.mark.parametrize("state", ["keep", "average"])
def test_a_void_round_leaves_model_average_and_steps_as_they_were(state):
    """In the second of three rounds two of three answers are spoilt, more than the quorum allows."""
    settings = experiment(3, local_steps=2, optimiser=FAST, optimiser_state=state, leaders=2)
    fleet = Fleet(settings, memory_buses(3), peer_info=peer_info)
    for worker in (1, 2):
        mode = fleet.modes[worker]
        mode._attack = lambda change, mode=mode: change * np.float32("nan" if mode._step == 2 else 1)
    assert_same_model(fleet.run(3))
    hand = ByHand(settings, by_size)
    for answering in ([0, 1, 2], [], [0, 1, 2]):
        hand.round([0, 1, 2], answering)
    assert_like(fleet.pairs[2], hand)
    assert [stats["void_rounds"] for stats in fleet.stats[:1]] == [1]


@pytest.mark.parametrize(("spoilt", "quorum", "is_void"), [(2, 0.5, False), (3, 0.5, True), (1, 0.8, True)])
def test_a_round_counts_from_its_quorum_on(spoilt, quorum, is_void):
    """The quorum is a share of the four asked workers, rounded up to whole answers."""
    settings = experiment(4, local_steps=1, quorum=quorum, leaders=1, weighting="uniform")
    fleet = Fleet(settings, memory_buses(4))
    first = model_of(fleet.pairs[0])
    for worker in range(4 - spoilt, 4):
        fleet.modes[worker]._attack = Attack("nan")
    fleet.run(1)
    assert np.array_equal(model_of(fleet.pairs[0]), first) == is_void
    stats = fleet.stats[0]
    assert (stats["void_rounds"], stats["answered"], stats["cohort"]) == (int(is_void), 4 - spoilt, 4)


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "size_bytes"), [("raw", 4), ("float16", 2)])
def test_predicted_bytes_worked_out_by_hand(codec, size_bytes):
    """There are three rounds of four workers, two of which may lead; sync points after the second and the last."""
    settings = experiment(4, local_steps=1, leaders=2, codec=codec)
    fleet = Fleet(settings, memory_buses(4), sync_points=(2,))
    fleet.run(3)
    # G: 8 -> 16 -> 16 -> 1024; D: 1024 -> 16 -> 16 -> 1; weights and biases.
    of_g, of_d = 8 * 16 + 16 + 16 * 16 + 16 + 16 * 1024 + 1024, 1024 * 16 + 16 + 16 * 16 + 16 + 16 + 1
    model, average = size_bytes * (of_g + of_d), 4 * of_g
    sent = [stats["predicted_sent_bytes"] for stats in fleet.stats]
    received = [stats["predicted_received_bytes"] for stats in fleet.stats]
    # The first model, which all hold, is put as well; a model of a sync point is not put again for the next round.
    assert sent == [4 * model + 2 * average] + [3 * model] * 3
    assert received == [9 * model] + [3 * model + 2 * average] * 3
