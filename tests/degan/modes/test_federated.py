"""Federated rounds: the oracles, rounds with missing workers, and the bytes of a round."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch

import config
from degan.federation import cohorts
from degan.learners.gan_pair import GanPair
from degan.modes.federated import stragglers
from degan.modes.leader.claims import plain_peer_info
from peers.chaos.attacks import Attack
from peers.errors import LeaseExpiredError
from tests.federations import BATCH, SHAPE, Fleet, assert_same_model, experiment, peer_info, stream
from tests.fleets import memory_buses, redis_buses
from tests.learner_views import load_model, model_of, unlabelled

RUNS = itertools.count()


def make_buses(request, backend, workers):
    if backend == "memory":
        return memory_buses(workers)
    return redis_buses(workers, request.getfixturevalue("redis_url"), f"federated{next(RUNS)}")


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_one_local_sgd_step_on_equal_shards_is_a_step_on_the_union(request, backend):
    workers, steps = 3, 3
    sgd = {"algorithm": "sgd", "generator_lr": 0.1, "discriminator_lr": 0.05}
    settings = experiment(workers, optimiser=sgd, local_steps=1, weighting="uniform")
    pairs = Fleet(settings, make_buses(request, backend, workers)).run(steps)
    assert_same_model(pairs)

    reference = GanPair(settings, SHAPE, 0, torch.device("cpu"))
    data = [stream(worker) for worker in range(workers)]
    draws = [GanPair(settings, SHAPE, worker, torch.device("cpu")) for worker in range(workers)]
    for _ in range(steps):
        # The union's batch has every worker's reals, and the latents that each worker draws.
        latents = torch.cat([pair._draw(BATCH) for pair in draws])
        reference._draw = lambda count, latents=latents: latents
        real = unlabelled(torch.cat([next_batch().samples for next_batch in data]))
        gradient, _ = reference.gradients((0, reference.size), real)
        reference.apply((0, reference.size), gradient)
    np.testing.assert_allclose(model_of(pairs[0]), model_of(reference), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", ["generator_first", "discriminator_first"])
@pytest.mark.parametrize("model", ["mlp", "dcgan"])
def test_one_worker_trains_as_if_it_were_alone(order, model):
    rounds, local_steps = 3, 4
    settings = experiment(1, model, local_steps=local_steps, order=order)
    (pair,) = Fleet(settings, memory_buses(1)).run(rounds)
    alone, next_batch = GanPair(settings, SHAPE, 0, torch.device("cpu")), stream(0)
    sections = alone.sections("simultaneous" if order == "generator_first" else "alternating")
    for _ in range(rounds * local_steps):
        real = next_batch()
        for section in sections:
            alone.apply(section, alone.gradients(section, real)[0])
    np.testing.assert_array_equal(model_of(pair, True), model_of(alone, True))


@pytest.mark.parametrize("state", ["keep", "reset", "average"])
@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_a_round_is_the_weighted_mean_of_what_the_workers_made_of_the_model(request, state, backend):
    """The model has the bits of the released algorithm, written down in one process."""
    workers, rounds, local_steps = 3, 3, 2
    settings = experiment(workers, "dcgan", local_steps=local_steps, weighting="size", optimiser_state=state)
    pairs = Fleet(settings, make_buses(request, backend, workers)).run(rounds)
    assert_same_model(pairs)

    reference = [GanPair(settings, SHAPE, worker, torch.device("cpu")) for worker in range(workers)]
    data = [stream(worker) for worker in range(workers)]
    has_moments = state == "average"
    whole, model = (0, reference[0].size), model_of(reference[0], has_moments)
    sizes = {worker: peer_info(worker)["samples"] for worker in range(workers)}
    weights = cohorts.weights("size", "exp", "divergent_less", [0, 1, 2], sizes, None)
    for round in range(rounds):
        total = np.zeros_like(model)
        for worker, pair in enumerate(reference):
            moments = ("generator", "discriminator") if has_moments else ()
            load_model(pair, model, has_moments, dict.fromkeys(moments, round * local_steps))
            if state == "reset":
                pair.reset_optimisers()
            for _ in range(local_steps):
                pair.apply(whole, pair.gradients(whole, data[worker]())[0])
            total += np.float32(weights[worker]) * model_of(pair, has_moments)
        model = total
    np.testing.assert_array_equal(model_of(pairs[0], has_moments), model)


# --- cohorts --------------------------------------------------------------------------------------


def test_only_the_cohort_trains_and_the_mean_is_over_it():
    settings = experiment(4, local_steps=2, cohort=2, leaders=1)
    drawn = [0] * 4

    def counted(worker):
        batches = stream(worker)

        def next_batch():
            drawn[worker] += 1
            return batches()

        return next_batch

    fleet = Fleet(settings, memory_buses(4))
    pairs = fleet.run(6, lambda w, steps: fleet.live(w, steps, counted(w)))
    assert sum(drawn) == 6 * 2 * 2 and max(drawn) < 6 * 2
    assert_same_model(pairs)
    assert fleet.stats[0]["cohort"] == fleet.stats[0]["answered"] == 2
    assert fleet.stats[0]["void_rounds"] == 0


def test_balanced_cohorts_follow_the_histograms_and_the_leaders_agree_on_the_counts():
    settings = experiment(4, local_steps=1, cohort=2, sampling="balanced", weighting="kl", leaders=2)
    fleet = Fleet(settings, memory_buses(4))
    fleet.run(4)
    histograms = {worker: np.array(peer_info(worker)["histogram"]) for worker in range(4)}
    state = cohorts.BalancedState.fresh(10)
    for _ in range(4):
        _, state = cohorts.balanced(range(4), 2, histograms, state)
    assert fleet.modes[0]._sampled == fleet.modes[1]._sampled == state


def test_weak_workers_take_fewer_steps():
    settings = experiment(10, local_steps=6, stragglers={"fraction": 0.3})
    weak = stragglers(settings)
    assert len(weak) == 3 and set(weak.values()) == {3}
    assert weak == stragglers(settings)


def test_a_leader_that_does_not_train_still_leads():
    settings = experiment(3, local_steps=1, leader_trains=False, leaders=1)
    fleet = Fleet(settings, memory_buses(3))
    assert_same_model(fleet.run(3))
    assert fleet.stats[0]["cohort"] == 2


# --- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_predicted_bytes_are_the_measured_ones(request, backend):
    settings = experiment(4, "lsgan", local_steps=1, cohort=2, leaders=2, batch=2)
    fleet = Fleet(settings, make_buses(request, backend, 4), sync_points=(2,))
    fleet.run(4)
    for worker, stats in enumerate(fleet.stats):
        for way in ("sent", "received"):
            predicted, measured = stats[f"predicted_{way}_bytes"], stats[f"{way}_bytes"]
            # Small messages and leases' hellos are a few kilobytes.
            assert abs(measured - predicted) <= 0.02 * measured + 8192, (worker, way, predicted, measured)
    assert fleet.stats[0]["predicted_sent_bytes"] > 4 * 4.5e6


# --- missing workers ------------------------------------------------------------------------------


def test_a_round_without_a_quorum_is_void_and_late_answers_are_counted():
    settings = experiment(3, local_steps=1, quorum=1.0, leaders=1, deadline={"floor_s": 0.3, "ceiling_s": 0.3})
    fleet = Fleet(settings, memory_buses(3))
    modes, late = fleet.modes, 2

    def live(worker, steps):
        slow = stream(worker)

        def next_batch():
            if worker == late and modes[worker]._step == 2:
                # The late worker waits until the leader has given this round up.
                modes[worker]._rounds.until(lambda: modes[0]._void_rounds, lambda: "the void round")
            return slow()

        return fleet.live(worker, steps, next_batch)

    pairs = fleet.run(5, live)
    assert_same_model(pairs)
    assert fleet.stats[0]["void_rounds"] >= 1
    assert any("is void: 2 of 3 answered" in line for line in fleet.lines)
    assert fleet.stats[0]["late"] == fleet.stats[0]["dropped"]["late"] >= 1


def test_a_model_that_is_not_finite_is_left_out():
    settings = experiment(3, local_steps=1, leaders=1)
    fleet = Fleet(settings, memory_buses(3))
    fleet.modes[2]._attack = Attack("nan")
    pairs = fleet.run(3)
    assert_same_model(pairs)
    assert np.isfinite(model_of(pairs[0])).all()
    assert fleet.stats[0]["answered"] == 2 and fleet.stats[0]["dropped"] == {"not_finite": 3}
    assert fleet.stats[0]["offences"] == {"2": 3}


def test_a_step_whose_gradient_is_not_finite_is_skipped_where_it_is_taken():
    settings = experiment(3, local_steps=1, leaders=1)
    fleet = Fleet(settings, memory_buses(3))
    gradients = fleet.pairs[2].gradients

    def broken(section, real):
        gradient, losses = gradients(section, real)
        gradient[0] = np.nan
        return gradient, {name: float("nan") for name in losses}

    fleet.pairs[2].gradients = broken
    pairs = fleet.run(3)
    assert_same_model(pairs)
    assert np.isfinite(model_of(pairs[0])).all()
    assert fleet.stats[0]["answered"] == 3 and fleet.stats[0]["dropped"] == {}
    assert fleet.stats[2]["dropped"] == {"own_not_finite": 3}


@pytest.mark.parametrize("rule", ["clipped_mean", "median", "trimmed_mean", "centered_clip"])
def test_a_robust_rule_bears_a_byzantine_model(rule):
    """With the rule the model is nearer to that of a clean run than with the mean, and the same for all."""
    found = {}
    for name, attack, reduce in (("clean", None, "mean"), ("mean", "scale", "mean"), (rule, "scale", rule)):
        sgd = {"algorithm": "sgd", "generator_lr": 0.05, "discriminator_lr": 0.05}
        settings = experiment(4, optimiser=sgd, local_steps=1, leaders=1, weighting="uniform", reduce=reduce)
        fleet = Fleet(settings, memory_buses(4))
        fleet.modes[3]._attack = Attack(attack) if attack else None
        assert_same_model(fleet.run(1))
        found[name] = model_of(fleet.pairs[0])
    away = {name: float(np.linalg.norm(found[name] - found["clean"])) for name in ("mean", rule)}
    assert away[rule] < 0.1 * away["mean"]


def test_a_member_that_is_far_longer_than_usual_is_gated_and_then_banned():
    settings = experiment(4, local_steps=1, leaders=1)
    plain = config.dump(settings).replace("offences: 10", "offences: 2")
    fleet = Fleet(config.build(config.parse(plain)), memory_buses(4))
    fleet.modes[3]._attack = Attack("scale")
    fleet.run(7)
    stats = fleet.stats[0]
    # Two rounds of four norms are known before the gate works.
    assert stats["dropped"] == {"gated": 2, "banned": 3} and stats["banned"] == [3] and stats["answered"] == 3


def test_a_member_that_leaves_saves_the_model_that_its_version_names():
    """The saved model is not that of its last local steps, or a run that is resumed together would have two models."""
    workers = 2
    fleet = Fleet(experiment(workers, local_steps=2), memory_buses(workers))
    left, initial = threading.Event(), model_of(fleet.pairs[1])

    def live(worker, steps):
        if worker == 0:
            batches = stream(0)

            def next_batch():
                # The rest of the run begins when the other worker has left, which waits for nobody.
                assert fleet.modes[0]._step < 2 or left.wait(60)
                return batches()

            return fleet.live(0, steps, next_batch)
        mode = fleet.modes[worker]
        mode.begin([], {}, None)
        mode.step(1, stream(worker), False)
        assert not np.array_equal(model_of(fleet.pairs[worker]), initial)
        mode.leave(is_together=False)
        np.testing.assert_array_equal(model_of(fleet.pairs[worker]), initial)
        assert mode.state()[1]["version"] == [0, 0]
        left.set()
        return mode.stats()

    fleet.run(3, live)
    assert left.is_set() and not any("ending without them" in line for line in fleet.lines)


def test_a_leader_that_went_on_alone_takes_the_model_of_the_others():
    """The leader was cut off and has gone on to a round far ahead, for which the others must not wait."""
    fleet = Fleet(experiment(2, local_steps=1, cohort=1), memory_buses(2))
    expired = threading.Event()

    def live(worker, steps):
        mode, batches = fleet.modes[worker], stream(worker)
        mode.begin([], {}, None)
        mode.step(1, batches, False)
        if worker == 0:
            expired.wait(20)
        else:
            # A follower may have seen three rounds more of a dead leader than the leader's successor.
            mode._step = 4
            mode._check_line()
            mode._step = 5
            with pytest.raises(LeaseExpiredError):
                mode._check_line()
            with pytest.raises(
                LeaseExpiredError, match="worker 0 leads at round 1, and this one has gone on to round 9"
            ):
                mode.step(9, batches, False)
            expired.set()
        return mode.stats()

    fleet.run(1, live)
    assert expired.is_set()


def test_the_claims_of_a_worker_are_checked():
    assert plain_peer_info({"samples": 5, "histogram": [1, 2], "more": "x"}) == {"samples": 5, "histogram": [1, 2]}
    for odd in (True, -1, "5", 1.5, 2**60, None, [3]):
        assert plain_peer_info({"samples": odd}) == {}
        assert plain_peer_info({"samples": 1, "histogram": [1, odd]}) == {"samples": 1}
    assert plain_peer_info({"histogram": "1,2"}) == plain_peer_info({"histogram": [0] * 100_000}) == {}
