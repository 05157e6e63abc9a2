"""The classifier: a step against plain torch, its losses by hand, its state, and its evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from degan.data.base import Batch
from degan.learners import build
from degan.learners.classifier import Classifier
from degan.learners.gan_pair import GanPair
from degan.learners.guard import NonFiniteGuard
from degan.modes.local import Local
from tests.classifiers import (
    BATCH,
    CLASSES,
    CPU,
    KINDS,
    SHAPE,
    Plain,
    assert_follows,
    experiment,
    new_classifier,
    stream,
)
from tests.degan.learners.test_step import experiment as of_gan
from tests.learner_views import counters_of, model_of, tensors_of, vectors_of

ADAM, SGD = {"algorithm": "adam"}, {"algorithm": "sgd", "lr": 0.3}


@pytest.mark.parametrize("optimiser", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_plain_torch(kind, optimiser):
    settings = experiment(kind, optimiser=optimiser)
    learner, plain, next_batch = new_classifier(settings), Plain(settings), stream(0)
    began, mode = tensors_of(learner), Local(settings, 0, learner)
    for step in range(1, 4):
        batch = next_batch()
        found = mode.step(step, lambda batch=batch: batch, is_sync_point=False)
        c_loss, accuracy = plain.step(batch)
        assert found == {"c_loss": pytest.approx(c_loss, rel=1e-4), "accuracy": pytest.approx(accuracy)}
    assert_follows(learner, plain, began)


def test_loss_and_accuracy_of_a_batch_by_hand():
    """With weights of zeros and a bias every sample has the same logits."""
    learner = new_classifier(experiment())
    bias = np.log(np.float32([4, 1, 1, 1, 1]))
    values = np.zeros(learner.size, np.float32)
    values[-CLASSES:] = bias
    (section,) = learner.sections("simultaneous")
    learner.load_parameters(section, values)
    batch = Batch(torch.ones(4, *SHAPE), torch.tensor([0, 0, 0, 3]))
    gradient, losses = learner.gradients(section, batch)
    # Class 0 has 4 / 8 of the probability, the others 1 / 8 each.
    assert losses == {"c_loss": pytest.approx((3 * np.log(2) + np.log(8)) / 4), "accuracy": 0.75}
    np.testing.assert_allclose(gradient[-CLASSES:], [1 / 2 - 3 / 4, 1 / 8, 1 / 8, 1 / 8 - 1 / 4, 1 / 8], atol=1e-6)


def test_all_workers_begin_with_the_weights_of_the_seed():
    one, same, other = (tensors_of(new_classifier(experiment("gn_lenet", seed=seed))) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.head.weight"], other["classifier.head.weight"])


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_the_state_is_named_and_takes_its_place(algorithm):
    settings = experiment("resnet-batch", optimiser={"algorithm": algorithm})
    learner, taker = new_classifier(settings), new_classifier(settings)
    moments = ["classifier.exp_avg", "classifier.exp_avg_sq"] if algorithm == "adam" else []
    assert list(learner.sizes) == ["classifier", "classifier.buffers", *moments]
    assert learner.sizes["classifier.buffers"] == learner.statistics().size > 0
    mode, next_batch = Local(settings, 0, learner), stream(1)
    for step in range(2):
        mode.step(step, next_batch, is_sync_point=False)
    taker.load(*learner.state())
    for name, values in vectors_of(taker).items():
        np.testing.assert_array_equal(values, vectors_of(learner)[name], err_msg=name)
    assert counters_of(taker) == counters_of(learner)
    assert counters_of(taker)["classifier"] == (2 if algorithm == "adam" else 0)
    # The next step of both is the same.
    batch = next_batch()
    for one in (learner, taker):
        Local(settings, 0, one).step(3, lambda: batch, is_sync_point=False)
    np.testing.assert_array_equal(model_of(learner), model_of(taker))


def test_there_is_one_local_step_a_round_and_no_average():
    learner = new_classifier(experiment())
    assert learner.sections("simultaneous") == learner.sections("alternating") == [(0, learner.size)]
    before = vectors_of(learner)
    learner.average((0, learner.size), 5)
    for name, values in vectors_of(learner).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_batch_that_is_not_finite_is_skipped_and_leaves_everything_as_it_was():
    settings = experiment("resnet-batch")
    learner, lines = new_classifier(settings), []
    mode, next_batch = Local(settings, 0, learner, lines.append), stream(0)
    mode.step(1, next_batch, is_sync_point=False)
    before, batch = vectors_of(learner), next_batch()
    batch.samples[0, 0, 0, 0] = float("inf")
    mode.step(2, lambda: batch, is_sync_point=False)
    for name, values in vectors_of(learner).items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    assert mode.stats()["dropped"] == {"own_not_finite": 1} and "the step is skipped" in lines[0]
    mode.step(3, next_batch, is_sync_point=False)
    assert (vectors_of(learner)["classifier"] != before["classifier"]).any()


def test_statistics_that_are_not_finite_are_seen_whatever_the_gradient_is():
    learner = new_classifier(experiment("resnet-batch"))
    guard = NonFiniteGuard(learner, print)
    context, kept = guard.context(), learner.statistics()
    learner.load_statistics(np.full_like(kept, np.nan))
    assert not guard.is_sound() and not guard.passes(np.zeros(3, np.float32), context)
    np.testing.assert_array_equal(learner.statistics(), kept)


def test_logits_are_of_the_evaluation_mode_and_training_goes_on():
    settings = experiment("resnet-batch")
    learner, next_batch = new_classifier(settings), stream(0)
    Local(settings, 0, learner).step(1, next_batch, is_sync_point=False)
    module, batch, before = learner.modules["classifier"], next_batch(), learner.statistics()
    found = learner.logits(batch.samples)
    assert module.training and found.shape == (BATCH, CLASSES) and not found.requires_grad
    np.testing.assert_array_equal(learner.statistics(), before)
    # A sample's logits do not depend on the others.
    torch.testing.assert_close(learner.logits(batch.samples[:1]), found[:1])
    with torch.no_grad():
        assert not torch.allclose(module(batch.samples), found, atol=1e-4)


def test_it_has_no_picture_and_is_measured_by_its_logits():
    learner = new_classifier(experiment())
    assert learner.show(64) is None
    samples = stream(0)().samples
    (found,) = learner.measure(lambda logits: [logits(samples)])
    torch.testing.assert_close(found, learner.logits(samples))


def test_random_generators_are_named_and_take_their_places():
    learner = new_classifier(experiment())
    state = learner.random_state()
    first = torch.rand(3)
    learner.load_random_state(state)
    assert set(state) == {"global"} and torch.equal(torch.rand(3), first)


def test_the_experiment_decides_which_learner_is_built():
    assert isinstance(build.build(experiment(), SHAPE, CLASSES, 0, CPU), Classifier)
    pair = build.build(of_gan(), SHAPE, CLASSES, 2, CPU)
    assert isinstance(pair, GanPair)
    other = GanPair(of_gan(), SHAPE, 2, CPU).random_state()
    assert all(torch.equal(state, other[name]) for name, state in pair.random_state().items() if name != "global")
