"""The bus on Redis Streams: the only file of this package that speaks Redis.

Every client option is set here, once, because redis-py's defaults changed from one major version
to the next: RESP2, no retries inside the client (`_insist` is the only place that retries), reads
that block for at most a second, and a socket timeout on everything. Plain XREAD with private
cursors: no consumer groups (every peer needs every message), no pub/sub (it forgets), no Lua.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from peers.errors import BusError, DuplicateError, UnreachableError
from peers.keys import Keys
from peers.types import Buffer, Entry, Lease

BLOCK_S = 1.0
SOCKET_TIMEOUT_S = BLOCK_S + 3.0
REPLY_BYTES = 2 * 1024 * 1024
PIPELINE_BYTES = 2 * 1024 * 1024
KEEP_S = 3600

_TRANSIENT = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError)
_encode_lease = msgspec.msgpack.Encoder().encode
_lease_decoder = msgspec.msgpack.Decoder(Lease)


def address(url: str) -> str:
    """A Redis URL without its password, for people to read."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def connect(url: str, timeout_s: float, say: Callable[[str], None] = lambda line: None) -> redis.Redis:
    """A client that has answered PING.

    Raises:
        UnreachableError: no answer within `timeout_s`, or one that waiting will not mend; the message
            has host, port and reason.
    """
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
        )
    except (ValueError, TypeError) as error:
        shown = re.sub(r"//[^@/]*@", "//", url)
        raise UnreachableError(f"{shown!r} is no Redis URL: {error}") from None
    # XREAD's reply as it comes: parsing it into dictionaries costs more than reading it.
    client.set_response_callback("XREAD", lambda reply, **options: reply)
    deadline, has_said = time.monotonic() + timeout_s, False
    while True:
        try:
            client.ping()
            return client
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            client.close()
            raise UnreachableError(f"Redis at {address(url)} refuses us: {error}") from None
        except redis.RedisError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            if time.monotonic() >= deadline:
                client.close()
                raise UnreachableError(
                    f"no Redis answers at {address(url)} ({reason}) after {timeout_s:g} s; "
                    "start a redis-server there, or mend `peers`"
                ) from None
            if not has_said:
                say(f"no Redis answers at {address(url)} yet ({reason}); trying for {timeout_s:g} s")
                has_said = True
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


