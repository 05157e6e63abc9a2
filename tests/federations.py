"""Fleets of federated workers in threads of one process, and their data."""

from __future__ import annotations

import numpy as np
import torch

import config
from degan.learners.gan_pair import GanPair
from degan.modes.federated import Federated
from tests.fleets import close, in_threads
from tests.learner_views import average_of, model_of, unlabelled

BATCH, SHAPE = 8, (1, 32, 32)
SAMPLES = 64


def experiment(workers, model="mlp", optimiser=None, batch=BATCH, more=None, **mode):
    models = {
        "mlp": {"name": "mlp", "latent": 8, "hidden": 16, "image_size": 32},
        "wide": {"name": "mlp", "latent": 8, "hidden": 300, "image_size": 32},
        "dcgan": {"name": "dcgan", "latent": 8, "width": 4},
        "lsgan": {"name": "lsgan"},
    }
    return config.build(
        {
            "name": "federated",
            "peers": workers,
            "data": {"name": "mnist", "batch_size": batch},
            "model": models[model],
            "optimiser": optimiser or {},
            "mode": {"name": "federated", "fraction": 1.0, **mode},
            "bus": {"lease_s": 20, "finish_timeout_s": 20},
            "run": {"steps": 4, "evaluate_every": 0, "snapshot_every": 0},
            **(more or {}),
        }
    )


def stream(worker, batch=BATCH):
    """A worker's endless batches."""
    generator = torch.Generator().manual_seed(100 + worker)
    return lambda: unlabelled(torch.rand(batch, *SHAPE, generator=generator) * 2 - 1)


def peer_info(worker):
    """The peer info of a worker."""
    histogram = [0] * 10
    histogram[worker % 10] = SAMPLES + worker
    return {"samples": SAMPLES + worker, "histogram": histogram}


class Fleet:
    """Federated workers in threads; `sync_points` are the steps after which everybody holds the model."""

    def __init__(self, settings, buses, sync_points=(), peer_info=peer_info):
        self.settings, self.buses, self.sync_points, self.peer_info = settings, buses, sync_points, peer_info
        self.lines = []
        self.pairs = [GanPair(settings, SHAPE, w, torch.device("cpu")) for w in range(len(buses))]
        self.modes = [self.mode(w, bus) for w, bus in enumerate(buses)]
        self.stats = []
        # The losses of each worker and step, and the number of batches that the step drew.
        self.losses, self.drawn = [[] for _ in buses], [[] for _ in buses]

    def mode(self, worker, bus):
        def log(line):
            self.lines.append(f"{worker}: {line}")

        return Federated(self.settings, self.pairs[worker], bus, {}, self.peer_info(worker), log)

    def again(self, worker):
        """A new incarnation of a worker whose mode was closed."""
        others = tuple(other for other in range(len(self.buses)) if other != worker)
        self.modes.append(self.mode(worker, self.buses[worker]._hub.bus(worker, others, "another")))
        return self.modes[-1]

    def live(self, worker, steps, next_batch=None):
        mode, batches = self.modes[worker], next_batch or stream(worker, self.settings.data.batch_size)

        def counted():
            self.drawn[worker][-1] += 1
            return batches()

        assert mode.begin([], {}, None) == 0
        for step in range(1, steps + 1):
            self.drawn[worker].append(0)
            self.losses[worker].append(mode.step(step, counted, step == steps))
            if step == steps or step in self.sync_points:
                assert mode.synchronise(step)
        mode.finish()
        return mode.stats()

    def run(self, steps, live=None):
        try:
            jobs = [lambda w=w: (live or self.live)(w, steps) for w in range(len(self.buses))]
            self.stats = in_threads(jobs)
        finally:
            close(self.modes)
        return self.pairs


def assert_same_model(pairs):
    for pair in pairs[1:]:
        np.testing.assert_array_equal(model_of(pair), model_of(pairs[0]))
        np.testing.assert_array_equal(average_of(pair), average_of(pairs[0]))
