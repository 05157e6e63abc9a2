"""From entries to whole messages: one sender's entries come in order, so there is at most one unfinished message.

A header is accepted only if the layout allows its values, and memory is allocated for nothing else.
"""

from __future__ import annotations

import math

import msgspec

from peers.codecs.base import Codec
from peers.errors import MessageError
from peers.types import Entry, Received, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.reduce import squares
from peers.wire.fields import decode_fields
from peers.wire.header import MAX_HEADER_BYTES, MAX_ROUND, VERSION, Header, decode_header, is_sound, is_whole
from peers.wire.layout import Layout, chunks


class Assembler:
    """Puts the entries of one stream of one sender together. Pure; entries come in order.

    Args:
        layout: the agreement of all workers.
        buffers: the buffer pool for the arrays of messages.
    """

    def __init__(self, layout: Layout, buffers: BufferPool | None = None):
        self._layout, self._kinds = layout, layout.carried
        self._buffers = buffers or BufferPool()
        self._partial: Received | None = None
        self._pieces: list[Slice] = []
        self._codec: Codec | None = None
        self._next = 0

    def feed(self, entry: Entry) -> Received | None:
        """Take one entry; returns the message that the entry completes, else None.

        Raises:
            MessageError: the entry does not fit; the unfinished message is dropped, except for an entry that changed on
                its way (`is_damage`), which may come again.
        """
        try:
            return self._feed(entry)
        except MessageError as error:
            error.is_damage = not is_sound(entry)
            if not error.is_damage:
                self._partial = None
            raise

    def _feed(self, entry: Entry) -> Received | None:
        header = self._checked(entry)
        if header.k in self._kinds.maps:
            self._partial = None
            fields = decode_fields(entry.payload)
            return Received(
                header.k, entry.sender, entry.incarnation, header.r, fields=fields, last_sequence=entry.sequence
            )
        if header.i == 0:
            self._begin(entry, header)
        partial, codec = self._partial, self._codec
        if (
            partial is None
            or codec is None
            or (partial.kind, partial.round) != (header.k, header.r)
            or header.i != self._next
        ):
            raise MessageError("incomplete", f"chunk {header.i} of {header.k} {header.r} without those before it")
        piece, whole = self._pieces[header.i], partial.slice
        if len(entry.payload) != codec.encoded_bytes(piece.size):
            expected = codec.encoded_bytes(piece.size)
            raise MessageError("malformed", f"{len(entry.payload)} bytes where {codec.name} needs {expected}")
        chunk = partial.values[piece.start - whole.start : piece.stop - whole.start]
        codec.decode(entry.payload, chunk)
        if partial.squares is not None:
            # The rules need the norm: here the chunk is in the processor's cache, and the main thread has other work.
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
            # A ValueError too: text that is no UTF-8 raises UnicodeDecodeError.
            raise MessageError("malformed", f"header: {error}") from None
        if header.v != VERSION:
            raise MessageError("version", f"protocol {header.v}, this is {VERSION}")
        if header.f != self._layout.fingerprint:
            raise MessageError("fingerprint", f"worker {entry.sender} trains something else")
        if header.k not in self._kinds.vectors and header.k not in self._kinds.maps:
            raise MessageError("kind", f"unknown kind {header.k[:32]!r}")
        if not 0 <= header.r < MAX_ROUND:
            raise MessageError("malformed", f"round {header.r}")
        if not is_whole(header, entry.header, entry.payload):
            raise MessageError("checksum", f"{header.k} {header.r} chunk {header.i}")
        return header

    def _begin(self, entry: Entry, header: Header) -> None:
        whole, usual = Slice(header.a, header.b), self._kinds.vectors[header.k]
        codec = next((codec for codec in usual if codec.name == header.c), None)
        # The layout has checked the slice before anything of its size is computed or allocated.
        pieces = list(chunks(whole, codec)) if codec and self._layout.allows(header.k, header.r, whole) else []
        if codec is None or not pieces or header.n != len(pieces):
            came = f"{header.c[:32]} [{header.a}, {header.b}) in {header.n}"
            raise MessageError("layout", f"{header.k} {header.r} is {came}, which does not fit here")
        if not all(math.isfinite(value) for value in header.x.values()):
            raise MessageError("malformed", "a header with a number that is none")
        self._pieces, self._codec, self._next = pieces, codec, 0
        self._partial = Received(
            header.k,
            entry.sender,
            entry.incarnation,
            header.r,
            whole,
            self._buffers.take(whole.size),
            extras=header.x,
            # Another codec than the usual one means that the values are weights and no differences.
            is_whole=codec.name != usual[0].name,
            squares=0.0 if header.k in self._kinds.measured else None,
        )
