"""Fleets of MD-GAN workers in threads, what they train on, and one process that does the same."""

from __future__ import annotations

import torch

import config
from degan import losses
from degan.derangement import derangement
from degan.modes.multi_discriminator import MultiDiscriminator
from degan.pair import GanPair
from tests.fleets import in_threads

BATCH = 8
MODELS = {
    "mlp": ({"name": "mlp", "latent": 8, "hidden": 16, "image_size": 8}, (1, 8, 8)),
    "dcgan": ({"name": "dcgan", "latent": 8, "width": 4}, (1, 32, 32)),
    "lsgan": ({"name": "lsgan"}, (1, 32, 32)),
}
EXACT = {"codec": "raw", "feedback_codec": "raw", "swap_every": 0}
CPU = torch.device("cpu")


def experiment(workers, model="mlp", batch=BATCH, loss="non_saturating", optimiser=None, **mode):
    return config.build(
        {
            "name": "md",
            "peers": workers,
            "data": {"name": "mnist", "batch_size": batch},
            "model": MODELS[model][0],
            "loss": loss,
            "optimiser": optimiser or {},
            "mode": {"name": "multi_discriminator", **EXACT, **mode},
        }
    )


def new_pair(settings, worker):
    return GanPair(settings, MODELS[settings.model.__struct_config__.tag][1], worker, CPU)


def reals(settings, seed):
    """Endless batches of a worker's own."""
    generator, shape = torch.Generator().manual_seed(seed), new_pair(settings, 0).sample_shape
    while True:
        yield torch.rand(settings.data.batch_size, *shape, generator=generator) * 2 - 1


class Fleet:
    """Workers in threads of one process, each with the mode on a bus of its own."""

    def __init__(self, settings, buses, seeds=None, samples=BATCH, change=lambda mode: None):
        self.pairs = [new_pair(settings, worker) for worker in range(len(buses))]
        self.lines = [[] for _ in buses]
        self.modes = [
            MultiDiscriminator(settings, pair, bus, {}, {"samples": samples, "histogram": []}, lines.append)
            for pair, bus, lines in zip(self.pairs, buses, self.lines, strict=True)
        ]
        self.buses = buses
        seeds = seeds or [100 + worker for worker in range(len(buses))]
        self.data = [reals(settings, seed) for seed in seeds]
        for mode in self.modes:
            change(mode)

    def train(self, steps, at_cut=True):
        """Every worker `steps` steps; returns the losses of each by step."""

        def live(worker):
            mode, data = self.modes[worker], self.data[worker]
            assert mode.begin([], {}, None) == 0
            found = [mode.step(step, lambda: next(data), is_cut=step == steps) for step in range(1, steps + 1)]
            if at_cut:
                assert mode.settle(steps)
            mode.finish()
            return found

        try:
            return in_threads([lambda w=w: live(w) for w in range(len(self.modes))])
        finally:
            for mode in self.modes:
                mode.close()

    def discriminators(self):
        return [pair.network("discriminator") for pair in self.pairs]


def one_process(settings, workers, steps, swap_period=0):
    """The reference: one generator, a list of discriminators, and the mean of their losses."""
    pairs, data = [new_pair(settings, w) for w in range(workers)], [reals(settings, 100 + w) for w in range(workers)]
    count = 1 if settings.mode.batches == 1 else settings.mode.batches
    leader = pairs[0]
    for step in range(1, steps + 1):
        fakes = [leader.generator.module(leader._draw(BATCH)) for _ in range(count)]
        total = 0
        for place, pair in enumerate(pairs):
            pair._discriminator_gradient(next(data[place]), fakes[(place + 1) % count].detach())
            pair._optimisers[1].step()
            pair.discriminator.freeze(True)
            judged = pair.discriminator.module(fakes[place % count])
            total = total + losses.generator_loss(settings.loss, judged) / workers
            pair.discriminator.freeze(False)
        leader.generator.clear_gradient()
        total.backward()
        leader._optimisers[0].step()
        leader.average((0, leader.generator.size))
        if swap_period and step % swap_period == 0:
            before = [(pair.network("discriminator"), pair.network_counters("discriminator")) for pair in pairs]
            for giver, taker in derangement(settings.seed, step, range(workers)).items():
                pairs[taker].load_network("discriminator", *before[giver])
    return pairs


def assert_same(first: GanPair, second: GanPair, prefixes=("generator", "discriminator", "ema")):
    one, other = first.networks(), second.networks()
    for name in one:
        if name.startswith(prefixes):
            assert torch.equal(one[name], other[name]), name
