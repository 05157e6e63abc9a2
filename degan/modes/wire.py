"""What every mode on the wire has in common: the door to the peers, and what all must agree on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import msgpack

import config
from config.security import read_secrets
from config.settings import Experiment
from degan.pair import GanPair
from peers.message import VERSION
from peers.redis_bus import RedisBus
from peers.tls import Access
from peers.topology import complete


def open_bus(settings: Experiment, worker: int, say: Callable[[str], None]) -> RedisBus:
    """Connect to our own Redis and to the peers'.

    Raises:
        config.UsageError: `peers` is only a number, so there are no addresses; or a secret cannot be used.
        peers.errors.UnreachableError: a Redis does not answer.
    """
    if isinstance(settings.peers, int):
        raise config.UsageError(
            "peers: a number is for the local launcher (python -m launch local ...); "
            "to start workers by hand, list each worker's Redis: peers: [redis://host0:6379, ...]"
        )
    secrets = read_secrets(settings.security.folder, worker)
    return RedisBus(
        run=settings.name,
        worker=worker,
        urls=settings.peers,
        incarnation=os.urandom(6).hex(),
        peers=complete(worker, settings.workers),
        connect_timeout_s=settings.connect_timeout_s,
        patience_s=settings.bus.lease_s,
        say=say,
        access=Access(secrets.user, secrets.password, secrets.ca, secrets.certificate, secrets.key),
        run_key=secrets.run_key,
    )


def agreement(settings: Experiment, pair: GanPair, facts: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for all workers: settings, data, networks, protocol; plain values by path."""
    return config.agreed(settings) | {
        **facts,
        "protocol": VERSION,
        "model (number of values)": pair.size,
        "model (sample shape)": list(pair.sample_shape),
    }


def fingerprint(agreed: dict[str, Any]) -> bytes:
    """8 bytes over what was agreed on, in every header."""
    return hashlib.blake2b(msgpack.packb(sorted(agreed.items())), digest_size=8).digest()
