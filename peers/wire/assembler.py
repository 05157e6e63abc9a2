"""From entries to whole messages: one sender's entries come in order, so there is at most one unfinished message.

A header is believed only as far as the layout allows what it says, and memory is taken for nothing else.
"""

from __future__ import annotations

import math

import msgspec

from peers.codecs.exact import Codec
from peers.errors import MessageError
from peers.types import Entry, Message, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.reduce import squares
from peers.wire.message import (
    FIELD_KINDS,
    MAX_HEADER_BYTES,
    MAX_ROUND,
    VECTOR_KINDS,
    VERSION,
    Header,
    Layout,
    RoundLayout,
    chunks,
    decode_fields,
    decode_header,
    is_sound,
    is_whole,
)


class Assembler:
    """Puts the entries of one stream of one sender together. Pure; entries come in order.

    Args:
        layout: what this worker expects of everyone.
        spares: where the arrays of messages come from.
    """

    def __init__(self, layout: Layout | RoundLayout, buffers: BufferPool | None = None):
        self._layout = layout
        self._buffers = buffers or BufferPool()
        self._partial: Message | None = None
        self._pieces: list[Slice] = []
        self._codec: Codec = layout.codec
        self._next = 0

    def feed(self, entry: Entry) -> Message | None:
        """One entry; returns the message that it completes, if it does.

        Raises:
            MessageError: the entry does not fit; an unfinished message is given up, unless what did not fit is an
                entry that changed on its way, which may come again.
        """
        try:
            return self._feed(entry)
        except MessageError:
            if is_sound(entry):
                self._partial = None
            raise

    def _feed(self, entry: Entry) -> Message | None:
        header = self._checked(entry)
        if header.k in FIELD_KINDS:
            self._partial = None
            fields = decode_fields(entry.payload)
            return Message(header.k, header.r, Slice(0, 0), None, fields, entry.sequence)
        if header.i == 0:
            self._begin(header)
        partial = self._partial
        if partial is None or (partial.kind, partial.round) != (header.k, header.r) or header.i != self._next:
            raise MessageError("incomplete", f"chunk {header.i} of {header.k} {header.r} without those before it")
        piece, whole, codec = self._pieces[header.i], partial.slice, self._codec
        if len(entry.payload) != codec.encoded_bytes(piece.size):
            expected = codec.encoded_bytes(piece.size)
            raise MessageError("malformed", f"{len(entry.payload)} bytes where {codec.name} needs {expected}")
        chunk = partial.values[piece.start - whole.start : piece.stop - whole.start]
        codec.decode(entry.payload, chunk)
        if header.k == "part":
            # Whoever applies it asks for its length: here it is in the processor's cache, and the main thread computes.
            partial.squares = squares(chunk, partial.squares)
        self._next += 1
        if self._next < len(self._pieces):
            return None
        partial.last_sequence, self._partial = entry.sequence, None
        return partial

    def _checked(self, entry: Entry) -> Header:
        if len(entry.header) > MAX_HEADER_BYTES:
            raise MessageError("oversized", f"a header of {len(entry.header)} bytes")
        try:
            header = decode_header(entry.header)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # A ValueError too: text that is no UTF-8 comes as UnicodeDecodeError.
            raise MessageError("malformed", f"header: {error}") from None
        if header.v != VERSION:
            raise MessageError("version", f"protocol {header.v}, this is {VERSION}")
        if header.f != self._layout.fingerprint:
            raise MessageError("fingerprint", f"worker {entry.sender} trains something else")
        if header.k not in VECTOR_KINDS and header.k not in FIELD_KINDS:
            raise MessageError("kind", f"unknown kind {header.k[:32]!r}")
        if not 0 <= header.r < MAX_ROUND:
            raise MessageError("malformed", f"round {header.r}")
        if not is_whole(header, entry.header, entry.payload):
            raise MessageError("checksum", f"{header.k} {header.r} chunk {header.i}")
        return header

    def _begin(self, header: Header) -> None:
        if header.k == "part" and header.r < 1:
            raise MessageError("malformed", "parts begin with round 1")
        whole = Slice(header.a, header.b)
        codec = next((codec for codec in self._layout.codecs(header.k) if codec.name == header.c), None)
        # The layout has checked the slice before anything of its size is computed or allocated.
        pieces = list(chunks(whole, codec)) if codec and self._layout.allows(header.k, header.r, whole) else []
        if not pieces or header.n != len(pieces):
            came = f"{header.c[:32]} [{header.a}, {header.b}) in {header.n}"
            raise MessageError("layout", f"{header.k} {header.r} is {came}, which does not fit here")
        if not all(math.isfinite(value) for value in header.x.values()):
            raise MessageError("malformed", "a header with a number that is none")
        self._pieces, self._codec, self._next = pieces, codec, 0
        values = self._buffers.take(whole.size)
        # Raw instead of the usual codec says that the values stand for themselves.
        stands_alone = codec.name != self._layout.codec.name
        self._partial = Message(header.k, header.r, whole, values, extras=header.x, is_whole=stands_alone)
