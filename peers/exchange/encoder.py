"""The sender thread's half of an exchange rule: encodes leaving vectors, and keeps them as the other workers read them.

A rule copies out on the main thread (`offer`). Its encoder writes the copy with the codec, in the order of the rounds.
Where all workers apply the same messages, our own among them, the encoder keeps each round as a reader decodes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from peers.codecs.exact import CODECS
from peers.codecs.feedback import ErrorFeedback
from peers.exchange.layout import ExchangeLayout
from peers.exchange.rule import Leaving, Outgoing, Owner
from peers.types import Buffer, Received, Slice
from peers.vectors.reduce import norm, squares
from peers.wire.encode import Write, encode_vector, read_back, squares_of


class GradientEncoder:
    """Encodes parts of gradients. `encode` runs on the sender thread; the main thread reads its attributes.

    Args:
        worker: our number.
        layout: the agreement of all workers.
        size: number of values in the vector.
        is_published: our own gradient enters as the others read it.
        measures_own: whether the norms of our leaving parts are needed.

    Attributes:
        outgoing: our own rounds as the others read them, if `is_published`.
        lossy: the codec with its error feedback.
        norms: round, part and norm of our parts, oldest first, if `measures_own`.
        measured: the newest round whose norm is known.
    """

    def __init__(self, worker: int, layout: ExchangeLayout, size: int, is_published: bool, measures_own: bool):
        self._worker, self._layout = worker, layout
        self._is_published, self._measures_own = is_published, measures_own
        self.outgoing = Outgoing()
        self.lossy = ErrorFeedback(layout.codec, size)
        self.norms: deque[tuple[int, Slice, float]] = deque()
        self.measured = 0

    def begin(self, round: int) -> None:
        """A line of training begins, or goes on, after this round."""
        self.measured = self.outgoing.newest = round
        self.norms.clear()

    def encode(self, leaving: Leaving, extras: dict[str, float]) -> Iterable[tuple[bytes, Buffer]]:
        """A leaving vector as entries; see `peers.exchange.rule.Encoder`."""
        write = None if self._layout.codec.is_exact else self.lossy.encode
        extras = leaving.extras | extras
        if self._measures_own:
            return self._encode_measured(leaving, write, extras)
        entries: Iterable[tuple[bytes, Buffer]] = encode_vector(
            self._layout, "part", leaving.round, leaving.part, leaving.values, write=write, extras=extras
        )
        if self._is_published:
            codec, read = self._layout.codec, leaving.values
            if codec.is_exact:
                read = read if leaving.owner is Owner.RULE else read.copy()
                total = squares_of(read, codec)
            else:
                entries = made = list(entries)
                read, total = read_back(made, codec, leaving.part.size)
            own = Received("part", self._worker, "", leaving.round, leaving.part, read, extras=extras, squares=total)
            self.outgoing.add(own)
        return entries

    def _encode_measured(
        self, leaving: Leaving, write: Write | None, extras: dict[str, float]
    ) -> Iterator[tuple[bytes, Buffer]]:
        """The entries; after the last of them the norm is known as well."""
        total = 0.0

        def look(chunk: np.ndarray) -> None:
            nonlocal total
            total = squares(chunk, total)

        values = leaving.values
        yield from encode_vector(
            self._layout, "part", leaving.round, leaving.part, values, write=write, extras=extras, look=look
        )
        self.norms.append((leaving.round, leaving.part, norm(values, total)))
        self.measured = leaving.round


class ParameterEncoder:
    """Encodes parts of weights, or their differences to the reference. `encode` runs on the sender thread.

    Args:
        worker: our number.
        layout: the agreement of all workers.
        backlog: how many rounds of our own are remembered; None for all that have not been applied.

    Attributes:
        outgoing: our own rounds as the others read them.
    """

    def __init__(self, worker: int, layout: ExchangeLayout, backlog: int | None):
        self._worker, self._layout = worker, layout
        self.outgoing = Outgoing(backlog)

    def encode(self, leaving: Leaving, extras: dict[str, float]) -> Iterable[tuple[bytes, Buffer]]:
        """A leaving vector as entries; see `peers.exchange.rule.Encoder`."""
        codec = CODECS["raw"] if leaving.is_whole else self._layout.codec
        entries: Iterable[tuple[bytes, Buffer]] = encode_vector(
            self._layout,
            "part",
            leaving.round,
            leaving.part,
            leaving.values,
            codec=codec,
            extras=leaving.extras | extras,
        )
        read, total = leaving.values, None
        if codec.is_exact and leaving.owner is not Owner.RULE:
            # The array goes back to the buffer pool after it has been published.
            read = leaving.values.copy()
        elif not codec.is_exact:
            entries = made = list(entries)
            read, total = read_back(made, codec, leaving.part.size)
        own = Received("part", self._worker, "", leaving.round, leaving.part, read, extras=leaving.extras)
        own.is_whole, own.squares = leaving.is_whole, total
        self.outgoing.add(own)
        return entries
