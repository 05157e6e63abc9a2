"""Messages to entries: a vector in chunks of at most 1 MiB of payload, each with a header; a small map as one entry.

A vector's entries are made one by one, so that one travels while the next is made. `read_back` and `squares_of` give
a reader's result for our own entries, to the last bit, for rules in which all workers apply the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from peers.codecs.base import Codec
from peers.types import Buffer, Slice
from peers.vectors.reduce import squares
from peers.wire.fields import pack_fields
from peers.wire.header import SUM_BYTES, VERSION, Header, encode_header
from peers.wire.layout import Layout, chunks

Write = Callable[[Slice, np.ndarray], Buffer]


def encode_vector(
    layout: Layout,
    kind: str,
    round: int,
    whole: Slice,
    values: np.ndarray,
    codec: Codec | None = None,
    write: Write | None = None,
    extras: dict[str, float] | None = None,
    look: Callable[[np.ndarray], None] = lambda chunk: None,
) -> Iterator[tuple[bytes, Buffer]]:
    """A vector message as (header, payload) entries, made one by one so that one travels while the next is made.

    Args:
        whole: the slice that the message covers.
        values: float32 (whole.size,); payloads may be views of them.
        codec: one of the layout's for this kind; None for the usual one.
        write: writes one chunk (its slice and its values) with the codec; for error feedback.
        extras: small numbers for the first header.
        look: called with the values of each chunk that has been encoded, while the processor has them in its cache.
    """
    codec = codec or layout.carried.vectors[kind][0]
    pieces = list(chunks(whole, codec))
    for index, piece in enumerate(pieces):
        part = values[piece.start - whole.start : piece.stop - whole.start]
        payload = write(piece, part) if write else codec.encode(part)
        header = Header(
            v=VERSION,
            k=kind,
            r=round,
            i=index,
            n=len(pieces),
            a=whole.start,
            b=whole.stop,
            f=layout.fingerprint,
            c=codec.name,
            x=extras if extras and index == 0 else {},
            z=bytes(SUM_BYTES),
        )
        packed = encode_header(header, payload)
        look(part)
        yield packed, payload


def encode_fields(layout: Layout, kind: str, round: int, fields: dict[str, Any]) -> list[tuple[bytes, Buffer]]:
    """A message that is a small map, as one entry.

    Raises:
        ValueError: the map is larger than 64 KiB.
    """
    payload = pack_fields(kind, fields)
    header = Header(v=VERSION, k=kind, r=round, i=0, n=1, a=0, b=0, f=layout.fingerprint, c="map", z=bytes(SUM_BYTES))
    return [(encode_header(header, payload), payload)]


def read_back(entries: list[tuple[bytes, Buffer]], codec: Codec, size: int) -> tuple[np.ndarray, float]:
    """Our own entries as a reader decodes them, float32 (size,), and the sum of the squares as a reader adds it up."""
    found, start, total = np.empty(size, dtype=np.float32), 0, 0.0
    for _, payload in entries:
        chunk = found[start : start + codec.chunk_values]
        codec.decode(payload, chunk)
        total = squares(chunk, total)
        start += codec.chunk_values
    return found, total


def squares_of(values: np.ndarray, codec: Codec) -> float:
    """The sum of the squares of a whole message of an exact codec, float32 (size,), as a reader adds it up."""
    total = 0.0
    for piece in chunks(Slice(0, values.size), codec):
        total = squares(values[piece.start : piece.stop], total)
    return total
