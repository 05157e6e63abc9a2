"""Neutral settings equal the simple algorithm, with the real networks and the real optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import config
from degan.learners.gan_pair import GanPair
from degan.modes.local import Local
from degan.modes.partial_exchange import PartialExchange
from tests.fleets import in_threads, memory_buses, redis_buses
from tests.learner_views import tensors_of, unlabelled

RUNS = iter(range(10**6))
BATCH, SHAPE = 8, (1, 32, 32)


def experiment(workers, updates="simultaneous", model="dcgan", loss="non_saturating", **mode):
    block = {"name": "partial_exchange", "exchange": "gradients", "updates": updates, **mode}
    models = {"dcgan": {"name": "dcgan", "latent": 8, "width": 4}, "lsgan": {"name": "lsgan"}}
    return config.build(
        {
            "name": "oracle",
            "peers": workers,
            "data": {"name": "mnist", "batch_size": BATCH},
            "model": models[model],
            "loss": loss,
            "mode": block,
            "run": {"steps": 6},
        }
    )


def batches(worker, steps):
    generator = torch.Generator().manual_seed(100 + worker)
    return [unlabelled(torch.rand(BATCH, *SHAPE, generator=generator) * 2 - 1) for _ in range(steps)]


def final(pair):
    return {name: tensor.numpy() for name, tensor in tensors_of(pair).items()}


def assert_equal(first, second, but=()):
    assert first.keys() == second.keys()
    for name in first:
        if not any(word in name for word in but):
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def train_fleet(settings, buses, steps, synchronise=True):
    """Train every worker in a thread of its own; returns the pairs."""
    workers = len(buses)
    pairs = [GanPair(settings, SHAPE, worker, torch.device("cpu")) for worker in range(workers)]
    modes = [PartialExchange(settings, pairs[w], buses[w], {}, lambda line: None) for w in range(workers)]

    def live(worker):
        mode = modes[worker]
        assert mode.begin([], {}, None) == 0
        for step, real in enumerate(batches(worker, steps), start=1):
            mode.step(step, lambda real=real: real, is_sync_point=step == steps)
        if synchronise:
            mode.synchronise(steps)
        mode.finish()

    try:
        in_threads([lambda w=w: live(w) for w in range(workers)])
    finally:
        for mode in modes:
            mode.close()
    return pairs


@pytest.mark.parametrize(
    ("updates", "block"),
    [
        ("simultaneous", {"parts": 1, "slack": 0, "codec": "raw"}),
        ("simultaneous", {"parts": 4, "slack": 2, "codec": "float16"}),
        ("simultaneous", {"parts": "auto", "slack": 2, "codec": "topk"}),
        ("simultaneous", {"parts": 1, "slack": 0, "codec": "raw", "own": "delayed"}),
        ("simultaneous", {"parts": 1, "slack": 0, "codec": "raw", "exchange": "parameters"}),
        ("simultaneous", {"parts": 4, "slack": 2, "codec": "raw", "exchange": "parameters"}),
        ("alternating", {"parts": 1, "slack": 0, "codec": "raw", "exchange": "parameters"}),
        ("alternating", {"parts": 4, "slack": 2, "codec": "raw", "exchange": "parameters"}),
        ("alternating", {"parts": "auto", "slack": 2, "codec": "raw", "exchange": "parameters"}),
    ],
)
def test_one_worker_is_the_local_mode(updates, block):
    settings = experiment(1, updates, **block)
    (exchanged,) = train_fleet(settings, memory_buses(1), 6)
    local_settings = config.build(
        {
            "name": "oracle",
            "peers": 1,
            "data": {"name": "mnist", "batch_size": BATCH},
            "model": {"name": "dcgan", "latent": 8, "width": 4},
            "mode": {"name": "local", "updates": updates},
        }
    )
    alone = GanPair(local_settings, SHAPE, 0, torch.device("cpu"))
    mode = Local(local_settings, 0, alone)
    for step, real in enumerate(batches(0, 6), start=1):
        mode.step(step, lambda real=real: real, is_sync_point=False)
    assert_equal(final(exchanged), final(alone))


def one_process(settings, workers, steps):
    """The reference: one process that averages the workers' gradients, in worker order."""
    pairs = [GanPair(settings, SHAPE, worker, torch.device("cpu")) for worker in range(workers)]
    data = [batches(worker, steps) for worker in range(workers)]
    for step in range(steps):
        (whole,) = pairs[0].sections("simultaneous")
        gradients = [pair.gradients(whole, data[w][step])[0] for w, pair in enumerate(pairs)]
        total = np.zeros_like(gradients[0])
        for gradient in gradients:
            total += gradient
        for pair in pairs:
            pair.apply(whole, total / np.float32(workers))
            pair.average(whole)
    return pairs


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_synchronous_exchange_is_one_process_that_averages(request, backend):
    workers, steps = 3, 5
    settings = experiment(workers, parts=1, slack=0, codec="raw", reduce="mean")
    if backend == "memory":
        buses = memory_buses(workers)
    else:
        buses = redis_buses(workers, request.getfixturevalue("redis_url"), f"oracle{next(RUNS)}")
    pairs = train_fleet(settings, buses, steps)
    reference = one_process(settings, workers, steps)
    # The running statistics are averaged over the workers at the end; everything else is the reference's.
    for pair in pairs:
        assert_equal(final(pair), final(reference[0]), but=("running",))
        assert_equal(final(pair), final(pairs[0]))
    expected = np.zeros_like(reference[0].statistics())
    for pair in reference:
        expected += pair.statistics()
    np.testing.assert_array_equal(pairs[0].statistics(), expected / np.float32(workers))


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_synchronous_parameters_are_one_process_that_averages_weights(request, updates, backend):
    """Alternating updates are two local steps, D's and then G's, before the one exchange of all weights."""
    workers, steps = 3, 5
    settings = experiment(workers, updates, exchange="parameters", parts=1, slack=0, codec="raw")
    if backend == "memory":
        buses = memory_buses(workers)
    else:
        buses = redis_buses(workers, request.getfixturevalue("redis_url"), f"oracle{next(RUNS)}")
    pairs = train_fleet(settings, buses, steps)
    reference = [GanPair(settings, SHAPE, worker, torch.device("cpu")) for worker in range(workers)]
    data = [batches(worker, steps) for worker in range(workers)]
    for step in range(steps):
        for worker, pair in enumerate(reference):
            for section in pair.sections(updates):
                pair.apply(section, pair.gradients(section, data[worker][step])[0])
        whole, total = (0, reference[0].size), np.zeros(reference[0].size, dtype=np.float32)
        for pair in reference:
            total += pair.parameters(whole)
        for pair in reference:
            pair.load_parameters(whole, total / np.float32(workers))
            pair.average(whole)
    for pair, expected in zip(pairs, reference, strict=True):
        assert_equal(final(pair), final(expected), but=("running",))