class RedisBus:
    """One worker's door to everyone's Redis; see `peers.bus.Bus`.

    Args:
        run: name of the run, part of every key.
        worker: our number.
        urls: each worker's Redis, in worker order; several workers may share one.
        incarnation: this life of the worker; unique.
        peers: whom we follow.
        connect_timeout_s: how long an absent Redis is tried at the start.
        patience_s: how long our own node may fail in the middle of a run before that is an error.
        say: called with one line for a person, for instance while retrying.
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
        say: Callable[[str], None] = lambda line: None,
    ):
        self.worker, self.incarnation = worker, incarnation
        self.sent_bytes = self.received_bytes = 0
        self._keys = Keys(run)
        self._patience_s = patience_s
        self._say = say
        by_url: dict[str, list[int]] = {}
        for peer in peers:
            by_url.setdefault(urls[peer], []).append(peer)
        self.servers = tuple(tuple(group) for group in by_url.values())
        deadline = time.monotonic() + connect_timeout_s
        self._own = connect(urls[worker], connect_timeout_s, say)
        # Reading blocks, so each followed server gets a client of its own, even our own node's.
        self._readers = [connect(url, max(0.0, deadline - time.monotonic()), say) for url in by_url]
        self._reader_of = {peer: self._readers[k] for k, group in enumerate(self.servers) for peer in group}
        self._addresses = [address(url) for url in by_url]
        self._max_entries, self._entry_bytes = 1024, REPLY_BYTES
        self._sequences: dict[str, int] = {}
        self._cursors: dict[int, dict[str, tuple[str, int]]] = {}
        self._lock = threading.Lock()
        # Numbers must reach Redis in order, whichever thread publishes.
        self._appending = threading.Lock()
        self._followed = threading.Event()
        self._closing = threading.Event()

    @property
    def sequence(self) -> int:
        return self._sequences.get(self._keys.out(self.worker, self.incarnation), 0)

    def configure(self, max_entries: int, entry_bytes: int) -> None:
        self._max_entries, self._entry_bytes = max_entries, max(1, entry_bytes)

    # --- publishing ---------------------------------------------------------------------------

    def publish(self, entries: Sequence[tuple[bytes, Buffer]]) -> None:
        self._append(self._keys.out(self.worker, self.incarnation), entries)

    def send(self, peer: int, entries: Sequence[tuple[bytes, Buffer]]) -> None:
        self._append(self._keys.direct(self.worker, self.incarnation, peer), entries)

    def _append(self, key: str, entries: Sequence[tuple[bytes, Buffer]]) -> None:
        """XADD with explicit ids, pipelined; adding again what is there already is refused by Redis."""
        with self._appending:
            self._append_in_order(key, entries)

    def _append_in_order(self, key: str, entries: Sequence[tuple[bytes, Buffer]]) -> None:
        batch, size = [], 0
        for header, payload in entries:
            sequence = self._sequences.get(key, 0) + 1
            self._sequences[key] = sequence
            batch.append(
                ("XADD", key, "MAXLEN", self._max_entries, b"%d-0" % sequence, b"h", header, b"d", _as_bytes(payload))
            )
            size += len(header) + len(payload)
            self.sent_bytes += len(header) + len(payload)
            if size >= PIPELINE_BYTES:
                self._add_batch(batch)
                batch, size = [], 0
        if self._sequences[key] == len(entries):
            batch.append(("EXPIRE", key, KEEP_S))
        self._add_batch(batch)

    def _add_batch(self, batch: list[tuple]) -> None:
        if not batch:
            return

        def add() -> None:
            pipeline = self._own.pipeline(transaction=False)
            for command in batch:
                pipeline.execute_command(*command)
            for reply in pipeline.execute(raise_on_error=False):
                if isinstance(reply, Exception) and "equal or smaller" not in str(reply):
                    raise reply

        self._insist(add, "publish")

    def _insist(self, action: Callable, what: str):
        """Try again with jittered back-off while our own node is away, up to the patience."""
        deadline, delay_s = time.monotonic() + self._patience_s, 0.05
        while True:
            try:
                return action()
            except redis.RedisError as error:
                # A full Redis (OOM) takes entries again when it has been given room.
                is_transient = isinstance(error, _TRANSIENT) or str(error).startswith(("LOADING", "OOM", "MISCONF"))
                if not is_transient or time.monotonic() >= deadline or self._closing.is_set():
                    raise BusError(f"worker {self.worker} cannot {what} on its own Redis: {error}") from None
                if delay_s == 0.05:
                    self._say(f"own Redis fails to {what} ({error}); trying for {self._patience_s:g} s")
                self._closing.wait(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2.0, delay_s * 2)

    # --- reading ------------------------------------------------------------------------------

    def follow(self, peer: int, incarnation: str, after: int = 0) -> None:
        with self._lock:
            self._cursors[peer] = {
                self._keys.out(peer, incarnation): (incarnation, after),
                self._keys.direct(peer, incarnation, self.worker): (incarnation, 0),
            }
        self._followed.set()

    def holds(self, peer: int, incarnation: str, after: int) -> bool:
        key = self._keys.out(peer, incarnation)
        try:
            first = self._reader_of[peer].xrange(key, count=1)
            last = self._reader_of[peer].xrevrange(key, count=1)
        except redis.RedisError:
            return False
        if not first or not last:
            return False
        return _number(last[0][0]) == after or _number(first[0][0]) <= after + 1 <= _number(last[0][0])

    def receive(self, server: int, timeout_s: float) -> list[Entry]:
        with self._lock:
            cursors = {
                key: (peer, incarnation, after)
                for peer in self.servers[server]
                for key, (incarnation, after) in self._cursors.get(peer, {}).items()
            }
        if not cursors:
            self._followed.wait(timeout_s)
            self._followed.clear()
            return []
        count = max(1, REPLY_BYTES // (self._entry_bytes * len(cursors)))
        block_ms = max(1, int(min(timeout_s, BLOCK_S) * 1000))
        ids = [b"%d-0" % after for _, _, after in cursors.values()]
        try:
            reply = self._readers[server].execute_command(
                "XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *cursors, *ids
            )
        except redis.RedisError as error:
            raise BusError(f"Redis at {self._addresses[server]}: {error}") from None
        entries = []
        for key, items in reply or ():
            name = key.decode()
            peer, incarnation, after = cursors[name]
            for item_id, fields in items:
                sequence = _number(item_id)
                values = dict(zip(fields[::2], fields[1::2], strict=True))
                header, payload = values.get(b"h", b""), values.get(b"d", b"")
                is_direct = name != self._keys.out(peer, incarnation)
                entries.append(Entry(peer, incarnation, sequence, sequence == after + 1, header, payload, is_direct))
                after = sequence
                self.received_bytes += len(header) + len(payload)
            with self._lock:
                if name in self._cursors.get(peer, {}):
                    self._cursors[peer][name] = (incarnation, after)
        return entries

    # --- leases and states --------------------------------------------------------------------

    def claim(self, lease: Lease, ttl_s: float, may_replace: Callable[[Lease], bool]) -> Lease | None:
        key, value, ttl_ms = self._keys.lease(self.worker), _encode_lease(lease), int(ttl_s * 1000)

        def take(pipeline: redis.client.Pipeline) -> Lease | None:
            old = _decode_lease(pipeline.get(key))
            # Our own: the reply to an earlier attempt was lost.
            if old is not None and old.incarnation != self.incarnation and not may_replace(old):
                raise DuplicateError(self.worker, old.host, old.pid)
            pipeline.multi()
            pipeline.set(key, value, px=ttl_ms)
            return old

        # Watched, so that of two that start at once only one gets the number.
        return self._insist(lambda: self._own.transaction(take, key, value_from_callable=True), "claim its number")

    def renew(self, lease: Lease, ttl_s: float, may_restore: bool = True) -> str:
        key = self._keys.lease(self.worker)
        own = [
            self._keys.state(self.worker, self.incarnation),
            *self._sequences.copy(),
        ]
        try:
            old = _decode_lease(self._own.get(key))
            if old is not None and old.incarnation != self.incarnation:
                return "taken"
            if old is None and not may_restore:
                return "lapsed"
            pipeline = self._own.pipeline(transaction=False)
            pipeline.set(key, _encode_lease(lease), px=int(ttl_s * 1000))
            for name in own:
                pipeline.expire(name, KEEP_S)
            pipeline.execute()
        except redis.RedisError as error:
            raise BusError(f"cannot renew the lease: {error}") from None
        return "restored" if old is None else "held"

    def release(self) -> None:
        key = self._keys.lease(self.worker)
        try:
            old = _decode_lease(self._own.get(key))
            if old is not None and old.incarnation == self.incarnation:
                self._own.delete(key)
        except redis.RedisError:
            pass  # It expires by itself.

    def leases(self, server: int) -> Mapping[int, Lease | None]:
        group = self.servers[server]
        try:
            values = self._readers[server].mget([self._keys.lease(peer) for peer in group])
        except redis.RedisError as error:
            raise BusError(f"Redis at {self._addresses[server]}: {error}") from None
        return {peer: _decode_lease(value) for peer, value in zip(group, values, strict=True)}

    def put_state(self, fields: Mapping[str, Buffer], ttl_s: float) -> None:
        key = self._keys.state(self.worker, self.incarnation)

        def put() -> None:
            pipeline = self._own.pipeline(transaction=False)
            for name, value in fields.items():
                pipeline.hset(key, name, _as_bytes(value))
            pipeline.expire(key, max(KEEP_S, int(ttl_s)))
            pipeline.execute()

        self._insist(put, "store its state")

    def delete_state(self, names: Sequence[str]) -> None:
        if names:
            key = self._keys.state(self.worker, self.incarnation)
            self._insist(lambda: self._own.hdel(key, *names), "delete a state that it gave")

    def get_state(self, peer: int, incarnation: str, names: Sequence[str]) -> dict[str, bytes]:
        key = self._keys.state(peer, incarnation)
        try:
            values = self._reader_of[peer].hmget(key, list(names))
        except redis.RedisError as error:
            raise BusError(f"cannot read the state of worker {peer}: {error}") from None
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def close(self) -> None:
        self._closing.set()
        self._followed.set()
        for client in (self._own, *self._readers):
            client.close()
            client.connection_pool.disconnect()


def _as_bytes(value: Buffer) -> Buffer:
    return bytes(value) if isinstance(value, bytearray) else value


def _number(item_id: bytes) -> int:
    return int(item_id.split(b"-", 1)[0])


def _decode_lease(value: bytes | None) -> Lease | None:
    """A lease that someone else wrote; what is no lease counts as none."""
    try:
        return None if value is None else _lease_decoder.decode(value)
    except (msgspec.MsgspecError, ValueError):
        return None
