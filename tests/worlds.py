"""A world: a whole worker, or several in threads, begun as a person begins them, with the calls between parts noted.

The world notes the arguments of constructors and functions, by their names, at the door that they come to last: a
setting that is dropped anywhere on its way does not arrive. Data, Redis and the metrics' classifier are stand-ins.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import config
from degan.artifacts.checkpoints import Checkpoints
from degan.data import sources, splits
from degan.data.base import ImageSource
from degan.data.shard import Shard
from degan.federation import cohorts
from degan.learners import losses
from degan.learners.gan_pair import GanPair
from degan.metrics import classifier
from degan.metrics.evaluate import Evaluator
from degan.modes import connect as wire
from degan.modes import federated, local, multi_discriminator, partial_exchange
from degan.modes.swaps import Swaps
from degan.seeds import spawn_seed
from degan.worker import __main__ as worker_main
from degan.worker import setup
from degan.worker.signals import Signals
from peers.bus.memory import MemoryBus, MemoryHub
from peers.bus.redis.bus import RedisBus
from peers.codecs.quantised import Int8
from peers.exchange.gate import ClockGate
from peers.exchange.gradients import GradientRule
from peers.exchange.joining import Giver
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.exchange.parameters import ParameterRule
from peers.rounds.deadline import Deadline
from peers.rounds.layout import RoundLayout
from peers.rounds.leadership import Leadership
from peers.rounds.rounds import Rounds
from peers.session.meet import Rendezvous
from peers.session.reader import PeerReader
from peers.session.sender import SenderThread
from peers.session.waiting import Waiting
from peers.vectors import reduce as robust
from peers.vectors.screen import Screen
from tests.fleets import in_threads

SIDE, SAMPLES, CLASSES = 10, 210, 10
# The processor under a name that is not the default one.
DEVICE = torch.device("cpu:0")
CLASSES_WATCHED = (
    *(
        Checkpoints,
        ClockGate,
        Deadline,
        Evaluator,
        GanPair,
        Giver,
        GradientRule,
        Int8,
        Screen,
        ExchangeLayout,
        Leadership,
    ),
    *(ParameterRule, PeerReader, Rendezvous, RoundLayout, Rounds, Options, Shard, Swaps),
)
METHODS_WATCHED = (
    *(
        (GanPair, "gradients"),
        (GanPair, "load"),
        (GanPair, "average"),
        (GanPair, "reset_optimisers"),
        (GanPair, "make_fakes"),
    ),
    *((GanPair, "discriminator_gradient"), (GanPair, "feedback"), (Rounds, "gather"), (Rounds, "put")),
    *(
        (Swaps, "begin"),
        (Waiting, "until"),
        (SenderThread, "submit"),
        (SenderThread, "drain"),
        (MemoryBus, "configure"),
    ),
)
# A mode's module is loaded at its first use. In a world it would import stand-ins, and keep them.
LOADED_BEFORE = (local, partial_exchange, federated, multi_discriminator)
FUNCTIONS_WATCHED = (
    *(spawn_seed, splits.split, robust.build, cohorts.uniform, cohorts.balanced, cohorts.cohort_size, cohorts.weights),
    *(losses.discriminator_loss, losses.generator_loss, config.security.read_secrets, wire.fingerprint),
)


class Calls:
    """The arguments of every call of the watched classes and functions, by name and with the defaults."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self._patch, self._found = patch, defaultdict(list)
        # All calls in order.
        self.log: list[tuple[str, dict[str, Any]]] = []

    def watch(self) -> None:
        for kind in CLASSES_WATCHED:
            self._method(kind, "__init__", kind.__name__)
        for kind, name in METHODS_WATCHED:
            self._method(kind, name, f"{kind.__name__}.{name}")
        for function in FUNCTIONS_WATCHED:
            self.replace(function, self._noted(function, function.__name__))

    def _method(self, kind: type, name: str, key: str) -> None:
        self._patch.setattr(kind, name, self._noted(inspect.getattr_static(kind, name), key))

    def _noted(self, function: Callable, key: str, instead: Callable | None = None) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def noted(*arguments: Any, **named: Any) -> Any:
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            found = dict(bound.arguments)
            self._found[key].append(found)
            self.log.append((key, found))
            found["->"] = (instead or function)(*arguments, **named)
            return found["->"]

        return noted

    def replace(self, function: Callable, other: Callable) -> None:
        """Put another function in the place of a function, in every module that has imported it."""
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in ("config", "degan", "peers", "launch"):
                for at, value in list(vars(module).items()):
                    if value is function:
                        self._patch.setattr(module, at, other)

    def stand_in(self, function: Callable, key: str, instead: Callable) -> None:
        """Note the arguments of a function, or a constructor, and call a stand-in."""
        self.replace(function, self._noted(function, key, instead))

    def all(self, key: str, *names: str) -> list[Any]:
        """One argument or several of every call, in order; `->` is the returned value."""
        found = [tuple(call[name] for name in names) for call in self._found[key]]
        return [values[0] for values in found] if len(names) == 1 else found

    def only(self, key: str, *names: str) -> Any:
        """The arguments that all calls have alike; there is at least one call."""
        found = self.all(key, *names)
        assert found, f"{key} is never called"
        assert all(values == found[0] for values in found), f"{key}: {names} are {found}"
        return found[0]