@pytest.mark.parametrize(
    "block",
    [
        {"parts": 1, "slack": 0, "codec": "sign"},
        {"parts": 4, "slack": 2, "codec": "int8"},
        {"parts": 2, "slack": 1, "codec": "topk"},
    ],
)
def test_replicas_stay_alike_where_everyone_applies_what_was_published(block):
    settings = experiment(3, own="delayed", **block)
    pairs = train_fleet(settings, memory_buses(3), 6)
    for pair in pairs[1:]:
        assert_equal(final(pair), final(pairs[0]))


def test_parts_and_slack_still_apply_every_gradient():
    """Each worker has applied the gradients of all after `finish`: the sum of Adam's inputs agrees."""
    workers, steps = 2, 6
    settings = experiment(workers, parts=4, slack=1, codec="raw", reduce="sum")
    applied = [np.zeros(0)] * workers
    original = GanPair.apply

    def spy(pair, section, gradient):
        worker = pair.worker_under_test
        applied[worker] = applied[worker] + gradient if applied[worker].size else gradient.astype(np.float64)
        original(pair, section, gradient)

    produced = [np.zeros(0)] * workers
    gradients = GanPair.gradients

    def spy_gradients(pair, section, real):
        gradient, found = gradients(pair, section, real)
        worker = pair.worker_under_test
        produced[worker] = produced[worker] + gradient if produced[worker].size else gradient.astype(np.float64)
        return gradient, found

    init = GanPair.__init__

    def spy_init(pair, settings, shape, worker, device):
        init(pair, settings, shape, worker, device)
        pair.worker_under_test = worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GanPair, "apply", spy)
        patch.setattr(GanPair, "gradients", spy_gradients)
        patch.setattr(GanPair, "__init__", spy_init)
        train_fleet(settings, memory_buses(workers), steps)
    for worker in range(workers):
        np.testing.assert_allclose(applied[worker], produced[0] + produced[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "hinge", "wasserstein_gp"])
def test_every_loss_trains_synchronously(loss):
    settings = experiment(2, model="lsgan", loss=loss, parts=1, slack=0, codec="raw")
    pairs = train_fleet(settings, memory_buses(2), 2)
    assert_equal(final(pairs[0]), final(pairs[1]))
    assert all(np.isfinite(array).all() for array in final(pairs[0]).values())
