"""Publishes the rounds of an exchange on the sender thread, and returns the arrays to their owners."""

from __future__ import annotations

from peers.bus.door import Bus
from peers.exchange.gate import ClockGate
from peers.exchange.joining import Giver
from peers.exchange.options import Options
from peers.exchange.rule import Encoder, Leaving, Owner
from peers.session.session import Session
from peers.vectors.buffers import BufferPool


class Publisher:
    """Takes leaving vectors from the main thread, and publishes them in order.

    Args:
        bus, session, gate, giver: of the exchange.
        encoder: of the exchange rule.
        buffers: the buffer pool; takes arrays that are not needed any more.
        options: how many rounds are kept, and how long a wait may take.
    """

    def __init__(
        self,
        bus: Bus,
        session: Session,
        gate: ClockGate,
        giver: Giver,
        encoder: Encoder,
        buffers: BufferPool,
        options: Options,
    ):
        self._bus, self._session, self._gate, self._giver = bus, session, gate, giver
        self._encoder, self._buffers, self._options = encoder, buffers, options
        self._lent = 0

    @property
    def has_lent(self) -> bool:
        """Whether values of the caller are still being published; a wait on the gate asks this."""
        return bool(self._lent)

    def submit(self, leaving: Leaving, extras: dict[str, float]) -> None:
        """Queue a round for publishing.

        Args:
            extras: small numbers of the exchange's own for the header.

        Raises:
            StalledError: the queue has been full for the stall timeout.
        """
        self._lent = leaving.round if leaving.owner is Owner.CALLER else 0
        self._session.submit(lambda: self._publish(leaving, extras), self._options.stall_timeout_s)

    def _publish(self, leaving: Leaving, extras: dict[str, float]) -> None:
        entries = self._encoder.encode(leaving, extras)
        self._gate.touch()
        self._giver.note(leaving.round, self._options.keep_rounds)
        self._bus.publish(entries)
        if leaving.owner is Owner.CALLER:
            self._lent = 0
        elif leaving.owner is Owner.POOL:
            self._buffers.give(leaving.values)
        self._gate.touch()
