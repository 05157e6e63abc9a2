"""A small problem with a known optimum, which a fleet learns; one of its workers may be byzantine."""

from __future__ import annotations

import numpy as np

from peers.chaos.attacks import Attack
from peers.exchange.options import Options
from tests.fleets import Fleet, make_layout, memory_buses

SIZE, WORKERS, RATE, NOISE = 60, 5, 0.9, 0.3
OPTIMUM = np.linspace(-2, 2, SIZE).astype(np.float32)


def gradient(values, random):
    """The true gradient with noise, as a batch of data gives it."""
    return (values - OPTIMUM + NOISE * random.standard_normal(SIZE)).astype(np.float32)


def learn(attack=None, exchange="parameters", codec="raw", parts=1, slack=0, steps=60, buses=None, **rules):
    """Train a fleet, the last worker of which may attack.

    Returns:
        The values of each worker at the end, the distance of each worker from the optimum in the later half of the
        steps (the root of the mean square), and the fleet.
    """
    own = "delayed" if exchange == "gradients" else "immediate"
    made = Options(slack=slack, exchange=exchange, own=own, finish_timeout_s=20.0, **rules)
    layout = make_layout(SIZE, parts, codec, may_be_whole=exchange == "parameters")
    buses = buses or memory_buses(WORKERS)
    fleet = Fleet(buses, layout, SIZE, made)

    def job(worker, one):
        random, values = np.random.default_rng(worker), np.zeros(SIZE, np.float32)
        byzantine = Attack(attack) if attack and worker == len(buses) - 1 else None
        trail = []
        for step in range(steps):
            if step >= steps // 2:
                trail.append(float(np.linalg.norm((values - OPTIMUM).astype(np.float64))))
            found = gradient(values, random)
            if exchange == "gradients":
                values -= RATE * one.exchange(byzantine(found) if byzantine else found)
                continue
            change = -RATE * found
            honest = values + change
            together = one.exchange(values + (byzantine(change) if byzantine else change))
            # An attacker means to go on: values of its own that have run away are set back.
            values = np.where(np.abs(together) < 1e6, together, honest) if byzantine else together
        last = one.finish(values if exchange == "parameters" else np.zeros(SIZE, np.float32))
        if exchange == "parameters":
            values = last
        elif last is not None:
            values -= RATE * last
        return values, float(np.sqrt(np.mean(np.square(trail))))

    with np.errstate(over="ignore", invalid="ignore"):
        values, trails = zip(*fleet.run(job), strict=True)
    return values, trails, fleet
