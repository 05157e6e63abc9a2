"""Whole runs of the real loop in one process: every worker in a thread, on the memory bus."""

from __future__ import annotations

from pathlib import Path

import config
from degan.artifacts.checkpoints import Checkpoints
from degan.modes.federated import Federated
from degan.modes.local import Local
from degan.modes.multi_discriminator import MultiDiscriminator
from degan.modes.partial_exchange import PartialExchange
from degan.worker.loop import Loop
from degan.worker.setup import Setup
from degan.worker.signals import Signals
from tests.fleets import in_threads, memory_buses
from tests.golden.weights import as_vectors
from tests.learner_views import tensors_of


def silent(line: str) -> None:
    """Takes a line for a person, and leaves it."""


def build_mode(settings: config.Experiment, setup: Setup, bus):
    name = settings.mode.__struct_config__.tag
    if name == "local":
        return Local(settings, setup.worker, setup.learner, silent)
    if name == "partial_exchange":
        return PartialExchange(settings, setup.learner, bus, setup.facts, silent)
    kind = {"federated": Federated, "multi_discriminator": MultiDiscriminator}[name]
    return kind(settings, setup.learner, bus, setup.facts, setup.peer_info, silent)


def live(settings: config.Experiment, out: Path, resumes: bool = False) -> None:
    """Train all workers of an experiment into a run folder.

    Args:
        resumes: go on from the newest checkpoint of each worker in the folder.
    """
    # One after the other: making networks sets torch's global generator.
    all_setups = [Setup.build(settings, worker) for worker in range(settings.workers)]
    buses = memory_buses(settings.workers)
    modes = [build_mode(settings, setup, bus) for setup, bus in zip(all_setups, buses, strict=True)]

    def one(worker: int) -> None:
        folder = out / f"w{worker}"
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(folder / "checkpoints", settings.run.keep_checkpoints)
        steps = checkpoints.whole_steps() if resumes else []
        Loop(all_setups[worker], modes[worker], out, checkpoints, steps, Signals(), silent).run()

    try:
        in_threads([lambda w=w: one(w) for w in range(settings.workers)], timeout_s=100)
    finally:
        for mode in modes:
            mode.close()


def initial(settings: config.Experiment) -> dict:
    """The weights that every worker begins with, as `weights.read` gives them."""
    return as_vectors({name: tensor.numpy() for name, tensor in tensors_of(Setup.build(settings, 0).learner).items()})
