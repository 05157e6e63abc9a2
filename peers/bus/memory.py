"""The bus in one process: the same contract as Redis, with encoded bytes and no server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from peers.errors import BusError, DuplicateError
from peers.types import Buffer, Entry, Lease

TO_ALL = -1


class _Stream:
    def __init__(self) -> None:
        self.entries: deque[tuple[int, bytes, bytes]] = deque()
        self.last = 0


class MemoryHub:
    """The contents of a Redis, for any number of workers in one process.

    Args:
        clock: seconds, monotonic; leases expire by it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.changed = threading.Condition()
        self.streams: dict[tuple[int, str, int], _Stream] = {}
        self.leases: dict[int, tuple[Lease, float]] = {}
        self.states: dict[tuple[int, str], dict[str, bytes]] = {}

    def bus(self, worker: int, peers: tuple[int, ...], incarnation: str = "1") -> MemoryBus:
        return MemoryBus(self, worker, peers, incarnation)


class MemoryBus:
    """One worker's door to a `MemoryHub`; see `peers.bus.door.Bus`."""

    def __init__(self, hub: MemoryHub, worker: int, peers: tuple[int, ...], incarnation: str):
        self.worker, self.incarnation, self.may_take_over = worker, incarnation, False
        self.servers = (tuple(peers),) if peers else ()
        self.sent_bytes = self.received_bytes = self.retries = 0
        self.publish_busy_s = self.read_busy_s = 0.0
        self._hub = hub
        self._peers = tuple(peers)
        self._max_entries = 1 << 20
        self._cursors: dict[int, tuple[str, dict[int, int]]] = {}
        self._is_closed = False

    @property
    def sequence(self) -> int:
        stream = self._hub.streams.get((self.worker, self.incarnation, TO_ALL))
        return stream.last if stream else 0

    def configure(self, max_entries: int, entry_bytes: int, least_entries: int | None = None) -> None:
        self._max_entries = max_entries

    def publish(self, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        self._append(TO_ALL, entries)

    def send(self, peer: int, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        self._append(peer, entries)

    def _append(self, channel: int, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        entries = list(entries)
        with self._hub.changed:
            if self._is_closed:
                raise BusError("the bus is closed")
            stream = self._hub.streams.setdefault((self.worker, self.incarnation, channel), _Stream())
            for header, payload in entries:
                stream.last += 1
                stream.entries.append((stream.last, bytes(header), bytes(payload)))
                self.sent_bytes += len(header) + len(payload)
                if len(stream.entries) > self._max_entries:
                    stream.entries.popleft()
            self._hub.changed.notify_all()

    def follow(self, peer: int, incarnation: str, after: int = 0) -> None:
        with self._hub.changed:
            self._cursors[peer] = (incarnation, {TO_ALL: after, self.worker: 0})
            self._hub.changed.notify_all()

    def holds(self, peer: int, incarnation: str, after: int) -> bool:
        with self._hub.changed:
            stream = self._hub.streams.get((peer, incarnation, TO_ALL))
            if stream is None:
                return False
            return stream.last == after or bool(stream.entries) and stream.entries[0][0] <= after + 1 <= stream.last

    def newest(self, peer: int, incarnation: str) -> int:
        with self._hub.changed:
            stream = self._hub.streams.get((peer, incarnation, TO_ALL))
            return stream.last if stream else 0

    def receive(self, server: int, timeout_s: float) -> list[Entry]:
        with self._hub.changed:
            found: list[Entry] = []

            def look() -> bool:
                for peer in self.servers[server]:
                    found.extend(self._read(peer))
                return bool(found) or self._is_closed

            self._hub.changed.wait_for(look, timeout_s)
            if self._is_closed:
                raise BusError("the bus is closed")
            return found

    def _read(self, peer: int) -> list[Entry]:
        if peer not in self._cursors:
            return []
        incarnation, cursors = self._cursors[peer]
        read = []
        for channel in (TO_ALL, self.worker):
            stream = self._hub.streams.get((peer, incarnation, channel))
            for sequence, header, payload in stream.entries if stream else ():
                if sequence > cursors[channel]:
                    contiguous = sequence == cursors[channel] + 1
                    direct = channel != TO_ALL
                    read.append(Entry(peer, incarnation, sequence, contiguous, header, payload, direct))
                    cursors[channel] = sequence
                    self.received_bytes += len(header) + len(payload)
        return read

    def read_again(self, entry: Entry) -> None:
        with self._hub.changed:
            incarnation, cursors = self._cursors.get(entry.sender, ("", {}))
            if incarnation == entry.incarnation:
                cursors[self.worker if entry.is_direct else TO_ALL] = entry.sequence - 1

    def claim(self, lease: Lease, ttl_s: float, may_replace: Callable[[Lease], bool]) -> Lease | None:
        with self._hub.changed:
            old = self._lease(self.worker)
            if old is not None and old.incarnation != self.incarnation and not may_replace(old):
                raise DuplicateError(self.worker, old.host, old.pid)
            self._hub.leases[self.worker] = (lease, self._hub.clock() + ttl_s)
            return old

    def renew(self, lease: Lease, ttl_s: float, may_restore: bool = True) -> str:
        with self._hub.changed:
            old = self._lease(self.worker)
            if old is not None and old.incarnation != self.incarnation:
                return "taken"
            if old is None and not may_restore:
                return "expired"
            self._hub.leases[self.worker] = (lease, self._hub.clock() + ttl_s)
            return "restored" if old is None else "held"

    def release(self) -> None:
        with self._hub.changed:
            old = self._lease(self.worker)
            if old is not None and old.incarnation == self.incarnation:
                del self._hub.leases[self.worker]

    def _lease(self, worker: int) -> Lease | None:
        lease, expires = self._hub.leases.get(worker, (None, 0.0))
        return lease if self._hub.clock() < expires else None

    def leases(self, server: int) -> Mapping[int, Lease | None]:
        with self._hub.changed:
            return {peer: self._lease(peer) for peer in self.servers[server]}

    def put_state(self, fields: Mapping[str, Buffer], ttl_s: float) -> None:
        with self._hub.changed:
            state = self._hub.states.setdefault((self.worker, self.incarnation), {})
            state.update({name: bytes(value) for name, value in fields.items()})
            self.sent_bytes += sum(map(len, fields.values()))

    def delete_state(self, names: Sequence[str]) -> None:
        with self._hub.changed:
            for name in names:
                self._hub.states.get((self.worker, self.incarnation), {}).pop(name, None)

    def get_state(self, peer: int, incarnation: str, names: Sequence[str]) -> dict[str, bytes]:
        with self._hub.changed:
            state = self._hub.states.get((peer, incarnation), {})
            found = {name: state[name] for name in names if name in state}
            self.received_bytes += sum(map(len, found.values()))
            return found

    def refused(self) -> dict[str, int]:
        return {}

    def strangers(self) -> dict[int, str]:
        return {}

    def close(self) -> None:
        with self._hub.changed:
            self._is_closed = True
            self._hub.changed.notify_all()
