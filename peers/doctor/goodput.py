"""How fast a server takes entries of a stream and gives them back, measured with few bytes and in little time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from peers.codecs.base import CHUNK_BYTES

# The limits each way: bytes enough for a fast wire, and a time limit for a slow one.
TRANSFER_BYTES, TRANSFER_S = 4 * 2**20, 1.0
# After a batch that took less time than this comes a larger one, up to this many entries.
QUICK_S, MOST_ENTRIES = 0.2, 8

# Puts one question to a client of redis-py.
Ask = Callable[[Callable[[Any], Any]], Any]


def begin_stream(client: Any, key: str, payload: bytes, keep_s: int) -> None:
    """Make a stream of one entry that expires by itself: both or none, for one that never expires would stay."""
    pipeline = client.pipeline().xadd(key, {"d": payload}, id="1-0", maxlen=1, approximate=False)
    pipeline.expire(key, keep_s).execute()


def write_rate(ask: Ask, key: str) -> float | None:
    """Bytes a second at which an existing stream takes entries."""
    payload = os.urandom(CHUNK_BYTES)

    def append(count: int) -> int:
        def add(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            for _ in range(count):
                pipeline.xadd(key, {"d": payload}, maxlen=TRANSFER_BYTES // CHUNK_BYTES, approximate=False)
            pipeline.execute()

        ask(add)
        return count * len(payload)

    return _rate(append)


def read_rate(ask: Ask, keys: list[str]) -> float | None:
    """Bytes a second at which these streams can be read; None if they are empty."""
    wanted = [1]

    def entries() -> Iterator[int]:
        for key in keys:
            after = "-"
            while found := ask(partial(_entries, key=key, after=after, count=wanted[0])):
                after = "(" + found[-1][0].decode()
                yield sum(len(value) for _, fields in found for value in fields.values())

    source = entries()

    def read(count: int) -> int:
        wanted[0] = count
        return next(source, 0)

    return _rate(read)


def _entries(client: Any, key: str, after: str, count: int) -> Any:
    return client.xrange(key, min=after, count=count)


def _rate(move: Callable[[int], int]) -> float | None:
    """Bytes a second of `move(entries)`, which is called until the limits are reached; None if it moves nothing."""
    total, count, began = 0, 1, time.perf_counter()
    while True:
        before = time.perf_counter()
        moved = move(count)
        now = time.perf_counter()
        if moved:
            total, ended = total + moved, now
        if not moved or total >= TRANSFER_BYTES or now - began >= TRANSFER_S:
            return total / (ended - began) if total else None
        if now - before < QUICK_S:
            count = min(MOST_ENTRIES, 2 * count)
