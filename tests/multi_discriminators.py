"""Fleets of MD-GAN workers in threads, what they train on, and one process that does the same."""

from __future__ import annotations

import torch

import config
from degan.derangement import derangement
from degan.modes.multi_discriminator import MultiDiscriminator
from degan.pair import GanPair
from tests.fleets import close, in_threads
from tests.plain_gans import PlainGan, flat

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
            close(self.modes)

    def discriminators(self):
        return [pair.network("discriminator") for pair in self.pairs]


def by_hand(settings, workers, steps, epoch=0):
    """The same in plain torch: one generator, a list of discriminators, and the mean of their losses.

    Args:
        epoch: after how many steps discriminators change hands, with their moments; 0 for never.

    Returns:
        The pairs, of which the first holds G; and the losses of each step by worker.
    """
    shape, found = MODELS[settings.model.__struct_config__.tag][1], []
    gans, data = (
        [PlainGan(settings, shape, w) for w in range(workers)],
        [reals(settings, 100 + w) for w in range(workers)],
    )
    first, batches, count = gans[0], settings.mode.batches, settings.mode.discriminator_steps
    for step in range(1, steps + 1):
        fakes = [first.fakes(settings.data.batch_size) for _ in range(batches)]
        losses_of_d = [
            sum(gan.learn_d(next(data[place]), fakes[(place + 1) % batches]) for _ in range(count)) / count
            for place, gan in enumerate(gans)
        ]
        losses_of_g = [gan.g_loss(fakes[place % batches]) for place, gan in enumerate(gans)]
        first.learn_g(sum(losses_of_g) / workers)
        first.take_average()
        found.append([(d, float(g.detach())) for d, g in zip(losses_of_d, losses_of_g, strict=True)])
        if epoch and step % epoch == 0:
            before = [(gan.d, gan.d_adam) for gan in gans]
            for giver, taker in derangement(settings.seed, step, range(workers)).items():
                gans[taker].d, gans[taker].d_adam = before[giver]
    return gans, found


def assert_like(pair: GanPair, first: PlainGan, own: PlainGan, start: PlainGan, tolerance=1e-3):
    """A worker's networks against the G of the first and the D of its own, relative to what training has moved."""
    mine = {name: pair.network(name, False) for name in ("generator", "discriminator")} | {"average": pair.smooth()}
    theirs = {"generator": (first.g, start.g), "discriminator": (own.d, start.d), "average": (first.average, start.g)}
    for name, (module, before) in theirs.items():
        moved = float((flat(module) - flat(before)).norm())
        assert moved > 1e-3, f"training moves the {name}"
        away = float((torch.from_numpy(mine[name]) - flat(module)).norm())
        assert away <= tolerance * moved, (name, away / moved)


def assert_same(first: GanPair, second: GanPair, prefixes=("generator", "discriminator", "ema")):
    one, other = first.networks(), second.networks()
    for name in one:
        if name.startswith(prefixes):
            assert torch.equal(one[name], other[name]), name
