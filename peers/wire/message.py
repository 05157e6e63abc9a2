"""The wire: headers, chunks and whole messages, with no socket and no thread in sight.

A message is cut into entries of at most 1 MiB of payload, each with a small MessagePack header,
whose last four bytes are a checksum of the header before them and of the payload.
`Layout` is what both sides must agree on; from it a receiver computes the slice, the number of
chunks and the exact size of each payload that a header may announce, and refuses anything else
before it allocates (`peers.wire.assembler`).

| kind    | carries | says |
| ------- | ------- | ---- |
| part    | vector  | a slice of what has gathered, or of the parameters, of this round |
| state   | vector  | my averaged buffers, as they stand after this round |
| hello   | map     | I am here: I begin after this round, ask to join, or replay |
| want    | map     | (to one peer) give me your state, under this token |
| admit   | map     | the worker that I gave my state to takes part after this round |
| stop    | map     | let us all stop after this step |
| goodbye | map     | this was my last round |

and in the modes with a leader, whose messages fit a `RoundLayout`:

| kind        | carries | says |
| ----------- | ------- | ---- |
| round_start | map     | (from the leader) who does what in this round, and where what it needs lies |
| round_end   | map     | (from the leader) what holds after this round, and where it lies |
| result      | vector  | (to the leader) the model after my local steps |
| batch       | vector  | (from the leader) generated samples |
| feedback    | vector  | (to the leader) the loss's gradient at generated samples |
| swap        | vector  | (to one peer) my discriminator |

Nothing from the wire is unpickled, evaluated, imported or used as a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgpack
import msgspec
import numpy as np

from peers.codecs.checksum import checksum
from peers.codecs.exact import CODECS, Codec
from peers.errors import MessageError
from peers.types import Buffer, Entry, Slice
from peers.vectors.partition import Schedule, balanced
from peers.vectors.reduce import squares

VERSION = 3
MAX_FIELDS_BYTES = 64 * 1024
MAX_HEADER_BYTES = 4 * 1024
MAX_ROUND = 2**48
SUM_BYTES = 4

# Kinds that carry a vector, and kinds that carry a small map.
VECTOR_KINDS = ("part", "state", "result", "batch", "feedback", "swap")
FIELD_KINDS = ("hello", "goodbye", "want", "admit", "stop", "round_start", "round_end")


Write = Callable[[Slice, np.ndarray], Buffer]


class Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A stream entry's header; the design's section 4 has the meaning of the keys.

    `z`, which comes last, is the checksum of all that comes before it in the header, and then of the payload.

    `x` of a part's first chunk, where the rules have a use for it: `b` the checksum of the values that it is a
    difference to, `p` the number of parts in force, `w` the one wished for.
    """

    v: int
    k: str
    r: int
    i: int
    n: int
    a: int
    b: int
    f: bytes
    c: str = ""
    x: dict[str, float] = {}
    z: bytes


_pack_header = msgspec.msgpack.Encoder().encode
decode_header = msgspec.msgpack.Decoder(Header).decode


