"""The bus: publish local, subscribe remote. The contract of every backend.

A worker writes only to its own node, under its own keys, and only reads the others'. Every entry
carries an explicit sequence number, so publishing again what was already published changes
nothing (idempotent), a gap in the numbers is a visible loss, and the order is the sender's own.

Backends: `peers.bus.memory` (one process, for tests and reading) and `peers.bus.redis.bus` (the real one). One
contract suite runs on both (tests/peers/bus/test_bus.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from peers.types import Buffer, Entry, Lease


class Bus(Protocol):
    """One worker's door to the streams. Methods may be called from several threads.

    Attributes:
        worker, incarnation: our number, and our incarnation.
        may_take_over: whether a person wants us to replace a worker of our number that is still alive.
        servers: for each server followed, the peers that live on it.
        sent_bytes, received_bytes: payload and header bytes so far, those of states too.
        sequence: number of the newest entry of my outbox.
        retries: how many commands were tried again because our node's Redis was away or full.
        publish_busy_s: seconds spent in appending so far, from the first byte sent to the last answer.
        read_busy_s: seconds so far in which a reply of at least one server was coming in, from its first byte to
            its last; waiting for a first byte does not count. 0 where no byte has to travel.
    """

    worker: int
    incarnation: str
    may_take_over: bool
    servers: Sequence[tuple[int, ...]]
    sent_bytes: int
    received_bytes: int
    sequence: int
    retries: int
    publish_busy_s: float
    read_busy_s: float

    def configure(self, max_entries: int, entry_bytes: int, least_entries: int | None = None) -> None:
        """Set how many entries an outbox keeps, and the largest payload, by which reads are sized.

        Args:
            least_entries: how many are enough where Redis has no room for more; None for `max_entries`.
        """

    def publish(self, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        """Append to my outbox, which every peer reads.

        Entries may be made while earlier ones travel; a payload may not change before this returns.

        Raises:
            BusError: my node's Redis did not take the entries in time.
            LeaseExpiredError: my node's Redis has lost earlier entries of mine.
        """

    def send(self, peer: int, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        """Append to my stream for one peer. Raises as `publish`."""

    def follow(self, peer: int, incarnation: str, after: int = 0) -> None:
        """Read this incarnation of the peer from the entry after number `after`; replaces an earlier `follow`."""

    def holds(self, peer: int, incarnation: str, after: int) -> bool:
        """Whether every entry of the peer after number `after` can still be read."""

    def newest(self, peer: int, incarnation: str) -> int:
        """The number of the newest entry in a peer's outbox; 0 if there is none. Raises as `receive`."""

    def receive(self, server: int, timeout_s: float) -> list[Entry]:
        """New entries of the followed peers on one server since the last call; waits until there is one.

        The payloads are views: their memory is used again when no reference to the entries is left.

        Raises:
            BusError: the server does not answer; the next call tries again.
        """

    def read_again(self, entry: Entry) -> None:
        """Receive an entry, and the later ones of its stream, once more; called by the thread that calls `receive`."""

    def claim(self, lease: Lease, ttl_s: float, may_replace: Callable[[Lease], bool]) -> Lease | None:
        """Take the worker's number; returns the lease of a dead predecessor that this one replaced.

        Raises:
            DuplicateError: another incarnation holds the number and `may_replace` says that it is alive.
        """

    def renew(self, lease: Lease, ttl_s: float, may_restore: bool = True) -> str:
        """Write my lease again.

        Returns:
            `held`; `restored` if the lease was gone and has been written anew; `expired` if it was gone and
            `may_restore` is false; `taken` if the number belongs to another incarnation by now.

        Raises:
            BusError: my node's Redis does not answer.
            LeaseExpiredError: my node's Redis has lost published entries of mine.
        """

    def release(self) -> None:
        """Give the lease back; the published entries stay for a while, for peers that still read."""

    def leases(self, server: int) -> Mapping[int, Lease | None]:
        """The leases of the peers on a server as they stand; None where there is none. Raises as `receive`."""

    def put_state(self, fields: Mapping[str, Buffer], ttl_s: float) -> None:
        """Write fields of my state hash; all of the hash expires after `ttl_s`."""

    def delete_state(self, names: Sequence[str]) -> None:
        """Delete fields of my state hash. Raises as `publish`."""

    def get_state(self, peer: int, incarnation: str, names: Sequence[str]) -> dict[str, bytes]:
        """Fields of a peer's state hash; missing fields are left out.

        Raises:
            BusError: as `receive`.
            MessageError: a field does not bear the run's MAC.
        """

    def refused(self) -> dict[str, int]:
        """How many entries and fields were refused because of their MAC, by reason, since the start.

        The reasons: `mac` for a wrong MAC, or `replayed` for an entry that belongs in another place. Empty without a
        run key.
        """

    def strangers(self) -> dict[int, str]:
        """Workers whose lease did not bear the run's MAC at the last look, and why; they count as absent."""

    def close(self) -> None:
        """Close every connection."""
