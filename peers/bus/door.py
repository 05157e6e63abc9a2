"""The bus: publish local, subscribe remote. What every backend promises.

A worker writes only to its own node, under its own keys, and only reads the others'. Every entry
carries an explicit sequence number, so publishing again what was already published changes
nothing (idempotent), a gap in the numbers is a visible loss, and the order is the sender's own.

Backends: `memory_bus` (one process, for tests and reading) and `redis_bus` (the real thing). One
contract suite runs on both (tests/peers/bus/test_bus.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from peers.types import Buffer, Entry, Lease


class Bus(Protocol):
    """One worker's door to the streams. Methods may be called from several threads.

    Attributes:
        worker, incarnation: who we are, and in which life.
        may_take_over: whether a person wants us to replace a worker of our number that is still alive.
        servers: for each server followed, the peers that live on it.
        sent_bytes, received_bytes: payload and header bytes so far, those of states too.
        sequence: number of the newest entry of my outbox.
        retries: how often something had to be tried again because our node's Redis was away or full.
        publish_busy_s: seconds spent in appending so far, from the first byte sent to the last answer.
        read_busy_s: seconds so far in which a reply of at least one server was coming in, from its first byte to
            its last; waiting for something to be said does not count. 0 where nothing has to travel.
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
            least_entries: how many are enough where there is no room for more; without it all are.
        """

    def publish(self, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        """Append to my outbox, which everyone reads.

        Entries may be made while earlier ones travel; a payload may not change before this returns.

        Raises:
            BusError: my node's Redis did not take it in time.
            LapsedError: it has lost what was published before.
        """

    def send(self, peer: int, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        """Append to my stream for one peer. Raises as `publish`."""

    def follow(self, peer: int, incarnation: str, after: int = 0) -> None:
        """Read this life of the peer from the entry after number `after`; replaces what was followed."""

    def holds(self, peer: int, incarnation: str, after: int) -> bool:
        """Whether everything that the peer said after number `after` can still be read."""

    def newest(self, peer: int, incarnation: str) -> int:
        """The number of the newest entry in a peer's outbox; 0 if there is none. Raises as `receive`."""

    def receive(self, server: int, timeout_s: float) -> list[Entry]:
        """What the followed peers on one server have said since the last call; waits for something.

        The payloads are views: memory is taken again when the entries are let go of.

        Raises:
            BusError: the server does not answer; the next call tries again.
        """

    def read_again(self, entry: Entry) -> None:
        """Receive an entry, and what came after it in its stream, once more; by whom `receive` is called."""

    def claim(self, lease: Lease, ttl_s: float, may_replace: Callable[[Lease], bool]) -> Lease | None:
        """Become the worker of that number; returns the lease of a dead predecessor that it replaced.

        Raises:
            DuplicateError: someone else holds it and `may_replace` says that it is alive.
        """

    def renew(self, lease: Lease, ttl_s: float, may_restore: bool = True) -> str:
        """Write my lease again.

        Returns:
            `held`; `restored` if it was gone and has been written anew; `lapsed` if it was gone and
            `may_restore` is false; `taken` if it is someone else's by now.

        Raises:
            BusError: my node's Redis does not answer.
            LapsedError: it has lost what was published.
        """

    def release(self) -> None:
        """Give the lease back; what was published stays for those who still read, for a while."""

    def leases(self, server: int) -> Mapping[int, Lease | None]:
        """The leases of the peers on a server as they stand; None where there is none. Raises as `receive`."""

    def put_state(self, fields: Mapping[str, Buffer], ttl_s: float) -> None:
        """Write fields of my state hash, and let it live that long."""

    def delete_state(self, names: Sequence[str]) -> None:
        """Take fields of my state hash away. Raises as `publish`."""

    def get_state(self, peer: int, incarnation: str, names: Sequence[str]) -> dict[str, bytes]:
        """Fields of a peer's state hash; those that are not there are left out.

        Raises:
            BusError: as `receive`.
            MessageError: a field does not bear the run's seal.
        """

    def refused(self) -> dict[str, int]:
        """What was not handed on because it does not bear the run's seal, by reason, since the start.

        The reasons: `seal`, or `replayed` where it was said before, in another place. Empty without seals.
        """

    def strangers(self) -> dict[int, str]:
        """Workers whose lease, when we last looked, did not bear the run's seal, and why; they count as absent."""

    def close(self) -> None:
        """Close every connection."""
