"""The agreement of both sides of a message, so that a receiver knows each size before it allocates anything.

A vector travels in chunks of its codec's size. From the layout a receiver computes the slice, the number of chunks and
the exact size of each payload that a header may announce; everything else is refused (`peers.wire.assembler`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from peers.codecs.base import Codec
from peers.types import Slice
from peers.wire.fields import MAX_FIELDS_BYTES
from peers.wire.kinds import Kinds

# The least payload that a read has room for: most maps are far smaller than the largest one.
LEAST_PAYLOAD_BYTES = MAX_FIELDS_BYTES // 16


class Layout(Protocol):
    """The agreement of all workers of a run, without which they do not understand each other; one for each pattern."""

    @property
    def fingerprint(self) -> bytes:
        """8 bytes over the vector layout and the settings that must agree."""

    @property
    def carried(self) -> Kinds:
        """The kinds of messages of this run."""

    def allows(self, kind: str, round: int, whole: Slice) -> bool:
        """Whether a vector of this kind and round may cover that slice."""


def chunks(whole: Slice, codec: Codec) -> Iterator[Slice]:
    """The pieces in which a slice travels; an empty slice is one empty piece."""
    for start in range(whole.start, max(whole.stop, whole.start + 1), codec.chunk_values):
        yield Slice(start, min(start + codec.chunk_values, whole.stop))


def entries_of(size: int, codec: Codec) -> int:
    """How many entries a vector of `size` values takes."""
    return sum(1 for _ in chunks(Slice(0, size), codec))


def largest_chunk_bytes(size: int, codec: Codec) -> int:
    """The largest payload of the entries of a vector of `size` values."""
    return codec.encoded_bytes(min(size, codec.chunk_values))
