"""The header of a stream entry: a small MessagePack map that ends with a checksum of itself and of the payload.

Source: CRC-32 as in `peers.codecs.checksum`; MessagePack's specification for the encoding.
"""

from __future__ import annotations

import msgspec

from peers.codecs.checksum import checksum
from peers.types import Buffer, Entry

VERSION = 3
MAX_HEADER_BYTES = 4 * 1024
MAX_ROUND = 2**48
SUM_BYTES = 4


class Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A stream entry's header.

    Attributes:
        v: version of the protocol.
        k, r: kind of the message, and its round.
        i, n: number of this chunk, and of all chunks of the message.
        a, b: first and past-last element of the slice that the message covers.
        f: fingerprint of the workers' agreement, 8 bytes.
        c: name of the codec.
        x: small numbers, in the first chunk only. Of a part: `b` the checksum of the reference that the values differ
            from, `p` the number of parts in force, `w` the number of parts that the sender proposes.
        z: the checksum of the header's bytes before it, and then of the payload; it comes last.
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


def encode_header(header: Header, payload: Buffer) -> bytes:
    """A header as bytes, with the checksum of itself and its payload as its `z`."""
    body = _pack_header(header)[:-SUM_BYTES]
    return body + checksum(payload, checksum(body)).to_bytes(SUM_BYTES, "big")


def is_sound(entry: Entry) -> bool:
    """Whether an entry bears the checksum of its own bytes, valid message or not: it came as it was sent."""
    packed = bytes(entry.header)
    return checksum(entry.payload, checksum(packed[:-SUM_BYTES])).to_bytes(SUM_BYTES, "big") == packed[-SUM_BYTES:]


def is_whole(header: Header, packed: Buffer, payload: Buffer) -> bool:
    """Whether no byte has changed since the checksum was made."""
    expected = checksum(payload, checksum(packed[:-SUM_BYTES])).to_bytes(SUM_BYTES, "big")
    return header.z == expected == packed[-SUM_BYTES:]
