"""A whole state from one worker to one that joins: vectors in chunks through the giver's state hash.

The giver writes the chunks and, last, what they mean; the joiner polls for that last field, checks every size
and sum, and loads. Fields carry the joiner's incarnation in their name, so two joiners never mix.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from peers.bus import Bus
from peers.errors import MessageError, StalledError
from peers.message import decode_fields
from peers.types import Buffer

CHUNK_BYTES = 256 * 1024
POLL_S = 0.05

State = dict[str, np.ndarray]


def fields_of(arrays: State, meta: dict[str, Any], joiner: str) -> dict[str, Buffer]:
    """A state as fields of the state hash, the one that completes it last.

    Args:
        arrays: vectors by name; copied, as float32.
        meta: a small map that goes with them.
        joiner: the incarnation it is for.
    """
    fields: dict[str, Buffer] = {}
    sums = {}
    for name, array in arrays.items():
        raw = memoryview(np.array(array, dtype="<f4").ravel()).cast("B")
        sums[name] = [len(raw), zlib.crc32(raw)]
        for index, start in enumerate(range(0, len(raw), CHUNK_BYTES)):
            fields[f"{joiner}:{name}:{index}"] = raw[start : start + CHUNK_BYTES]
    return fields | {f"{joiner}:meta": msgpack.packb({**meta, "arrays": sums})}


def give(bus: Bus, fields: dict[str, Buffer], ttl_s: float) -> None:
    """Write the fields, one at a time, so that no command is large."""
    for name, chunk in fields.items():
        bus.put_state({name: chunk}, ttl_s)


def take(
    bus: Bus, giver: int, incarnation: str, timeout_s: float, check: Callable[[], None]
) -> tuple[State, dict[str, Any]]:
    """Wait for a state and read it.

    Args:
        bus: the joiner's door.
        giver, incarnation: who gives it.
        timeout_s: how long to wait.
        check: called between two looks; raises what failed elsewhere.

    Raises:
        StalledError: nothing came in time.
        MessageError: what came is damaged.
    """
    deadline, name = time.monotonic() + timeout_s, f"{bus.incarnation}:meta"
    while True:
        check()
        found = bus.get_state(giver, incarnation, [name])
        if found:
            break
        if time.monotonic() >= deadline:
            raise StalledError(f"worker {giver} has not sent its state")
        time.sleep(POLL_S)
    meta = decode_fields(found[name])
    arrays = {}
    for array, (size_bytes, checksum) in meta.pop("arrays").items():
        raw = bytearray()
        for index in range(-(-size_bytes // CHUNK_BYTES)):
            key = f"{bus.incarnation}:{array}:{index}"
            raw += bus.get_state(giver, incarnation, [key]).get(key, b"")
        if len(raw) != size_bytes or zlib.crc32(raw) != checksum:
            raise MessageError("checksum", f"the state {array} of worker {giver} is damaged")
        arrays[array] = np.frombuffer(bytes(raw), dtype="<f4")
    return arrays, meta
