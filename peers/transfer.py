"""A whole state from one worker to one that joins: vectors in chunks through the giver's state hash.

The giver writes the chunks and, last, what they mean; the joiner polls for that last field, checks every size
and sum, and loads. Fields carry the token of the wish in their name, so neither two joiners nor two attempts mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from peers.bus import Bus
from peers.checksum import checksum
from peers.errors import MessageError, StalledError
from peers.message import decode_fields
from peers.types import Buffer

CHUNK_BYTES = 256 * 1024
POLL_S = 0.05

State = dict[str, np.ndarray]


def fields_of(arrays: State, meta: dict[str, Any], token: str) -> dict[str, Buffer]:
    """A state as fields of the state hash, the one that completes it last.

    Args:
        arrays: vectors by name; copied, as float32.
        meta: a small map that goes with them.
        token: of the wish that it answers.
    """
    fields: dict[str, Buffer] = {}
    sums = {}
    for name, array in arrays.items():
        raw = memoryview(np.array(array, dtype="<f4").ravel()).cast("B")
        sums[name] = [len(raw), checksum(raw)]
        for index, start in enumerate(range(0, len(raw), CHUNK_BYTES)):
            fields[f"{token}:{name}:{index}"] = raw[start : start + CHUNK_BYTES]
    return fields | {f"{token}:meta": msgpack.packb({**meta, "arrays": sums})}


def give(bus: Bus, fields: dict[str, Buffer], ttl_s: float) -> None:
    """Write the fields, one at a time, so that no command is large."""
    for name, chunk in fields.items():
        bus.put_state({name: chunk}, ttl_s)


def take(
    bus: Bus,
    giver: int,
    incarnation: str,
    token: str,
    sizes: dict[str, int],
    timeout_s: float,
    check: Callable[[], None],
) -> tuple[State, dict[str, Any]]:
    """Wait for a state and read it.

    Args:
        bus: the joiner's door.
        giver, incarnation: who gives it.
        token: of the wish.
        sizes: number of values of every vector that must come, by name; nothing else is read.
        timeout_s: how long to wait.
        check: called between two looks; raises what failed elsewhere.

    Raises:
        StalledError: nothing came in time.
        MessageError: what came is damaged or of another layout.
    """
    deadline, name = time.monotonic() + timeout_s, f"{token}:meta"
    while True:
        check()
        found = bus.get_state(giver, incarnation, [name])
        if found:
            break
        if time.monotonic() >= deadline:
            raise StalledError(f"worker {giver} has not sent its state")
        time.sleep(POLL_S)
    meta = decode_fields(found[name])
    try:
        sums = {array: (int(size_bytes), int(checksum)) for array, (size_bytes, checksum) in meta.pop("arrays").items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MessageError("malformed", f"the state of worker {giver} does not say what it holds") from None
    if {array: size_bytes for array, (size_bytes, _) in sums.items()} != {k: 4 * n for k, n in sizes.items()}:
        raise MessageError("layout", f"the state of worker {giver} has other vectors than this worker")
    arrays = {}
    for array, (size_bytes, expected) in sums.items():
        raw = bytearray()
        for index in range(-(-size_bytes // CHUNK_BYTES)):
            key = f"{token}:{array}:{index}"
            raw += bus.get_state(giver, incarnation, [key]).get(key, b"")
        if len(raw) != size_bytes or checksum(raw) != expected:
            raise MessageError("checksum", f"the state {array} of worker {giver} is damaged")
        arrays[array] = np.frombuffer(bytes(raw), dtype="<f4")
    return arrays, meta
