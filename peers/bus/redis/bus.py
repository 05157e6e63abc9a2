"""The bus on Redis Streams: which command goes to which server, and the retries when a server is away.

Plain XREAD with private cursors: no consumer groups (every peer needs every message), no pub/sub (it
forgets), no Lua. `_insist` is the only place that retries. XADD and XREAD, which carry the vectors, go
over connections of `peers.bus.redis.resp`, which copies nothing; every small command goes through redis-py. With a run
key every entry has a third field `s`, its MAC; the values of the lease and the state begin with one
(`peers.bus.redis.mac`).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import redis

from peers.bus.redis.authenticate import Authenticator
from peers.bus.redis.client import REPLY_BYTES, Batch, Reader, address, connect, number_of, open_link, split_socket
from peers.bus.redis.keys import Keys
from peers.bus.redis.resp import Busy, Connection, ReplyError, bulks
from peers.bus.redis.tls import Access
from peers.errors import BusError, DisagreementError, DuplicateError, LeaseExpiredError
from peers.types import Buffer, Entry, Lease

# How many bytes are gathered for one system call while more entries are being made.
SEND_BYTES = 1024 * 1024
KEEP_S = 3600
# How long the entries of the last incarnation stay for peers that still read them; each new one would add as many.
LAST_INCARNATION_S = 60

# How the errors of a Redis without room begin: no memory, or no disk to save on.
FULL = ("OOM", "MISCONF")

Answer = TypeVar("Answer")

_TRANSIENT = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError)


class RedisBus:
    """One worker's door to everyone's Redis; see `peers.bus.door.Bus`.

    Args:
        run: name of the run, part of every key.
        worker: our number.
        urls: each worker's Redis, in worker order; several workers may share one.
        incarnation: this incarnation of the worker; unique.
        peers: the workers that this one follows.
        connect_timeout_s: how long an absent Redis is tried at the start.
        patience_s: how long our own node may be away in the middle of a run before that is an error.
        full_patience_s, may_take_over: how long our node may be full; see `peers.bus.door.Bus`.
        log: called with one line for a person, for instance while retrying.
        access: our credentials for every Redis, and the authority that we trust.
        run_key: 32 bytes that all workers of the run have and nobody else. Every entry, lease and state gets a MAC
            with it, and one without its MAC is refused. None for no MACs.
    """

    def __init__(
        self,
        run: str,
        worker: int,
        urls: Sequence[str],
        incarnation: str,
        peers: Sequence[int],
        connect_timeout_s: float = 30.0,
        patience_s: float = 30.0,
        log: Callable[[str], None] = lambda line: None,
        full_patience_s: float = 600.0,
        may_take_over: bool = False,
        access: Access | None = None,
        run_key: bytes | None = None,
    ):
        self.worker, self.incarnation, self.may_take_over = worker, incarnation, may_take_over
        self.sent_bytes = self._state_bytes = self.retries = 0
        self._keys = Keys(run)
        self._patience_s, self._full_patience_s = patience_s, full_patience_s
        self._log = log
        self._authenticator = Authenticator(run_key, self._keys, log)
        own_far, own_near = split_socket(urls[worker])
        by_url: dict[str, list[int]] = {}
        for peer in peers:
            far, _ = split_socket(urls[peer])
            # A peer that shares our node's Redis is as near as we are.
            by_url.setdefault(own_near if far == own_far else far, []).append(peer)
        self.servers = tuple(tuple(group) for group in by_url.values())
        deadline = time.monotonic() + connect_timeout_s
        self._own = connect(own_near, connect_timeout_s, log, access)
        # Reading blocks, so each followed server has a client of its own, even our own node's.
        self._read_busy, self._publish_busy = Busy(), Busy()
        self._readers = [
            Reader(
                connect(url, max(0.0, deadline - time.monotonic()), log, access),
                address(url),
                self._read_busy,
                self._authenticator,
            )
            for url in by_url
        ]
        self._reader_of = {peer: self._readers[k] for k, group in enumerate(self.servers) for peer in group}
        # For the vectors; opened at the first append.
        self._appender: Connection | None = None
        self._max_entries = self._least_entries = 1024
        self._entry_bytes = REPLY_BYTES
        # By stream: the number of the newest entry, and of the newest that Redis has acknowledged.
        self._sequences: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        self._lock = threading.Lock()
        # Numbers must reach Redis in order, whichever thread publishes.
        self._appending = threading.Lock()
        self._closing = threading.Event()

    @property
    def sequence(self) -> int:
        return self._sequences.get(self._keys.out(self.worker, self.incarnation), 0)

    @property
    def received_bytes(self) -> int:
        return self._state_bytes + sum(reader.received_bytes for reader in self._readers)

    @property
    def publish_busy_s(self) -> float:
        return self._publish_busy.total_s

    @property
    def read_busy_s(self) -> float:
        return self._read_busy.total_s

    def configure(self, max_entries: int, entry_bytes: int, least_entries: int | None = None) -> None:
        self._max_entries, self._entry_bytes = max_entries, max(1, entry_bytes)
        self._least_entries = min(max_entries, least_entries or max_entries)

    def refused(self) -> dict[str, int]:
        return self._authenticator.refusals.counts()

    def strangers(self) -> dict[int, str]:
        return dict(self._authenticator.strangers)

    # --- publishing ---------------------------------------------------------------------------

    def publish(self, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        self._append(self._keys.out(self.worker, self.incarnation), entries)

    def send(self, peer: int, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        self._append(self._keys.direct(self.worker, self.incarnation, peer), entries)

    def _append(self, key: str, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        """XADD with explicit ids, pipelined; Redis refuses an id that the stream already has."""
        with self._appending:
            try:
                self._append_in_order(key, entries)
            except BaseException:
                # Answers may still be on their way.
                self._hang_up()
                raise

    def _append_in_order(self, key: str, entries: Iterable[tuple[bytes, Buffer]]) -> None:
        name, number, batch = key.encode(), self._sequences.get(key), Batch()
        is_new, number, macs, with_mac = number is None, number or 0, self._authenticator.macs(key), b""
        first = b"*%d\r\n" % (11 if macs else 9) + bulks(b"XADD", name, b"MAXLEN", b"%d" % self._max_entries)
        for header, payload in entries:
            number += 1
            self._sequences[key] = number
            item_id = bulks(b"%d-0" % number)
            if macs is not None:
                with_mac = bulks(b"s", macs.of_entry(number, header, payload))
            head = b"%b%b$1\r\nh\r\n$%d\r\n%b\r\n%b$1\r\nd\r\n$%d\r\n"
            batch.add(head % (first, item_id, len(header), header, with_mac, len(payload)), item_id, payload, b"\r\n")
            with self._lock:
                self.sent_bytes += len(header) + len(payload)
            if batch.waiting_bytes >= SEND_BYTES:
                self._insist(lambda: self._deliver(key, batch, is_last=False), "publish")
        if is_new:
            batch.add(b"*3\r\n" + bulks(b"EXPIRE", name, b"%d" % KEEP_S), b":1\r\n")
        self._insist(lambda: self._deliver(key, batch, is_last=True), "publish")
        self._kept[key] = number

    def _deliver(self, key: str, batch: Batch, is_last: bool) -> None:
        """Send the entries that are not sent yet; after the last, await the answers. Raises LeaseExpiredError."""
        answers: list[Any] = []
        with self._publish_busy:
            try:
                if self._appender is None:
                    batch.sent = 0
                    self._check_kept(key)
                    self._appender = open_link(self._own, 64 * 1024)
                self._appender.send(batch.pieces[batch.sent :])
                batch.sent = len(batch.pieces)
                batch.waiting_bytes = 0
                # The answers are read one by one only where they differ from the expected text.
                if is_last and not self._appender.expect(b"".join(batch.answers)):
                    answers = [self._appender.read() for _ in batch.answers]
            except OSError as error:
                self._hang_up()
                raise redis.ConnectionError(f"{type(error).__name__}: {error}") from None
        refused = None
        for answer in answers:
            if isinstance(answer, ReplyError) and "equal or smaller" not in str(answer):
                refused = refused or str(answer)
            elif refused and not isinstance(answer, ReplyError | int):
                # Redis has not taken an entry before this one, and now it never will.
                raise LeaseExpiredError(
                    f"the Redis of worker {self.worker} took an entry after it had refused one ({refused})"
                )
        if refused:
            batch.sent = 0
            raise redis.ResponseError(refused)

    def _hang_up(self) -> None:
        if self._appender is not None:
            self._appender.close()
            self._appender = None

    def _check_kept(self, key: str) -> None:
        """After an outage: does Redis still have our published entries? A peer without them would wait for ever.

        Raises:
            LeaseExpiredError: Redis has lost them, so this worker must join again with a peer's state.
        """
        kept = self._kept.get(key, 0)
        newest = self._own.xrevrange(key, count=1) if kept else []
        if kept and (not newest or number_of(newest[0][0]) < kept):
            raise LeaseExpiredError(f"the Redis of worker {self.worker} has lost what this worker had published")

    def _make_room(self) -> None:
        """Our Redis is full: keep only the entries that peers may still have to read, and none for replay."""
        if self._max_entries == self._least_entries:
            return
        least = self._least_entries
        trimmed = sum(self._own.xtrim(name, least, approximate=False) for name in self._sequences.copy())
        self._max_entries = least
        self._log(f"own Redis is full: gave up {trimmed} older entries that were kept for who is started again")

    def _insist(self, action: Callable[[], Answer], what: str) -> Answer:
        """Try again with jittered back-off while our own node is away or full, until the patience ends."""
        began, delay_s = time.monotonic(), 0.05
        while True:
            try:
                return action()
            except redis.RedisError as error:
                # A full Redis takes entries again after `_make_room`.
                is_full = str(error).startswith(FULL)
                is_transient = is_full or isinstance(error, _TRANSIENT) or str(error).startswith("LOADING")
                patience_s = self._full_patience_s if is_full else self._patience_s
                if not is_transient or time.monotonic() - began >= patience_s or self._closing.is_set():
                    raise BusError(f"worker {self.worker} cannot {what} on its own Redis: {error}") from None
                self.retries += 1
                if delay_s == 0.05:
                    self._log(f"own Redis fails to {what} ({error}); trying for {patience_s:g} s")
                if is_full:
                    with contextlib.suppress(redis.RedisError):
                        self._make_room()
                self._closing.wait(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2.0, delay_s * 2)

    # --- reading ------------------------------------------------------------------------------

    def follow(self, peer: int, incarnation: str, after: int = 0) -> None:
        out, direct = self._keys.out(peer, incarnation), self._keys.direct(peer, incarnation, self.worker)
        self._reader_of[peer].follow(peer, incarnation, after, out, direct)

    def holds(self, peer: int, incarnation: str, after: int) -> bool:
        return self._reader_of[peer].holds(self._keys.out(peer, incarnation), after)

    def newest(self, peer: int, incarnation: str) -> int:
        return self._reader_of[peer].newest(self._keys.out(peer, incarnation))

    def receive(self, server: int, timeout_s: float) -> list[Entry]:
        return self._readers[server].receive(timeout_s, self._entry_bytes)

    def read_again(self, entry: Entry) -> None:
        self._reader_of[entry.sender].read_again(entry)

    # --- leases and states --------------------------------------------------------------------

    def claim(self, lease: Lease, ttl_s: float, may_replace: Callable[[Lease], bool]) -> Lease | None:
        key, value, ttl_ms = self._keys.lease(self.worker), self._authenticator.mac_lease(lease), int(ttl_s * 1000)

        def take(pipeline: redis.client.Pipeline) -> Lease | None:
            old = self._authenticator.open_lease(self.worker, pipeline.get(key))
            if self.worker in self._authenticator.strangers:
                raise DisagreementError(
                    f"someone else is worker {self.worker}: {self._authenticator.strangers[self.worker]}; "
                    "stop that one, or wait until its lease has ended"
                )
            # The lease is our own: the reply to an earlier attempt was lost.
            if old is not None and old.incarnation != self.incarnation and not may_replace(old):
                raise DuplicateError(self.worker, old.host, old.pid)
            pipeline.multi()
            pipeline.set(key, value, px=ttl_ms)
            return old

        # The key is watched, so that only one of two workers that start at once gets the number.
        def claim() -> Lease | None:
            # redis-py's annotation does not allow the callable's return value.
            transaction: Any = self._own.transaction
            old: Lease | None = transaction(take, key, value_from_callable=True)
            return old

        old = self._insist(claim, "claim its number")
        self._insist(lambda: self._let_go_of_last_incarnation(ttl_s), "claim its number")
        return old

    def _let_go_of_last_incarnation(self, ttl_s: float) -> None:
        """Let the last incarnation's keys expire: replaying and joining peers read only the one with the lease."""
        keys, me, key = self._keys, self.worker, self._keys.incarnation(self.worker)
        value: Any = self._own.get(key) or b""
        last = value.decode(errors="replace")
        pipeline = self._own.pipeline(transaction=False)
        if last not in ("", self.incarnation):
            direct = [keys.direct(me, last, peer) for peer in self._reader_of]
            for name in (keys.state(me, last), keys.out(me, last), *direct):
                pipeline.expire(name, max(LAST_INCARNATION_S, int(2 * ttl_s)))
        pipeline.set(key, self.incarnation, ex=KEEP_S)
        pipeline.execute()

    def renew(self, lease: Lease, ttl_s: float, may_restore: bool = True) -> str:
        key = self._keys.lease(self.worker)
        own = [
            self._keys.incarnation(self.worker),
            self._keys.state(self.worker, self.incarnation),
            *self._sequences.copy(),
        ]
        try:
            old = self._authenticator.open_lease(self.worker, self._own.get(key))
            if old is not None and old.incarnation != self.incarnation:
                return "taken"
            if old is None:
                if not may_restore:
                    return "expired"
                for name in self._kept.copy():
                    self._check_kept(name)
            pipeline = self._own.pipeline(transaction=False)
            pipeline.set(key, self._authenticator.mac_lease(lease), px=int(ttl_s * 1000))
            for name in own:
                pipeline.expire(name, KEEP_S)
            pipeline.execute()
        except redis.RedisError as error:
            raise BusError(f"cannot renew the lease: {error}") from None
        return "restored" if old is None else "held"

    def release(self) -> None:
        key = self._keys.lease(self.worker)
        try:
            old = self._authenticator.open_lease(self.worker, self._own.get(key))
            if old is not None and old.incarnation == self.incarnation:
                self._own.delete(key)
        except redis.RedisError:
            pass  # The lease expires by itself.

    def leases(self, server: int) -> Mapping[int, Lease | None]:
        group = self.servers[server]
        try:
            values = self._readers[server].client.mget([self._keys.lease(peer) for peer in group])
        except redis.RedisError as error:
            raise BusError(f"Redis at {self._readers[server].name}: {error}") from None
        return {peer: self._authenticator.open_lease(peer, value) for peer, value in zip(group, values, strict=True)}

    def put_state(self, fields: Mapping[str, Buffer], ttl_s: float) -> None:
        key = self._keys.state(self.worker, self.incarnation)

        def put() -> None:
            pipeline = self._own.pipeline(transaction=False)
            for name, value in fields.items():
                pipeline.hset(key, name, self._authenticator.mac_field(key, name, value))
            pipeline.expire(key, max(KEEP_S, int(ttl_s)))
            pipeline.execute()

        self._insist(put, "store its state")
        with self._lock:
            self.sent_bytes += sum(map(len, fields.values()))

    def delete_state(self, names: Sequence[str]) -> None:
        if names:
            key = self._keys.state(self.worker, self.incarnation)
            self._insist(lambda: self._own.hdel(key, *names), "delete a state that it gave")

    def get_state(self, peer: int, incarnation: str, names: Sequence[str]) -> dict[str, bytes]:
        key = self._keys.state(peer, incarnation)
        try:
            values = self._reader_of[peer].client.hmget(key, list(names))
        except redis.RedisError as error:
            raise BusError(f"cannot read the state of worker {peer}: {error}") from None
        there = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        found = self._authenticator.open_fields(peer, key, there)
        with self._lock:
            self._state_bytes += sum(map(len, found.values()))
        return found

    def close(self) -> None:
        self._closing.set()
        self._hang_up()
        for reader in self._readers:
            reader.close()
        self._own.close()
        self._own.connection_pool.disconnect()
