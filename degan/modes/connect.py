"""The common parts of all modes on the wire: the bus, the agreement and its fingerprint, and the attack."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgpack

import config
from config.security import read_secrets
from config.settings.experiment import Experiment
from degan.learners.protocols import Learner
from peers.bus.door import Bus
from peers.bus.redis.bus import RedisBus
from peers.bus.redis.tls import Access
from peers.chaos.attacks import Attack, attack_of
from peers.chaos.faults import VARIABLE, WIRE_HOOKS, Faults
from peers.chaos.faulty_bus import FaultyBus, inject
from peers.vectors.graph import complete
from peers.wire.header import VERSION

# Hosts at which no message leaves the machine.
LOCAL = ("localhost", "127.0.0.1", "::1")


def open_bus(settings: Experiment, worker: int, log: Callable[[str], None], may_take_over: bool = False) -> Bus:
    """Connect to this worker's Redis and to its peers'.

    Args:
        may_take_over: whether to replace a live worker with this worker's number.

    Raises:
        config.UsageError: `peers` is only a number, so there are no addresses; or a secret cannot be used.
        peers.errors.UnreachableError: a Redis does not answer.
    """
    if isinstance(settings.peers, int):
        raise config.UsageError(
            "peers: a number is for the local launcher (python -m launch local ...); "
            "to start workers by hand, list each worker's Redis: peers: [redis://host0:6379, ...]"
        )
    access, run_key = access_of(settings, worker)
    bus = RedisBus(
        run=settings.name,
        worker=worker,
        urls=settings.peers,
        incarnation=os.urandom(6).hex(),
        peers=complete(worker, settings.workers),
        connect_timeout_s=settings.connect_timeout_s,
        patience_s=max(settings.bus.lease_s, settings.connect_timeout_s),
        full_patience_s=settings.bus.stall_timeout_s,
        log=log,
        may_take_over=may_take_over,
        access=access,
        run_key=run_key,
    )
    return _with_faults(bus, settings) if VARIABLE in os.environ else bus


def _with_faults(bus: Bus, settings: Experiment) -> Bus:
    """The bus, wrapped in a `FaultyBus` where `DEGAN_FAULTS` has faults for it."""
    plan = Faults.parse(os.environ[VARIABLE], settings.workers).for_worker(bus.worker, WIRE_HOOKS)
    return FaultyBus(bus, plan, inject) if plan.faults else bus


def access_of(settings: Experiment, worker: int) -> tuple[Access, bytes | None]:
    """The credentials of a worker for every Redis, and the run's key.

    Raises:
        config.UsageError: a secret cannot be used.
    """
    found = read_secrets(settings.security.folder, worker)
    for url in settings.peers if found.ca is not None and isinstance(settings.peers, list) else ():
        host = urlsplit(url).hostname or "localhost"
        if url.startswith("redis://") and host not in LOCAL:
            raise config.UsageError(
                f"peers: redis://{host} is not encrypted, and {settings.security.folder} has passwords and a CA; "
                "write rediss://, or take the experiment file that `launch secure` wrote"
            )
    return Access(found.user, found.password, found.ca, found.certificate, found.key), found.run_key


def agreement(settings: Experiment, learner: Learner, facts: dict[str, Any]) -> dict[str, Any]:
    """The values on which all workers must agree: settings, data, networks, protocol; plain values by path."""
    return config.agreed(settings) | {
        **facts,
        "protocol": VERSION,
        **learner.facts,
    }


def attack_on(bus: Bus, log: Callable[[str], None]) -> Attack | None:
    """The attack that `DEGAN_FAULTS` asks of this worker, for tests and benchmarks; logged, because it is intended.

    Raises:
        peers.errors.SetupError: an unknown attack.
    """
    name = attack_of(os.environ.get("DEGAN_FAULTS", ""), bus.worker)
    if name is None:
        return None
    log(f"this worker is byzantine: {name}, as DEGAN_FAULTS asks")
    return Attack(name)


def fingerprint(agreed: dict[str, Any]) -> bytes:
    """8 bytes of a hash of the agreement; every header has them."""
    return hashlib.blake2b(msgpack.packb(sorted(agreed.items())), digest_size=8).digest()