@dataclass(frozen=True)
class Layout:
    """What every worker of a run must agree on to understand the others.

    Attributes:
        schedule: which slice travels in which round, at the start.
        codec: of the parts; states are always raw.
        state_size: number of values in a `state` message (averaged buffers).
        fingerprint: 8 bytes over the vector layout and the settings that must agree.
        parts: the numbers of parts that may be in force in the course of a run; empty if only the schedule's.
        may_be_whole: whether a part may also come raw, as values that are no difference to anything.
    """

    schedule: Schedule
    codec: Codec
    state_size: int
    fingerprint: bytes
    parts: tuple[int, ...] = ()
    may_be_whole: bool = False

    def allows(self, kind: str, round: int, whole: Slice) -> bool:
        """Whether a message of this kind and round may cover that slice."""
        if kind == "state":
            return whole == Slice(0, self.state_size)
        if kind != "part":
            return False
        if not self.parts:
            return whole == self.schedule.slice(round)
        return whole in self._slices

    @cached_property
    def _slices(self) -> frozenset[Slice]:
        return frozenset(piece for parts in self.parts for piece in balanced(self.schedule.whole, parts))

    @property
    def largest(self) -> Slice:
        """The largest slice that a part may cover."""
        return self.schedule.changed(min(self.parts), 0).largest if self.parts else self.schedule.largest

    def codecs(self, kind: str) -> tuple[Codec, ...]:
        """The codecs that a message of this kind may use, the usual one first."""
        raw = CODECS["raw"]
        if kind == "state":
            return (raw,)
        return (self.codec, raw) if self.may_be_whole and self.codec.name != "raw" else (self.codec,)

    def entries_per_round(self) -> int:
        """The most entries that one `part` message takes."""
        return max(len(list(chunks(self.largest, codec))) for codec in self.codecs("part"))

    def entries_per_state(self) -> int:
        """Entries of one `state` message; 0 where there are no buffers."""
        return len(list(chunks(Slice(0, self.state_size), CODECS["raw"]))) if self.state_size else 0

    def largest_payload_bytes(self) -> int:
        """The largest payload of any entry, for sizing reads."""
        sizes = [MAX_FIELDS_BYTES // 16]
        for size, kind in ((self.largest.size, "part"), (self.state_size, "state")):
            codec = self.codecs(kind)[0]
            sizes.append(codec.encoded_bytes(min(size, codec.chunk_values)))
        return max(sizes)


@dataclass(frozen=True)
class RoundLayout:
    """What every worker must agree on where a message is always a whole vector of its kind.

    Attributes:
        fingerprint: as of `Layout`.
        kinds: for each kind of vector its number of values and its codec.
    """

    fingerprint: bytes
    kinds: dict[str, tuple[int, Codec]]

    codec = CODECS["raw"]

    def allows(self, kind: str, round: int, whole: Slice) -> bool:
        """Whether a message of this kind may cover that slice."""
        return kind in self.kinds and whole == Slice(0, self.kinds[kind][0])

    def codecs(self, kind: str) -> tuple[Codec, ...]:
        return (self.kinds[kind][1],) if kind in self.kinds else ()

    def entries(self, kind: str) -> int:
        """Entries that one message of this kind takes."""
        size, codec = self.kinds[kind]
        return len(list(chunks(Slice(0, size), codec)))

    def payload_bytes(self, kind: str) -> int:
        """Payload of one message of this kind."""
        size, codec = self.kinds[kind]
        return sum(codec.encoded_bytes(piece.size) for piece in chunks(Slice(0, size), codec))

    def largest_payload_bytes(self) -> int:
        """The largest payload of any entry, for sizing reads."""
        sizes = [codec.encoded_bytes(min(size, codec.chunk_values)) for size, codec in self.kinds.values()]
        return max([MAX_FIELDS_BYTES // 16, *sizes])


def _encode_header(header: Header, payload: Buffer) -> bytes:
    """A header, with the checksum of itself and its payload in the place of the one that it has."""
    said = _pack_header(header)[:-SUM_BYTES]
    return said + checksum(payload, checksum(said)).to_bytes(SUM_BYTES, "big")


def is_sound(entry: Entry) -> bool:
    """Whether an entry bears the checksum of its own bytes, whatever these say: it came as it was sent."""
    said = bytes(entry.header)
    return checksum(entry.payload, checksum(said[:-SUM_BYTES])).to_bytes(SUM_BYTES, "big") == said[-SUM_BYTES:]


def is_whole(header: Header, packed: Buffer, payload: Buffer) -> bool:
    """Whether nothing has changed since the checksum was made."""
    expected = checksum(payload, checksum(packed[:-SUM_BYTES])).to_bytes(SUM_BYTES, "big")
    return header.z == expected == packed[-SUM_BYTES:]


def chunks(whole: Slice, codec: Codec) -> Iterator[Slice]:
    """The pieces in which a slice travels; an empty slice is one empty piece."""
    for start in range(whole.start, max(whole.stop, whole.start + 1), codec.chunk_values):
        yield Slice(start, min(start + codec.chunk_values, whole.stop))


def encode_vector(
    layout: Layout | RoundLayout,
    kind: str,
    round: int,
    whole: Slice,
    values: np.ndarray,
    codec: Codec | None = None,
    write: Write | None = None,
    extras: dict[str, float] | None = None,
    look: Callable[[np.ndarray], None] = lambda chunk: None,
) -> Iterator[tuple[bytes, Buffer]]:
    """A vector message as (header, payload) entries, made one by one so that one leaves while the next is made.

    Args:
        whole: the slice that it covers.
        values: float32 (whole.size,); payloads may be views of them.
        codec: one of `layout.codecs(kind)`; the usual one unless said otherwise.
        write: writes one chunk (its slice and its values) with the codec; for error feedback.
        extras: small numbers for the first header.
        look: called with the values of each chunk that has been encoded, while the processor has them in its cache.
    """
    codec = codec or layout.codecs(kind)[0]
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
        packed = _encode_header(header, payload)
        look(part)
        yield packed, payload


def read_back(entries: list[tuple[bytes, Buffer]], codec: Codec, size: int) -> tuple[np.ndarray, float]:
    """What a reader makes of our own entries, float32 (size,), and the sum of the squares as it adds them up."""
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


def encode_fields(
    layout: Layout | RoundLayout, kind: str, round: int, fields: dict[str, Any]
) -> list[tuple[bytes, Buffer]]:
    """A message that is a small map, as one entry.

    Raises:
        ValueError: the map is larger than 64 KiB.
    """
    payload = msgpack.packb(fields)
    if len(payload) > MAX_FIELDS_BYTES:
        raise ValueError(f"a {kind} of {len(payload)} bytes does not fit in {MAX_FIELDS_BYTES}")
    header = Header(v=VERSION, k=kind, r=round, i=0, n=1, a=0, b=0, f=layout.fingerprint, c="map", z=bytes(SUM_BYTES))
    return [(_encode_header(header, payload), payload)]


def decode_fields(payload: Buffer) -> dict[str, Any]:
    """The inverse of the map's encoding, with limits.

    Raises:
        MessageError: not a map of MessagePack with text keys, or too large.
    """
    if len(payload) > MAX_FIELDS_BYTES:
        raise MessageError("oversized", f"a map of {len(payload)} bytes")
    try:
        fields = msgpack.unpackb(payload, max_ext_len=0, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MessageError("malformed", f"not MessagePack: {type(error).__name__}") from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise MessageError("malformed", "not a map with text keys")
    return fields
