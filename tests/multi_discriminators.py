"""Fleets of MD-GAN workers in threads, their data, and one process that does the same."""

from __future__ import annotations

import copy

import torch

import config
from degan.federation.derangement import derangement
from degan.learners.gan_pair import GanPair
from degan.modes.multi_discriminator import MultiDiscriminator
from tests.fleets import close, in_threads
from tests.learner_views import average_of, network_of, tensors_of, unlabelled
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
    """Endless batches of one worker."""
    generator, shape = torch.Generator().manual_seed(seed), new_pair(settings, 0).sample_shape
    while True:
        yield unlabelled(torch.rand(settings.data.batch_size, *shape, generator=generator) * 2 - 1)


class Fleet:
    """Workers in threads of one process, each with its mode on a bus of its own."""

    def __init__(self, settings, buses, seeds=None, samples=BATCH, change=lambda mode: None):
        self.pairs = [new_pair(settings, worker) for worker in range(len(buses))]
        counts = [samples] * len(buses) if isinstance(samples, int) else samples
        self.lines = [[] for _ in buses]
        self.modes = [
            MultiDiscriminator(settings, pair, bus, {}, {"samples": count, "histogram": []}, lines.append)
            for pair, bus, lines, count in zip(self.pairs, buses, self.lines, counts, strict=True)
        ]
        self.buses = buses
        seeds = seeds or [100 + worker for worker in range(len(buses))]
        self.data = [reals(settings, seed) for seed in seeds]
        for mode in self.modes:
            change(mode)

    def train(self, steps, at_sync_point=True):
        """Train every worker for `steps` steps; returns the losses of each by step."""

        def live(worker):
            mode, data = self.modes[worker], self.data[worker]
            assert mode.begin([], {}, None) == 0
            found = [mode.step(step, lambda: next(data), is_sync_point=step == steps) for step in range(1, steps + 1)]
            if at_sync_point:
                assert mode.synchronise(steps)
            mode.finish()
            return found

        try:
            return in_threads([lambda w=w: live(w) for w in range(len(self.modes))])
        finally:
            close(self.modes)

    def discriminators(self):
        return [network_of(pair, "discriminator") for pair in self.pairs]


class ByHand:
    """MD-GAN in plain torch: one generator, a list of discriminators, and the mean of their losses.

    Attributes:
        gans: the workers' pairs; only the G of the leader learns.
        first: the leader.
        losses: the losses of D and G in each round, by worker.
    """

    def __init__(self, settings, workers):
        shape = MODELS[settings.model.__struct_config__.tag][1]
        self.settings, self.losses = settings, []
        self.gans = [PlainGan(settings, shape, worker) for worker in range(workers)]
        self.data = [reals(settings, 100 + worker) for worker in range(workers)]
        self.first = self.gans[0]

    def round(self, workers, answering=None, rule=None, skipping=None, silent=None):
        """One round of these workers with the feedbacks of some, and a rule over three or more feedbacks to one batch.

        Args:
            skipping: a worker whose reals are no numbers; its D stays as it was.
            silent: a worker whose feedback is no number; it answers with zeros, and its D stays as it was.
        """
        mode, found = self.settings.mode, {}
        fakes = [self.first.fakes(self.settings.data.batch_size) for _ in range(mode.batches)]
        used = workers if answering is None else answering
        wanted, rows = [], [[] for _ in fakes]
        for place, worker in enumerate(workers):
            gan, count = self.gans[worker], mode.discriminator_steps
            learned, screened = fakes[(place + 1) % mode.batches], fakes[place % mode.batches]
            batches = [next(self.data[worker]).samples for _ in range(count)]
            of_d = sum(gan.learn_d(real, learned) for real in batches if worker != skipping) / count
            before = copy.deepcopy(gan.d.state_dict())
            of_g = gan.g_loss(screened)
            found[worker] = of_d, float(of_g.detach())
            if worker == silent:
                gan.d.load_state_dict(before)
            elif worker in used:
                wanted.append(of_g)
                if rule:
                    rows[place % mode.batches] += torch.autograd.grad(of_g, screened, retain_graph=True)
        self.losses.append(found)
        if rule:
            screened = [
                (fake, (rule(torch.stack(row)) * len(row) if len(row) > 2 else sum(row)) / len(used))
                for fake, row in zip(fakes, rows, strict=True)
            ]
            outputs, feedbacks = zip(*screened, strict=True)
            self.first.g_adam.step(torch.autograd.grad(outputs, self.first.g_adam.weights, feedbacks))
        else:
            self.first.learn_g(sum(wanted) / len(used))
        self.first.take_average()

    def swap(self, step, workers):
        """Discriminators change hands, with their moments."""
        before = [(gan.d, gan.d_adam) for gan in self.gans]
        for giver, taker in derangement(self.settings.seed, step, workers).items():
            self.gans[taker].d, self.gans[taker].d_adam = before[giver]


def by_hand(settings, workers, steps, epoch=0):
    """Rounds of all workers with swaps of the discriminators at the settings' interval; returns pairs and losses."""
    hand = ByHand(settings, workers)
    for step in range(1, steps + 1):
        hand.round(range(workers))
        if epoch and step % epoch == 0:
            hand.swap(step, range(workers))
    return hand.gans, hand.losses


def assert_like(pair: GanPair, first: PlainGan, own: PlainGan, start: PlainGan, tolerance=1e-3):
    """Compare a worker's networks with the G of the first and its own D, relative to how far training moved them."""
    mine = {name: network_of(pair, name, False) for name in ("generator", "discriminator")} | {
        "average": average_of(pair)
    }
    theirs = {"generator": (first.g, start.g), "discriminator": (own.d, start.d), "average": (first.average, start.g)}
    for name, (module, before) in theirs.items():
        moved = float((flat(module) - flat(before)).norm())
        assert moved > 1e-3, f"training moves the {name}"
        away = float((torch.from_numpy(mine[name]) - flat(module)).norm())
        assert away <= tolerance * moved, (name, away / moved)


def assert_same(first: GanPair, second: GanPair, prefixes=("generator", "discriminator", "ema")):
    one, other = tensors_of(first), tensors_of(second)
    for name in one:
        if name.startswith(prefixes):
            assert torch.equal(one[name], other[name]), name
