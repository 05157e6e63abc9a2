"""The part of a pattern that a reader thread needs: it takes the entries, and is told about the peers."""

from __future__ import annotations

from typing import Protocol

from peers.types import Entry


class Listener(Protocol):
    """Takes the entries of the peers, in order per sender. `peers.exchange.inbox`, `peers.rounds.messages`."""

    def feed(self, entry: Entry, may_come_again: bool = False) -> bool:
        """Take one entry; False if the entry changed on its way and is to be read once more."""

    def count(self, reason: str) -> None:
        """Count an entry that is not used."""


class Members(Protocol):
    """Knows which peers are there. `peers.exchange.gate`, `peers.rounds.messages`."""

    def is_member(self, peer: int) -> bool:
        """Whether the peer is awaited."""

    def returned(self, peer: int) -> None:
        """The same incarnation of the peer is there again."""

    def restarted(self, peer: int, incarnation: str) -> None:
        """The peer is there in a new incarnation."""

    def drop(self, peer: int, reason: str) -> None:
        """The lease of the peer has expired, or its server does not answer."""

    def fail(self, error: BaseException) -> None:
        """The thread ends with this error."""
