"""Kinds of messages. The wire has no list of kinds: each pattern, and each mode, hands in its own.

| handed in by       | kinds that carry a vector        | kinds that carry a small map |
| ------------------ | -------------------------------- | ---------------------------- |
| `session.session`  |                                  | hello, goodbye               |
| `exchange.layout`  | part, state                      | want, admit, stop            |
| `rounds.layout`    |                                  | round_start, round_end       |
| a mode of rounds   | result, batch, feedback, swap    | stop, want                   |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peers.codecs.base import Codec


@dataclass(frozen=True)
class Kinds:
    """The kinds of messages of one run; every other kind is refused.

    Attributes:
        vectors: the kinds that carry a vector, and the codecs that each may use, the usual one first.
        maps: the kinds that carry a small map.
        measured: the kinds of vectors whose squares are summed while their chunks are in the processor's cache.
    """

    vectors: Mapping[str, tuple[Codec, ...]]
    maps: frozenset[str]
    measured: frozenset[str] = frozenset()
