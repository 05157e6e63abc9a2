"""A peer's entries to received messages, for every pattern, and the offences of senders whose entries do not fit.

An entry that changed on its way is asked for again, once. An entry that does not fit is counted by reason. It is an
offence of its sender, but for two cases: the entry is damaged, or it belongs to a message whose beginning was damaged
or lost on the way to us (torn: the stream was trimmed, or we follow it late).

What always holds: `accept` is called once for each message that came whole and fits, in the order of its sender, and
nothing that a peer can send raises.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable
from dataclasses import dataclass

from peers.errors import MessageError
from peers.types import Entry, Received
from peers.vectors.buffers import BufferPool
from peers.wire.assembler import Assembler
from peers.wire.layout import Layout


@dataclass
class _Stream:
    """One stream of one incarnation of a sender.

    Attributes:
        is_torn: whether the beginning of its next message may be missing.
        is_damaged: whether an entry of its next message changed on its way.
    """

    assembler: Assembler
    is_torn: bool = True
    is_damaged: bool = False


class Decoder(abc.ABC):
    """Decodes the entries of all peers; a pattern takes the messages. `feed` may run on several threads, in order per
    sender.

    Args:
        layout: the layout that every message must fit.
        refused: called with sender and incarnation for an entry that its sender should not have sent.
        buffers: the buffer pool for the arrays of messages.
    """

    def __init__(self, layout: Layout, refused: Callable[[int, str], None], buffers: BufferPool | None = None):
        self.refused = refused
        self._layout, self._buffers = layout, buffers or BufferPool()
        self._decoding = threading.Lock()
        self._incarnations: dict[int, str] = {}
        self._streams: dict[tuple[int, bool], _Stream] = {}

    @abc.abstractmethod
    def accept(self, received: Received) -> None:
        """Take a whole message; a KeyError, TypeError, ValueError or OverflowError means that its content is wrong."""

    @abc.abstractmethod
    def count(self, reason: str, how_many: int = 1) -> None:
        """Count entries that are not used, by reason."""

    def note_read(self, entry: Entry) -> None:  # noqa: B027 (a pattern that needs it overrides it)
        """An entry has been read, whether it was used or not."""

    def begin_incarnation(self, sender: int, incarnation: str) -> None:
        """From now on the sender's entries are of this incarnation; its unfinished messages are dropped."""
        with self._decoding:
            self._incarnations[sender] = incarnation
            for is_direct in (False, True):
                self._streams[sender, is_direct] = _Stream(Assembler(self._layout, self._buffers))

    def incarnations(self) -> dict[int, str]:
        """The newest incarnation of each sender that we know of."""
        with self._decoding:
            return dict(self._incarnations)

    def feed(self, entry: Entry, may_come_again: bool = False) -> bool:
        """Take one entry; never raises for what a peer can send.

        Args:
            may_come_again: whether the entry can be read once more.

        Returns:
            False if the entry changed on its way and should come again; nothing of it has been used or counted then.
        """
        if self._incarnations.get(entry.sender) != entry.incarnation:
            self.begin_incarnation(entry.sender, entry.incarnation)
        stream = self._streams[entry.sender, entry.is_direct]
        if not entry.is_contiguous:
            stream.assembler, stream.is_torn = Assembler(self._layout, self._buffers), True
        try:
            received = stream.assembler.feed(entry)
        except MessageError as error:
            if error.is_damage and may_come_again:
                return False
            received = None
            self._note_error(stream, entry, error)
        if received is not None:
            stream.is_torn = stream.is_damaged = False
            try:
                self.accept(received)
            except (KeyError, TypeError, ValueError, OverflowError):
                self.count("malformed")
                self.refused(entry.sender, entry.incarnation)
        self.note_read(entry)
        return True

    def _note_error(self, stream: _Stream, entry: Entry, error: MessageError) -> None:
        self.count(error.reason)
        stream.is_damaged = stream.is_damaged or error.is_damage
        is_our_loss = error.reason == "incomplete" and (stream.is_torn or stream.is_damaged)
        if not error.is_damage and not is_our_loss:
            self.refused(entry.sender, entry.incarnation)