class FeatureNetwork(nn.Module):
    """A stand-in for the classifier: three features, and a class by the first of them."""

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.flatten(1)[:, :3]

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features[:, :1], -features[:, :1]], dim=1)


def make_source(part: str = "train") -> ImageSource:
    random = np.random.default_rng(len(part))
    pixels = random.integers(0, 256, (SAMPLES, 1, SIDE, SIDE))
    return ImageSource(pixels, np.arange(SAMPLES) % CLASSES, [str(name) for name in range(CLASSES)])


class World:
    """A run of all workers of an experiment, from the command's inside to the end.

    Attributes:
        calls: the noted calls.
        out: the run folder.
    """

    def __init__(self, data: dict[str, Any], folder: Path):
        self.settings = config.build(data)
        self.folder, self.out = folder, folder / "runs" / self.settings.name
        # The first pair of a process loads its optimisers' modules for seconds: not while others wait for it.
        GanPair(self.settings, (1, SIDE, SIDE), 0, DEVICE)
        with pytest.MonkeyPatch.context() as patch:
            self.calls = Calls(patch)
            self._stand_in(patch)
            self.calls.watch()
            self._run()

    def _stand_in(self, patch: pytest.MonkeyPatch) -> None:
        hub, workers = MemoryHub(), self.settings.workers

        def bus(worker: int, peers: tuple[int, ...], incarnation: str, **more: Any) -> MemoryBus:
            return hub.bus(worker, peers, incarnation)

        calls = self.calls
        calls.stand_in(RedisBus, "RedisBus", bus)
        calls.stand_in(sources.prepare, "prepare", lambda data, image_size: None)
        calls.stand_in(sources.load, "load", lambda data, image_size, part: make_source(part))
        calls.stand_in(setup.pick_device, "pick_device", lambda name: DEVICE)
        calls.stand_in(classifier.obtain, "obtain", lambda train: FeatureNetwork())
        # Threads may not install signal handlers.
        patch.setattr(Signals, "install", lambda signals: None)
        patch.chdir(self.folder)
        for worker in range(workers):
            secrets = self.folder / f"secrets-{worker}"
            secrets.mkdir()
            for name, text in (("password", f"secret of {worker}"), ("run.key", "ab" * 32)):
                (secrets / name).touch(mode=0o600)
                (secrets / name).write_text(text)

    def _run(self) -> None:
        if self.settings.workers == 1 or self.settings.mode.__struct_config__.tag == "local":
            return self._run_command()
        jobs = [lambda n=n: worker_main._live(self.settings, n, self.out, Signals(), None) for n in self.workers]
        codes = in_threads(jobs, timeout_s=100)
        assert codes == [0] * len(codes)
        return None

    def _run_command(self) -> None:
        file = self.folder / "file.yaml"
        file.write_text(config.dump(self.settings), encoding="utf-8")
        assert worker_main.main(["0", "--config", str(file)]) == 0

    @property
    def workers(self) -> range:
        return range(self.settings.workers)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON Lines file in the run folder."""
        path = self.out / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def steps(self, pattern: str) -> set[int]:
        """The steps in the names of files or folders."""
        return {int("".join(filter(str.isdigit, path.name))) for path in self.out.glob(pattern)}
