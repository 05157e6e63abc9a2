"""Small maps on the wire: MessagePack with text keys, at most 64 KiB."""

from __future__ import annotations

from typing import Any

import msgpack

from peers.errors import MessageError
from peers.types import Buffer

MAX_FIELDS_BYTES = 64 * 1024


def pack_fields(what: str, fields: dict[str, Any]) -> bytes:
    """A small map as bytes.

    Args:
        what: the kind of the message, for the error.

    Raises:
        ValueError: the map is larger than 64 KiB.
    """
    payload: bytes = msgpack.packb(fields)
    if len(payload) > MAX_FIELDS_BYTES:
        raise ValueError(f"a {what} of {len(payload)} bytes does not fit in {MAX_FIELDS_BYTES}")
    return payload


def decode_fields(payload: Buffer) -> dict[str, Any]:
    """The inverse of `pack_fields`, with limits.

    Raises:
        MessageError: the payload is no map of MessagePack with text keys, or too large.
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
