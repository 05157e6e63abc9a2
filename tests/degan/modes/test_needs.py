"""The stated needs of a worker on its node's Redis, against its keys there after training."""

from __future__ import annotations

import itertools

import pytest
import redis
import torch

import config
from degan import modes
from degan.learners.gan_pair import GanPair
from tests.fleets import in_threads
from tests.learner_views import unlabelled

RUNS = itertools.count()
SHAPE, STEPS = (1, 8, 8), 120
MODES = {
    "parameters": {"name": "partial_exchange", "parts": 2, "slack": 0},
    "gradients": {"name": "partial_exchange", "parts": 2, "slack": 1, "exchange": "gradients", "codec": "raw"},
    "int8": {"name": "partial_exchange", "parts": 1, "slack": 1, "codec": "int8"},
    "auto": {"name": "partial_exchange", "parts": "auto", "slack": 1},
    "alternating": {"name": "partial_exchange", "parts": 2, "slack": 0, "updates": "alternating"},
    "federated": {"name": "federated", "fraction": 1.0, "local_steps": 1, "optimiser_state": "average"},
    "multi_discriminator": {"name": "multi_discriminator", "state_every": 10, "swap_every": 1.0},
}


def train(url: str, mode: dict, workers: int = 2) -> tuple[config.Experiment, GanPair]:
    """Run workers to the end, on one Redis; returns the settings, and a pair of their kind."""
    settings = config.build(
        {
            "name": f"needs{next(RUNS)}",
            "peers": [url] * workers,
            "data": {"name": "mnist", "batch_size": 4},
            "model": {"name": "mlp", "latent": 4, "hidden": 8, "image_size": SHAPE[1]},
            "mode": mode,
            "bus": {"replay_bytes": 0},
            "run": {"steps": STEPS, "evaluate_every": 0, "snapshot_every": 0},
        }
    )
    pairs = [GanPair(settings, SHAPE, worker, torch.device("cpu")) for worker in range(workers)]

    def live(worker: int) -> None:
        peer_info = {"samples": 40, "histogram": [4] * 10}
        mode = modes.build(modes.Context(settings, worker, pairs[worker], {}, peer_info, lambda line: None))
        try:
            mode.begin([], {}, None)
            for step in range(1, STEPS + 1):
                mode.step(step, lambda: unlabelled(torch.rand(4, *SHAPE) * 2 - 1), step == STEPS)
            mode.synchronise(STEPS)
            mode.finish()
        finally:
            mode.close()

    in_threads([lambda w=w: live(w) for w in range(workers)])
    return settings, pairs[0]


def kept(url: str, settings: config.Experiment, worker: int) -> tuple[int, int]:
    """The payload bytes in a worker's streams, and in its state."""
    client = redis.Redis.from_url(url)
    streams = states = 0
    for key in client.scan_iter(f"degan:{settings.name}:{worker}:*", count=1000):
        kind = client.type(key)
        if kind == b"stream":
            streams += sum(len(fields[b"d"]) for _, fields in client.xrange(key))
        elif kind == b"hash":
            states += sum(len(value) for name, value in client.hgetall(key).items() if name != b"hello")
    client.close()
    return streams, states


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_redis_holds_no_more_than_the_stated_needs(redis_url, mode):
    settings, pair = train(redis_url, mode)
    needs = modes.needs(settings, pair)
    for worker in range(settings.workers):
        streams, states = kept(redis_url, settings, worker)
        # Messages that are no vectors, hello and goodbye, are a few bytes each.
        assert streams <= needs.outbox_bytes + 4096
        assert states <= needs.state_bytes + 4096


@pytest.mark.parametrize("name", ["gradients", "federated"])
def test_the_stated_needs_are_no_more_than_a_run_comes_to(redis_url, name):
    """The bound is tight: a run that has filled its streams uses most of it."""
    settings, pair = train(redis_url, MODES[name])
    used = max(kept(redis_url, settings, worker)[0] for worker in range(settings.workers))
    assert used > modes.needs(settings, pair).outbox_bytes / 2


def test_a_worker_that_trains_alone_needs_nothing():
    settings = config.build({"name": "alone", "data": {"name": "digits"}, "model": {"name": "mlp", "image_size": 8}})
    settings = config.build({**config.parse(config.dump(settings)), "mode": {"name": "local"}})
    needs = modes.needs(settings, GanPair(settings, SHAPE, 0, torch.device("cpu")))
    assert needs.redis_bytes == needs.step_bytes == 0 < needs.vector_bytes
