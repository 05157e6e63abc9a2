"""A classifier in place of the pair: the same equalities, in every mode that trains one."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest
import torch

from degan.artifacts.checkpoints import read
from degan.data.base import Batch
from degan.modes.federated import Federated
from degan.modes.local import Local
from degan.modes.partial_exchange import PartialExchange
from tests.classifiers import KINDS, experiment, new_classifier, stream
from tests.fleets import close, in_threads, memory_buses
from tests.golden import runs
from tests.learner_views import model_of, tensors_of, vectors_of

RAW = {"name": "partial_exchange", "parts": 1, "slack": 0, "codec": "raw"}
DESCENT = {"algorithm": "sgd", "lr": 0.3}
FEDERATED = {"name": "federated", "fraction": 1.0, "local_steps": 1, "weighting": "uniform"}


def train(settings, steps, at_sync_point=True):
    """Train every worker in a thread of its own; returns the learners, and the losses of each by step."""
    buses = memory_buses(settings.workers)
    learners = [new_classifier(settings) for _ in buses]
    kind = {"partial_exchange": PartialExchange, "federated": Federated}[settings.mode.__struct_config__.tag]
    modes = []
    for worker, (learner, bus) in enumerate(zip(learners, buses, strict=True)):
        peer_info = ({"samples": 10 + worker, "histogram": [1] * 5},) if kind is Federated else ()
        modes.append(kind(settings, learner, bus, {}, *peer_info, lambda line: None))

    def live(worker):
        mode, next_batch = modes[worker], stream(worker)
        assert mode.begin([], {}, None) == 0
        found = [mode.step(step, next_batch, step == steps) for step in range(1, steps + 1)]
        if at_sync_point:
            assert mode.synchronise(steps)
        mode.finish()
        return found

    try:
        losses = in_threads([lambda w=w: live(w) for w in range(settings.workers)])
    finally:
        close(modes)
    return learners, losses


def assert_same(one, other, but=()):
    found, expected = tensors_of(one), tensors_of(other)
    assert found.keys() == expected.keys()
    for name in found:
        if not any(word in name for word in but):
            assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "block",
    [
        {"exchange": "gradients", "parts": 1, "slack": 0, "codec": "raw"},
        {"exchange": "gradients", "parts": 4, "slack": 2, "codec": "int8"},
        {"exchange": "parameters", "parts": 4, "slack": 2, "codec": "raw"},
    ],
    ids=["gradients", "lossy", "parameters"],
)
def test_one_worker_is_the_local_mode(kind, block):
    (exchanged,), losses = train(experiment(kind, mode={"name": "partial_exchange", **block}), 5)
    settings, next_batch = experiment(kind), stream(0)
    alone = new_classifier(settings)
    mode = Local(settings, 0, alone)
    assert [mode.step(step, next_batch, False) for step in range(1, 6)] == losses[0]
    assert_same(exchanged, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_synchronous_gradients_are_one_process_that_averages(kind):
    workers, steps = 3, 4
    settings = experiment(kind, workers, RAW | {"exchange": "gradients"})
    learners, _ = train(settings, steps)
    reference, data = [new_classifier(settings) for _ in range(workers)], [stream(w) for w in range(workers)]
    for _ in range(steps):
        (whole,) = reference[0].sections("simultaneous")
        total = np.zeros(reference[0].size, np.float32)
        for learner, next_batch in zip(reference, data, strict=True):
            total += learner.gradients(whole, next_batch())[0]
        for learner in reference:
            learner.apply(whole, total / np.float32(workers))
    statistics = np.zeros_like(reference[0].statistics())
    for learner in reference:
        statistics += learner.statistics()
    for learner in learners:
        assert_same(learner, reference[0], but=("running",))
        np.testing.assert_array_equal(learner.statistics(), statistics / np.float32(workers))


def test_synchronous_parameters_are_one_process_that_averages_weights():
    workers, steps = 2, 4
    settings = experiment("gn_lenet", workers, RAW | {"exchange": "parameters"})
    learners, _ = train(settings, steps)
    reference, data = [new_classifier(settings) for _ in range(workers)], [stream(w) for w in range(workers)]
    whole = (0, reference[0].size)
    for _ in range(steps):
        total = np.zeros(reference[0].size, np.float32)
        for learner, next_batch in zip(reference, data, strict=True):
            learner.apply(whole, learner.gradients(whole, next_batch())[0])
            total += learner.parameters(whole)
        for learner in reference:
            learner.load_parameters(whole, total / np.float32(workers))
    for learner in learners:
        assert_same(learner, reference[0])


@pytest.mark.parametrize("kind", ["gn_lenet", "resnet-group", "mlp"])
def test_a_federated_round_of_one_sgd_step_is_a_step_on_the_union(kind):
    workers, steps = 3, 3
    settings = experiment(kind, workers, FEDERATED, DESCENT)
    learners, losses = train(settings, steps)
    reference, data = new_classifier(settings), [stream(w) for w in range(workers)]
    (whole,) = reference.sections("simultaneous")
    before, of_union = model_of(reference), []
    for _ in range(steps):
        samples, labels = zip(*(next_batch() for next_batch in data), strict=True)
        gradient, found = reference.gradients(whole, Batch(torch.cat(samples), torch.cat(labels)))
        reference.apply(whole, gradient)
        of_union.append(found)
    moved = np.abs(model_of(reference) - before).max()
    for learner in learners:
        np.testing.assert_allclose(model_of(learner), model_of(reference), atol=1e-4 * moved)
    for name in ("c_loss", "accuracy"):
        mean = [np.mean([of_worker[step][name] for of_worker in losses]) for step in range(steps)]
        np.testing.assert_allclose(mean, [found[name] for found in of_union], rtol=1e-4)


@pytest.mark.parametrize("state", ["keep", "reset", "average"])
def test_federated_rounds_end_with_one_model_and_travelling_statistics(state):
    settings = experiment("resnet-batch", 3, FEDERATED | {"local_steps": 2, "optimiser_state": state})
    learners, _ = train(settings, 3)
    first = model_of(learners[0], state == "average")
    for learner in learners:
        np.testing.assert_array_equal(model_of(learner, state == "average"), first)
        assert set(vectors_of(learner)) == {f"classifier{part}" for part in ("", ".buffers", ".exp_avg", ".exp_avg_sq")}
    fresh = new_classifier(settings)
    assert np.abs(learners[0].statistics() - fresh.statistics()).max() > 1e-3, "statistics travel with the model"


def test_a_leader_that_does_not_train_shows_the_mean_of_the_members_losses():
    settings = experiment("mlp", 3, FEDERATED | {"leaders": [0], "leader_trains": False})
    _, losses = train(settings, 1)
    assert set(losses[0][0]) == {"c_loss", "accuracy"}
    assert losses[0][0]["c_loss"] == pytest.approx((losses[1][0]["c_loss"] + losses[2][0]["c_loss"]) / 2)


@pytest.mark.parametrize(
    "mode",
    [
        {"name": "local"},
        RAW | {"exchange": "gradients"},
        RAW | {"exchange": "parameters", "parts": 3, "codec": "int8"},
        FEDERATED | {"local_steps": 2},
    ],
    ids=["local", "gradients", "parameters", "federated"],
)
@pytest.mark.parametrize("kind", ["mlp", "resnet-batch"])
def test_a_run_that_is_resumed_ends_with_the_bits_of_the_undisturbed_one(tmp_path, kind, mode):
    """Batches with their labels, weights, moments, statistics and metrics go on without a difference."""

    run = {"steps": 4, "log_every": 1, "evaluate_every": 2, "snapshot_every": 2, "checkpoint_every": 2}
    settings = msgspec.structs.replace(experiment(kind, 2, mode, run=run), device="cpu")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    runs.live(settings, straight)
    shutil.copytree(straight, stopped)
    for later in stopped.glob("w*/checkpoints/000004"):
        shutil.rmtree(later)
    runs.live(settings, stopped, resumes=True)
    for worker in range(2):
        one, other = (read(run / f"w{worker}" / "checkpoints" / "000004") for run in (straight, stopped))
        for found, expected in ((other.model, one.model), (other.optimiser, one.optimiser)):
            assert found.keys() == expected.keys() and "random.global" in {*one.optimiser}
            for name in expected:
                # Dropout draws from the generator of the process, which all workers of this test share.
                assert name == "random.global" or torch.equal(found[name], expected[name]), name
        assert {key: other.values[key] for key in ("counters", "data", "classes")} == {
            key: one.values[key] for key in ("counters", "data", "classes")
        }
    assert not list(straight.glob("**/fakes-*.png"))
