"""The versions of a model that a leader keeps under its state key, for workers that fetch one.

    put(version, piece, ...)      the pieces are readable until they are deleted
    keep(version)                 the version of the newest sync point: every worker may still fetch it
    forget()                      a round is closed: the older versions are deleted

What always holds: the newest versions and that of the newest sync point are readable; every other one is deleted
with all its pieces at the next `forget`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from peers.codecs.base import Codec
from peers.codecs.exact import CODECS
from peers.rounds.rounds import Rounds
from peers.session.transfer import State, encoded_bytes

Version = TypeVar("Version")


@dataclass(frozen=True)
class Piece:
    """Vectors that are put, fetched and deleted together.

    Attributes:
        name: the name under which they are put; used once.
        vectors: float32 by name; ours to keep.
        meta: a small map that goes with them.
        codec: writes the vectors.
    """

    name: str
    vectors: State
    meta: dict[str, Any] = field(default_factory=dict)
    codec: Codec = CODECS["raw"]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of values of each vector, by name."""
        return {name: vector.size for name, vector in self.vectors.items()}


@dataclass
class _Kept(Generic[Version]):
    """A readable version: the names of its pieces, with their sizes and codecs, in the order of the puts."""

    version: Version
    pieces: dict[str, tuple[dict[str, int], Codec]] = field(default_factory=dict)


class Versions(Generic[Version]):
    """The versions that one worker has put. Used by the main thread.

    Args:
        rounds: puts and deletes them.
        newest: how many of the newest versions always stay.
    """

    def __init__(self, rounds: Rounds, newest: int):
        self._rounds, self._newest = rounds, newest
        self._kept: list[_Kept[Version]] = []
        self._synchronised: Version | None = None

    def __contains__(self, version: Version) -> bool:
        return any(kept.version == version for kept in self._kept)

    def put(self, version: Version, *pieces: Piece) -> int:
        """Make pieces of a version readable, beside its earlier pieces; returns their bytes."""
        kept = next((kept for kept in self._kept if kept.version == version), None)
        if kept is None:
            kept = _Kept(version)
            self._kept.append(kept)
        total_bytes = 0
        for piece in pieces:
            self._rounds.put(piece.name, piece.vectors, piece.meta, piece.codec)
            kept.pieces[piece.name] = piece.sizes, piece.codec
            total_bytes += sum(encoded_bytes(size, piece.codec) for size in piece.sizes.values())
        return total_bytes

    def keep(self, version: Version) -> None:
        """This version belongs to the newest sync point; the one before it may go."""
        self._synchronised = version

    def forget(self) -> None:
        """Delete the versions that no worker can be fetching any more."""
        for kept in self._kept[: -self._newest]:
            if kept.version != self._synchronised:
                self._kept.remove(kept)
                for name, (sizes, codec) in kept.pieces.items():
                    self._rounds.forget(name, sizes, codec)
