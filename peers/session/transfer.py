"""The transfer of a whole state to a joining worker: vectors in chunks through the giver's state hash.

The giver writes the chunks and, last, their description. The joiner polls for that last field, checks every size
and sum, and loads. The names of the fields carry the token of the request, so neither two joiners nor two attempts mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from peers.bus.door import Bus
from peers.codecs.base import Codec
from peers.codecs.checksum import checksum
from peers.codecs.exact import CODECS
from peers.errors import MessageError, StalledError
from peers.types import Buffer, Slice
from peers.wire.fields import decode_fields
from peers.wire.layout import chunks

POLL_S = 0.05

State = dict[str, np.ndarray]


def fields_of(arrays: State, meta: dict[str, Any], token: str, codec: Codec = CODECS["raw"]) -> dict[str, Buffer]:
    """A state as fields of the state hash, in the order of writing: the last field completes the state.

    Args:
        arrays: float32 vectors by name; copied.
        meta: a small map that goes with them.
        token: of the request, or another word that is used once.
        codec: writes the vectors.
    """
    fields: dict[str, Buffer] = {}
    sums = {}
    for name, array in arrays.items():
        size_bytes = so_far = 0
        for index, piece in enumerate(_pieces(array.size, codec)):
            # Copied to bytes, because an exact codec gives a view of the caller's array.
            chunk = bytes(codec.encode(array[piece.start : piece.stop]))
            fields[f"{token}:{name}:{index}"] = chunk
            size_bytes, so_far = size_bytes + len(chunk), checksum(chunk, so_far)
        sums[name] = [size_bytes, so_far]
    return fields | {f"{token}:meta": msgpack.packb({**meta, "arrays": sums})}


def field_names(sizes: dict[str, int], token: str, codec: Codec = CODECS["raw"]) -> list[str]:
    """The names of the fields that `fields_of` makes of vectors of these sizes."""
    names = [f"{token}:{name}:{index}" for name, size in sizes.items() for index in range(len(_pieces(size, codec)))]
    return [*names, f"{token}:meta"]


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
    codec: Codec = CODECS["raw"],
) -> tuple[State, dict[str, Any]]:
    """Wait for a state and read it.

    Args:
        bus: the joiner's door.
        giver, incarnation: the worker that gives the state, and its incarnation.
        token: of the request.
        sizes: number of values of every vector that must come, by name; nothing else is read.
        timeout_s: how long to wait.
        check: called between two looks; raises the failure of another thread.
        codec: the codec of the giver.

    Raises:
        StalledError: no state came in time.
        MessageError: the state is damaged or of another layout.
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
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise MessageError("malformed", f"the state of worker {giver} does not say what it holds") from None
    expected_sizes = {array: encoded_bytes(size, codec) for array, size in sizes.items()}
    if {array: size_bytes for array, (size_bytes, _) in sums.items()} != expected_sizes:
        raise MessageError("layout", f"the state of worker {giver} has other vectors than this worker")
    arrays = {}
    for array, (_, expected) in sums.items():
        values, so_far = np.empty(sizes[array], dtype=np.float32), 0
        for index, piece in enumerate(_pieces(values.size, codec)):
            key = f"{token}:{array}:{index}"
            chunk = bus.get_state(giver, incarnation, [key]).get(key, b"")
            if len(chunk) != codec.encoded_bytes(piece.size):
                raise MessageError("malformed", f"the state {array} of worker {giver} is not whole")
            codec.decode(chunk, values[piece.start : piece.stop])
            so_far = checksum(chunk, so_far)
        if so_far != expected:
            raise MessageError("checksum", f"the state {array} of worker {giver} is damaged")
        arrays[array] = values
    return arrays, meta


def encoded_bytes(size: int, codec: Codec) -> int:
    """Bytes that a vector of `size` values takes in a state."""
    return sum(codec.encoded_bytes(piece.size) for piece in _pieces(size, codec))


def _pieces(size: int, codec: Codec) -> list[Slice]:
    return [piece for piece in chunks(Slice(0, size), codec) if piece.size]
