"""One thread for each Redis server followed: reads entries, feeds them to the listener, and watches the leases.

Entries are decoded and accumulated on the same thread, while they are in the processor's cache: handing each entry
to another thread would cost more, and the next entries gather in the socket meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from peers.bus.door import Bus
from peers.errors import BusError, PeersError
from peers.session.lease import heartbeat_s
from peers.session.listener import Listener, Members
from peers.session.waiting import failed
from peers.types import Entry, Lease

READ_S = 0.2
LAST_READS = 64
# With more servers than this each thread reads leases less often, or a small machine would do nothing else.
FEW_SERVERS = 8


class PeerReader:
    """Follows the peers on one server, incarnation by incarnation.

    A peer whose lease has expired is dropped from the bound; a server that does not answer for a whole
    lease drops all its peers. A new incarnation is followed from its beginning, after the rest of the
    old one's entries has been read.

    Args:
        bus, server: the bus, and the number of the server to read.
        inbox: takes the entries, in order per sender.
        gate: is told about peers that are gone or back, and about the thread's failure.
        lease_s: how long a lease lasts.
        known: incarnations that are followed already (peer -> incarnation).
        log: called with one line for a person.
    """

    def __init__(
        self,
        bus: Bus,
        server: int,
        inbox: Listener,
        gate: Members,
        lease_s: float,
        known: dict[int, str],
        log: Callable[[str], None],
    ):
        self._bus, self._server = bus, server
        self._inbox, self._gate = inbox, gate
        self._lease_s = lease_s
        self._known = dict(known)
        self._is_absent: set[int] = set()
        # Per stream the newest entry that has been read again.
        self._doubted: dict[tuple[int, bool], tuple[str, int]] = {}
        self._quiet_until = 0.0
        self._ease = max(1.0, len(bus.servers) / FEW_SERVERS)
        self._log = log
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"degan-reader-{server}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; `close` waits for it."""
        self._closing.set()

    def close(self, timeout_s: float = 5.0) -> None:
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        poll_s = min(self._ease, self._lease_s / 4)
        next_poll, last_answer, is_out = 0.0, time.monotonic(), False
        while not self._closing.is_set():
            try:
                if time.monotonic() >= next_poll:
                    leases = self._bus.leases(self._server)
                    if is_out:
                        # The Redis may have lost its leases; the workers' heartbeats write them anew.
                        self._quiet_until = time.monotonic() + heartbeat_s(self._lease_s) + 1.0
                    self._watch(leases)
                    next_poll = time.monotonic() + poll_s
                self._hand_on(self._bus.receive(self._server, READ_S * self._ease))
                last_answer = time.monotonic()
                # Not before both have succeeded: each has a connection of its own, which fails once after an outage.
                if is_out:
                    self._log(f"the Redis of workers {self._names()} answers again")
                    is_out = False
            except BusError as error:
                if self._closing.is_set():
                    return
                if not is_out:
                    self._log(f"{error}; trying again")
                    is_out = True
                next_poll = 0.0
                if time.monotonic() - last_answer > self._lease_s:
                    for peer in self._bus.servers[self._server]:
                        self._drop(peer, f"its Redis has not answered for {self._lease_s:g} s")
                self._closing.wait(0.2)
            except PeersError as error:
                self._gate.fail(error)
                return
            except Exception as error:  # A thread may not die silently; the main thread raises this.
                self._gate.fail(failed(error, f"reading server {self._server}"))
                return

    def _hand_on(self, entries: list[Entry]) -> bool:
        again: set[tuple[int, bool]] = set()
        for entry in entries:
            stream, number = (entry.sender, entry.is_direct), (entry.incarnation, entry.sequence)
            if stream in again:
                continue
            if not self._inbox.feed(entry, self._doubted.get(stream) != number):
                # Without the changed entry a round would be missing for ever: the stream is read again from there.
                self._inbox.count("damaged")
                self._doubted[stream] = number
                self._bus.read_again(entry)
                again.add(stream)
        return bool(entries)

    def _watch(self, leases: Mapping[int, Lease | None]) -> None:
        for peer, lease in leases.items():
            if lease is None:
                if time.monotonic() >= self._quiet_until and peer not in self._is_absent:
                    self._read_on()
                    self._drop(peer, "its lease has expired")
                continue
            if self._known.get(peer) != lease.incarnation:
                if peer in self._known:
                    self._log(f"worker {peer} was started again on {lease.host.split('/', 1)[0]}")
                    self._read_on()
                    self._gate.restarted(peer, lease.incarnation)
                self._known[peer] = lease.incarnation
                self._bus.follow(peer, lease.incarnation)
            elif peer in self._is_absent:
                # The same incarnation is back: only the connection to it was interrupted.
                self._gate.returned(peer)
            self._is_absent.discard(peer)

    def _read_on(self) -> None:
        """Read the entries that are there by now, so that all workers have the same of a peer that is gone."""
        for _ in range(LAST_READS):
            if not self._hand_on(self._bus.receive(self._server, 0.01)):
                break

    def _drop(self, peer: int, reason: str) -> None:
        """Drop a peer, after all of its entries have been read."""
        if peer not in self._is_absent and self._gate.is_member(peer):
            self._is_absent.add(peer)
            self._gate.drop(peer, reason)

    def _names(self) -> str:
        return ", ".join(map(str, self._bus.servers[self._server]))
