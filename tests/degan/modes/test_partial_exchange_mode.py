"""A step of partial exchange, from gradients to weights: Adam, the exchange and the moving average by hand in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import config
from degan.learners.gan_pair import GanPair
from degan.modes import partial_exchange
from degan.modes.partial_exchange import PartialExchange
from peers.session.meet import Start
from peers.types import Lease
from tests.fleets import in_threads, memory_buses
from tests.learner_views import unlabelled

SHAPE, STEPS, WORKERS = (1, 8, 8), 5, 3
RATES, BETAS, DECAY, EPSILON = (1e-2, 3e-2), (0.5, 0.9), 0.4, 1e-8


def experiment(workers=WORKERS, **mode):
    return config.build(
        {
            "name": "mode",
            "peers": workers,
            "data": {"name": "mnist", "batch_size": 4},
            "model": {"name": "mlp", "latent": 4, "hidden": 8, "image_size": 8},
            "optimiser": {
                "generator_lr": RATES[0],
                "discriminator_lr": RATES[1],
                "betas": list(BETAS),
                "ema_decay": DECAY,
            },
            "mode": {"name": "partial_exchange", **mode},
            "bus": {"norm_gate": 0},
        }
    )


class Adam:
    """Adam of one worker, by hand: the change of the weights by a gradient."""

    def __init__(self, border, size):
        self.first, self.second, self.steps = np.zeros(size), np.zeros(size), 0
        self.rate = np.where(np.arange(size) < border, *RATES)

    def __call__(self, gradient):
        self.steps += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        mean = self.first / (1 - BETAS[0] ** self.steps)
        square = self.second / (1 - BETAS[1] ** self.steps)
        return -self.rate * mean / (np.sqrt(square) + EPSILON)


class Watched(GanPair):
    """A pair that notes each gradient with the weights at which it was taken, and makes gradient `spoils` unusable."""

    def __init__(self, *args):
        super().__init__(*args)
        self.taken: list[tuple[np.ndarray, np.ndarray]] = []
        self.spoils = 0

    def gradients(self, section, real):
        at = self.parameters((0, self.size)).copy()
        gradient, found = super().gradients(section, real)
        if len(self.taken) + 1 == self.spoils:
            gradient[7] = np.nan
        self.taken.append((at, gradient.copy()))
        return gradient, found


def train(monkeypatch, settings, sync_point=4, spoils=0):
    """Train every worker for `STEPS` steps in a thread; returns pairs, and weights and averages after each step."""
    buses = memory_buses(WORKERS)
    for bus in buses:
        bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 600.0, lambda old: True)
    monkeypatch.setattr(partial_exchange, "Rendezvous", Together)
    pairs = [Watched(settings, SHAPE, worker, torch.device("cpu")) for worker in range(WORKERS)]
    pairs[-1].spoils = spoils
    modes = [
        PartialExchange(settings, pair, bus, {}, lambda line: None) for pair, bus in zip(pairs, buses, strict=True)
    ]

    def live(worker):
        mode, pair, found = modes[worker], pairs[worker], []
        assert mode.begin([], {}, None) == 0
        generator = torch.Generator().manual_seed(worker)
        for step in range(1, STEPS + 1):
            mode.step(
                step,
                lambda: unlabelled(torch.rand(4, *SHAPE, generator=generator) * 2 - 1),
                is_sync_point=step == sync_point,
            )
            found.append((pair.parameters((0, pair.size)).copy(), pair.ema.values.detach().numpy().copy()))
        mode.finish()
        found.append((pair.parameters((0, pair.size)).copy(), pair.ema.values.detach().numpy().copy()))
        return found, mode.stats()["dropped"]

    try:
        return pairs, in_threads([lambda w=w: live(w) for w in range(WORKERS)])
    finally:
        for mode in modes:
            mode.close()


class Together:
    """A rendezvous at which all workers have met already."""

    def __init__(self, bus, *args):
        self.start = Start("together", 0, {peer: f"life-{peer}" for peer in range(WORKERS) if peer != bus.worker})

    def meet(self, checkpoints, followed):
        return self.start

    @property
    def lease(self):
        return self

    def __getattr__(self, name):
        return lambda *args: None


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


class Averages:
    """The moving averages of the generators, by hand: the decay is warmed up."""

    def __init__(self, weights):
        self.values, self.steps = weights.copy(), [0] * len(weights)

    def follow(self, worker, weights):
        self.steps[worker] += 1
        decay = min(DECAY, (1 + self.steps[worker]) / (10 + self.steps[worker]))
        self.values[worker] = decay * self.values[worker] + (1 - decay) * weights


@pytest.mark.parametrize(("updates", "spoils"), [("simultaneous", 3), ("alternating", 5), ("alternating", 6)])
def test_parameters_step_by_step(monkeypatch, updates, spoils):
    """There are two parts and one step of delay: a worker's own Adam step, then the mean of part t in step t + 1.

    Alternating updates are two Adam steps before that, of the discriminator and then of the generator; an unusable
    one leaves the other.
    """
    settings = experiment(exchange="parameters", parts=2, slack=1, codec="raw", updates=updates)
    pairs, results = train(monkeypatch, settings, spoils=spoils)
    border, size = pairs[0].generator.size, pairs[0].size
    weights = np.array([pair.taken[0][0] for pair in pairs], np.float64)
    np.testing.assert_array_equal(weights[0], weights[1])
    sections = {"simultaneous": [(0, size)], "alternating": [(border, size), (0, border)]}[updates]
    adams = [[Adam(max(0, border - start), stop - start) for start, stop in sections] for _ in pairs]
    averages, halves = Averages(weights[:, :border]), (slice(0, size // 2), slice(size // 2, size))
    assert all(len(pair.taken) == STEPS * len(sections) for pair in pairs)
    published, done = {}, 0
    for step in range(1, STEPS + 1):
        before = weights.copy()
        for worker, pair in enumerate(pairs):
            for number, (start, stop) in enumerate(sections):
                at, gradient = pair.taken[(step - 1) * len(sections) + number]
                close(at, weights[worker])
                # An unusable gradient changes nothing.
                if np.isfinite(gradient).all():
                    weights[worker, start:stop] += adams[worker][number](gradient)
        change, part = weights - before, halves[(step - 1) % 2]
        published[step] = part, weights[:, part].copy()
        for at in range(done + 1, step + (step == 4)):
            there, sent = published[at]
            since = change[:, there] if at < step else 0
            weights[:, there] = sent.mean(axis=0) + since
            done = at
        for worker, pair in enumerate(pairs):
            # The generator is in the last section of a step.
            if np.isfinite(pair.taken[step * len(sections) - 1][1]).all():
                averages.follow(worker, weights[worker, :border])
            close(results[worker][0][step - 1][0], weights[worker])
            close(results[worker][0][step - 1][1], averages.values[worker])
    part, sent = published[STEPS]
    # At the end all have the mean, and only the weights are loaded then.
    for worker, (found, dropped) in enumerate(results):
        close(found[-1][0], weights.mean(axis=0))
        close(found[-1][1], averages.values[worker])
        assert dropped == ({"own_not_finite": 1} if worker == WORKERS - 1 else {})


@pytest.mark.parametrize(("own", "slack", "spoils"), [("immediate", 0, 3), ("delayed", 0, 3), ("delayed", 1, 1)])
def test_gradients_step_by_step(monkeypatch, own, slack, spoils):
    """There are two parts: Adam steps on the exchange's mean of all, and after the last step on the remainder.

    No worker steps where nothing has come yet, as in the first steps of `delayed`, with or without a usable gradient
    of its own, so that all stay alike.
    """
    settings = experiment(exchange="gradients", own=own, parts=2, slack=slack, codec="raw", reduce="mean")
    pairs, results = train(monkeypatch, settings, spoils=spoils)
    border, size = pairs[0].generator.size, pairs[0].size
    weights = np.array([pair.taken[0][0] for pair in pairs], np.float64)
    adams, averages = [Adam(border, size) for _ in pairs], Averages(weights[:, :border])
    halves, gathered = (slice(0, size // 2), slice(size // 2, size)), np.zeros((WORKERS, size))
    lumps, done = {}, 0

    def apply(step, combined):
        for worker in range(WORKERS):
            if combined[worker].any():
                weights[worker] += adams[worker](combined[worker])
                averages.follow(worker, weights[worker, :border])
            close(results[worker][0][step - 1][0], weights[worker])
            close(results[worker][0][step - 1][1], averages.values[worker])

    def take(through):
        nonlocal done
        total = np.zeros((WORKERS, size))
        for at in range(done + 1, through + 1):
            part, sent = lumps[at]
            for worker in range(WORKERS):
                others = [w for w in range(WORKERS) if w != worker or own == "delayed"]
                total[worker, part] += sent[others].sum(axis=0)
        done = max(done, through)
        return total

    for step in range(1, STEPS + 1):
        gradients = np.zeros((WORKERS, size))
        for worker, pair in enumerate(pairs):
            at, gradient = pair.taken[step - 1]
            close(at, weights[worker])
            # An unusable gradient is sent as zeros; the gradients of the others are applied.
            if np.isfinite(gradient).all():
                gradients[worker] = gradient
        gathered += gradients
        part = halves[(step - 1) % 2]
        lumps[step] = part, gathered[:, part].copy()
        gathered[:, part] = 0
        total = take(step if step == 4 else step - slack)
        apply(step, (total + (gradients if own == "immediate" else 0)) / WORKERS)
    part = halves[STEPS % 2]
    lumps[STEPS + 1] = part, gathered[:, part]
    apply(STEPS + 1, take(STEPS + 1) / WORKERS)
    for worker, (_, dropped) in enumerate(results):
        assert dropped == ({"own_not_finite": 1} if spoils and worker == WORKERS - 1 else {})
