"""The part of every pattern that deals with peers: threads, hello, goodbye, the end, and the counts.

    session.read(incarnations)   start the reader threads; entries go to the pattern's listener
    session.publish(...)         one thread encodes and publishes, in the order of the calls
    session.finish(...)          goodbye, and wait until the peers have published theirs

| kind    | carries | meaning |
| ------- | ------- | ------- |
| hello   | map     | the sender is here: it begins after this round, asks to join, or replays |
| goodbye | map     | this was the sender's last round |

What always holds: submitted jobs run in order, on one thread; the first failure of any thread ends every wait of
the main thread; every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from peers.bus.door import Bus
from peers.errors import StalledError
from peers.session.listener import Listener, Members
from peers.session.reader import PeerReader
from peers.session.sender import SenderThread
from peers.session.waiting import failed
from peers.vectors.screen import Screen
from peers.wire.encode import encode_fields
from peers.wire.layout import Layout

SESSION_MAPS = frozenset({"hello", "goodbye"})


class Peers(Members, Protocol):
    """Where the threads report about the peers, and where the main thread waits: a gate or a message store."""

    def touch(self) -> None:
        """Something that a wait may be for has changed."""

    def check(self) -> None:
        """Raise the first failure of any thread."""

    def until(self, is_done: Callable[[], Any], describe: Callable[[], str], timeout_s: float | None = None) -> None:
        """Wait for a condition; see `peers.session.waiting.Waiting.until`."""


class Session:
    """One worker's threads, and its beginning and end with its peers.

    Args:
        bus: our door; closed by its owner.
        layout: the layout that every message must fit.
        listener: takes the entries of the peers.
        peers: is told which peers are there, and waits.
        lease_s, stall_timeout_s, finish_timeout_s: how long a lease lasts; how long a wait may take; how long the end
            of the others is awaited.
        log: called with one line for a person.

    Attributes:
        wait_s: seconds that the main thread has waited for the peers.
    """

    def __init__(
        self,
        bus: Bus,
        layout: Layout,
        listener: Listener,
        peers: Peers,
        lease_s: float,
        stall_timeout_s: float,
        finish_timeout_s: float,
        log: Callable[[str], None],
    ):
        self._bus, self._layout, self._listener, self._peers, self._log = bus, layout, listener, peers, log
        self.lease_s, self.stall_timeout_s, self.finish_timeout_s = lease_s, stall_timeout_s, finish_timeout_s
        self._sender = SenderThread(lambda error: peers.fail(failed(error, "publishing")))
        self._readers: list[PeerReader] = []
        self.wait_s = 0.0

    # --- beginning and end --------------------------------------------------------------------

    def hello(self, round: int, is_joining: bool, is_replaying: bool = False) -> None:
        """Tell all peers that we are here, and begin after this round."""
        self.publish("hello", round, {"is_joining": is_joining, "is_replaying": is_replaying})

    def read(self, incarnations: Mapping[int, str]) -> None:
        """Start the reader threads; the bus follows these incarnations of the peers already."""
        for server in range(len(self._bus.servers)):
            reader = PeerReader(
                self._bus, server, self._listener, self._peers, self.lease_s, dict(incarnations), self._log
            )
            self._readers.append(reader)
            reader.start()

    def finish(self, round: int, unfinished: Callable[[], Collection[int]]) -> int:
        """Say goodbye after a round, and wait until the peers have finished as well.

        Args:
            unfinished: returns the peers that have not finished; called with the lock of the wait held.

        Returns:
            How many peers had not finished within the finish timeout.
        """
        self.publish("goodbye", round, {})
        missing = 0
        try:
            self.until(
                lambda: not unfinished(), lambda: f"workers {names(unfinished())} to finish", self.finish_timeout_s
            )
        except StalledError as error:
            missing = len(unfinished())
            self._log(f"{error}; ending without what is left of them")
        self._sender.drain(self.finish_timeout_s, self._log)
        return missing

    def leave(self, round: int) -> None:
        """Say goodbye after a round, in the middle of the run."""
        self.publish("goodbye", round, {})
        self._sender.drain(self.finish_timeout_s, self._log)

    def close(self) -> None:
        """Stop the reader threads and the sender thread; the bus is its owner's to close."""
        for reader in self._readers:
            reader.stop()
        for reader in self._readers:
            reader.close()
        self._sender.close()

    # --- publishing ---------------------------------------------------------------------------

    def submit(self, job: Callable[[], None], timeout_s: float = 60.0) -> None:
        """Queue a job for the sender thread, after all jobs submitted before. Raises StalledError."""
        self._sender.submit(job, timeout_s)

    def publish(self, kind: str, round: int, fields: dict[str, Any]) -> None:
        """Publish a small map for every worker."""
        entries = encode_fields(self._layout, kind, round, fields)
        self._sender.submit(lambda: self._bus.publish(entries))

    def send(self, peer: int, kind: str, round: int, fields: dict[str, Any]) -> None:
        """Send a small map to one peer."""
        entries = encode_fields(self._layout, kind, round, fields)
        self._sender.submit(lambda: self._bus.send(peer, entries))

    def drain(self) -> None:
        """Wait until every submitted job has been done.

        Raises:
            StalledError: some were not done within the stall timeout.
            PeersError: the first failure of another thread.
        """
        if not self._sender.drain(self.stall_timeout_s, self._log):
            raise StalledError(f"this worker's Redis has not taken everything within {self.stall_timeout_s:g} s")
        self._peers.check()

    # --- waiting and counting -----------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context: the main thread's time in it counts as waiting for the peers."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.wait_s += time.monotonic() - began

    def until(self, is_done: Callable[[], Any], describe: Callable[[], str], timeout_s: float | None = None) -> None:
        """Wait, and count it as waiting. Raises as `peers.session.waiting.Waiting.until`."""
        with self.waiting():
            self._peers.until(is_done, describe, timeout_s)

    def stats(self, live_peers: int, screen: Screen, *dropped: Mapping[str, int]) -> dict[str, Any]:
        """Since the start: bytes, seconds, retries, unused messages by reason, offences; now: the number of live peers.

        Args:
            live_peers: how many peers are there.
            screen: decides which contributions are used.
            dropped: the messages that the pattern has not used, by reason.
        """
        return {
            "sent_bytes": self._bus.sent_bytes,
            "received_bytes": self._bus.received_bytes,
            "live_peers": live_peers,
            "dropped": total(*dropped, screen.counts, self._bus.refused()),
            **screen.stats(),
            "retries": self._bus.retries,
            "wait_s": self.wait_s,
        }


def total(*counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason, added up."""
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return dict(found)


def names(workers: Collection[int]) -> str:
    """Workers for a person, in order."""
    return ", ".join(map(str, sorted(workers))) or "nobody"
