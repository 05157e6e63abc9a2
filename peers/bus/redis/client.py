"""A node's Redis: its URL, a client that has answered, connections for vectors, and the reader of its streams.

Every client option is set here, once, because redis-py's defaults changed from one major version
to the next: RESP2, no retries inside the client, and a socket timeout on everything, longer than
the second for which a read may block.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from peers.bus.redis.authenticate import Authenticator
from peers.bus.redis.mac import Macs, Watch
from peers.bus.redis.resp import Busy, Connection, ReplyError, bulks
from peers.bus.redis.tls import Access, TlsLink, refusal
from peers.errors import BusError, UnreachableError
from peers.types import Buffer, Entry

BLOCK_S = 1.0
SOCKET_TIMEOUT_S = BLOCK_S + 3.0
# The most bytes that an answer to XREAD holds, unless a single entry is larger: of a larger answer the processor's
# cache would have lost the first entries when the last ones come.
REPLY_BYTES = 512 * 1024
MAX_NUMBER = 2**64
# Without it redis-py would send CLIENT SETINFO, which no user of ours needs; the name depends on redis-py's version.
_NAMELESS = (
    {"driver_info": None} if hasattr(redis.connection, "DriverInfo") else {"lib_name": None, "lib_version": None}
)


def address(url: str) -> str:
    """A Redis URL without its password, for people to read."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def split_socket(url: str) -> tuple[str, str]:
    """A node's Redis URL for the other workers, and for the node's own worker: only this one uses `?socket=PATH`."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    path = query.pop("socket", "")
    if not path:
        return url, url
    far = urlunsplit(parts._replace(query=urlencode(query)))
    database = parts.path.strip("/")
    query = ({"db": database} if database else {}) | query
    login, at, _ = parts.netloc.rpartition("@")
    return far, f"unix://{login}{at}{quote(path)}" + ("?" + urlencode(query) if query else "")


def connect(
    url: str, timeout_s: float, log: Callable[[str], None] = lambda line: None, access: Access | None = None
) -> redis.Redis:
    """A client that has answered PING.

    Args:
        access: our credentials, and the authority that we trust.

    Raises:
        SetupError: a file of `access` cannot be used.
        UnreachableError: no answer within `timeout_s`, or an error that waiting does not change; the message
            has host, port and reason.
    """
    access = access or Access()
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
            **_NAMELESS,
            **access.options(url),
        )
    except (ValueError, TypeError) as error:
        shown = re.sub(r"//[^@/]*@", "//", url)
        raise UnreachableError(f"{shown!r} is no Redis URL: {error}") from None
    deadline, has_said = time.monotonic() + timeout_s, False
    while True:
        try:
            client.ping()
            return client
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            client.close()
            raise UnreachableError(f"Redis at {address(url)} refuses us: {error}") from None
        except redis.RedisError as error:
            if url.startswith("rediss:") and (why := refusal(error, access)):
                client.close()
                raise UnreachableError(f"Redis at {address(url)}: {why}") from None
            reason = " ".join(str(error).split()).rstrip(".")
            if time.monotonic() >= deadline:
                client.close()
                raise UnreachableError(
                    f"no Redis answers at {address(url)} ({reason}) after {timeout_s:g} s; "
                    "start a redis-server there, or mend `peers`"
                ) from None
            if not has_said:
                log(f"no Redis answers at {address(url)} yet ({reason}); trying for {timeout_s:g} s")
                has_said = True
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


def open_link(client: redis.Redis, buffer_bytes: int, busy: Busy | None = None) -> Connection:
    """A connection for `resp`: the client has connected it, authenticated it and set its options.

    Raises:
        redis.RedisError: the server accepts no connection.
    """
    # Not by the pool's `make_connection`: the pool counts what it makes, up to 100, and this one never comes back.
    pool = client.connection_pool
    made = pool.connection_class(**pool.connection_kwargs)
    made.connect()
    # From here on the socket is ours: redis-py's connection would close the socket with itself.
    socket: Any = vars(made)["_sock"]
    vars(made)["_sock"] = None
    link: Any = TlsLink(socket) if isinstance(socket, ssl.SSLSocket) else socket
    return Connection(link, buffer_bytes, busy)


_BUFFERS = (bytes, memoryview)


def _text(value: Buffer) -> bytes:
    """The value as bytes; of a number, `bytes` would make that many zeros."""
    if not isinstance(value, _BUFFERS):
        raise TypeError(f"{type(value).__name__} where bytes should be")
    return bytes(value)


def number_of(item_id: Any) -> int:
    """The first part of a stream id, which is the sender's sequence number."""
    return int(item_id.partition(b"-")[0])


class _Stream:
    """One stream that is followed: its sender, and how far it has been read.

    Attributes:
        after: number of the newest entry that was handed on.
        cursor: the next XREAD asks for the entries after this one.
        read: number of the newest entry that has come, handed on or not.
        macs: checks the MACs of its entries; None without a run key.
    """

    __slots__ = ("after", "cursor", "incarnation", "is_direct", "peer", "read", "macs")

    def __init__(self, peer: int, incarnation: str, is_direct: bool, after: int, macs: Macs | None):
        self.peer, self.incarnation, self.is_direct, self.macs = peer, incarnation, is_direct, macs
        self.after = after
        self.move(b"%d-0" % after)

    def move(self, item_id: bytes) -> None:
        self.cursor = b"$%d\r\n%b\r\n" % (len(item_id), item_id)
        self.read = number_of(item_id)

    @property
    def name(self) -> str:
        return "its stream for this worker" if self.is_direct else "its outbox"


class Reader:
    """Follows the streams on one server. Thread-safe; one thread at a time reads, over a connection of its own.

    The next answer is asked for before the last one is handed out: the server gathers it meanwhile.

    Args:
        client: a client that has answered; for the connection, and for the caller's own small questions.
        name: of the server, for errors.
        busy: is entered while an answer comes in.
        authenticator: gives the MACs that the entries must bear, and counts the refused entries.

    Attributes:
        received_bytes: payload and header bytes so far.
    """

    def __init__(self, client: redis.Redis, name: str, busy: Busy, authenticator: Authenticator):
        self.client, self.name = client, name
        self.received_bytes = 0
        self._authenticator, self._watch = authenticator, Watch()
        self._busy = busy
        self._reading, self._changing = threading.Lock(), threading.Lock()
        self._followed = threading.Event()
        # By key. A new map each time other streams are followed, so an answer's map shows whether it is outdated.
        self._streams: dict[bytes, _Stream] = {}
        self._link: Connection | None = None
        # The streams of the question whose answer has not been read, and the question up to the cursors.
        self._asked: dict[bytes, _Stream] | None = None
        self._question: tuple[object, bytes] = (None, b"")

    def follow(self, peer: int, incarnation: str, after: int, out: str, direct: str) -> None:
        """Read a peer's outbox after entry number `after`, and its stream for us; replaces the ones followed before."""
        with self._changing:
            others = {key: stream for key, stream in self._streams.items() if stream.peer != peer}
            for key, is_direct, first in ((out, False, after), (direct, True, 0)):
                others[key.encode()] = _Stream(peer, incarnation, is_direct, first, self._authenticator.macs(key))
            self._streams = others
        self._followed.set()

    def holds(self, key: str, after: int) -> bool:
        """Whether every entry after number `after` of a stream can still be read."""
        try:
            first: Any = self.client.xrange(key, count=1)
            last = self.newest(key)
        except (redis.RedisError, BusError):
            return False
        return bool(first) and (last == after or number_of(first[0][0]) <= after + 1 <= last)

    def newest(self, key: str) -> int:
        """The number of a stream's newest entry; 0 if there is none. Raises BusError."""
        try:
            last = self.client.xrevrange(key, count=1)
        except redis.RedisError as error:
            raise BusError(f"Redis at {self.name}: {error}") from None
        return number_of(last[0][0]) if last else 0

    def receive(self, timeout_s: float, entry_bytes: int) -> list[Entry]:
        """New entries since the last call; see `peers.bus.door.Bus.receive`.

        Args:
            entry_bytes: the largest payload to expect.
        """
        if not self._streams:
            self._followed.wait(timeout_s)
            self._followed.clear()
            return []
        timeout_ms = max(1, int(min(timeout_s, BLOCK_S) * 1000))
        with self._reading:
            try:
                streams = self._streams
                if self._asked is not None and self._asked is not streams:
                    # Other streams are followed by now, and the answer on its way is of the former ones.
                    self._hang_up()
                link = self._link
                if self._asked is None or link is None:
                    link = self._ask(streams, timeout_ms, entry_bytes)
                answer = link.read()
                self._asked = None
                if isinstance(answer, ReplyError):
                    raise redis.ResponseError(str(answer))
            except (OSError, redis.RedisError) as error:
                self._hang_up()
                raise BusError(f"Redis at {self.name}: {error}") from None
            if not answer:
                return []
            try:
                taken = [self._take(streams[_text(key)], _text(key), items) for key, items in answer]
            except (ValueError, TypeError, KeyError, IndexError) as error:
                self._hang_up()
                raise BusError(f"Redis at {self.name} says what no Redis says: {type(error).__name__}") from None
            except redis.RedisError as error:
                self._hang_up()
                raise BusError(f"Redis at {self.name}: {error}") from None
            # The cursors move only now: if a part of an answer is malformed, nothing of the answer is used.
            for stream, _, after, item_id in taken:
                stream.after = after
                if item_id:
                    stream.move(bytes(item_id))
            entries = [entry for _, some, _, _ in taken for entry in some]
            self.received_bytes += sum(len(entry.header) + len(entry.payload) for entry in entries)
            try:
                self._ask(self._streams, timeout_ms, entry_bytes)
            except (OSError, redis.RedisError):
                # The entries that have come are handed out; the next call opens another connection or raises.
                self._hang_up()
            return entries

    def read_again(self, entry: Entry) -> None:
        """Move a stream's cursor before an entry; see `peers.bus.door.Bus.read_again`."""
        with self._reading:
            # The answer on its way belongs to a later cursor.
            self._hang_up()
            for stream in self._streams.values():
                whose = stream.peer, stream.incarnation, stream.is_direct
                if whose == (entry.sender, entry.incarnation, entry.is_direct):
                    stream.after = entry.sequence - 1
                    stream.move(b"%d-0" % stream.after)

    def _ask(self, streams: dict[bytes, _Stream], timeout_ms: int, entry_bytes: int) -> Connection:
        """Send XREAD for the entries after the cursors; returns the connection on which the answer comes."""
        if self._link is None:
            # Room for an answer, of entries of a size that the configuration knows.
            room = max(64 * 1024, min(2 * REPLY_BYTES, 8 * entry_bytes), entry_bytes + 64 * 1024)
            self._link = open_link(self.client, room, self._busy)
        # The question is the same each time, except for the cursors.
        what = (streams, timeout_ms, entry_bytes)
        if self._question[0] != what:
            # Of the two streams of a peer only its outbox has large entries.
            count = max(1, REPLY_BYTES // (entry_bytes * max(1, len(streams) // 2)))
            words = (b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % timeout_ms, b"STREAMS", *streams)
            self._question = what, b"*%d\r\n" % (len(words) + len(streams)) + bulks(*words)
        self._link.send_small(self._question[1] + b"".join([stream.cursor for stream in streams.values()]))
        self._asked = streams
        return self._link

    def _take(self, stream: _Stream, key: bytes, items: list[Any]) -> tuple[_Stream, list[Entry], int, Buffer]:
        """A stream's entries without the refused ones, and the cursor behind all of them.

        Raises:
            ValueError, TypeError: the items are no answer of Redis.
            redis.RedisError: a gap could not be checked.
        """
        entries, after, item_id, before = [], stream.after, b"", stream.read
        peer, incarnation, is_direct, macs = stream.peer, stream.incarnation, stream.is_direct, stream.macs
        for item_id, fields in items:
            number, _, rest = _text(item_id).partition(b"-")
            sequence = int(number)
            if not 0 <= sequence < MAX_NUMBER:
                raise ValueError("an id that is none")
            if len(fields) == 4 and fields[0] == b"h" and fields[2] == b"d":
                header, payload, mac = fields[1], fields[3], b""
            else:
                values = dict(zip(map(_text, fields[::2]), fields[1::2], strict=True))
                header, payload, mac = values.get(b"h", b""), values.get(b"d", b""), values.get(b"s", b"")
            if not isinstance(header, _BUFFERS) or not isinstance(payload, _BUFFERS):
                raise TypeError("an entry of something else than bytes")
            if sequence != before + 1:
                self._look_into(key, before, sequence)
                if sequence == before and macs is None and rest == b"0":
                    # With MACs the entry is refused below, and the next one comes as it should.
                    raise ValueError("an entry with the number of the one before it")
            before = sequence
            if macs is not None or rest != b"0":
                is_next = rest == b"0" and sequence > after
                reason = self._reason(macs, sequence, is_next, header, payload, mac)
                if reason is not None:
                    self._authenticator.refusals.note(peer, reason, f"entry {sequence} of {stream.name}")
                    continue
            # The header is small and is kept; the payload stays in the buffer into which the socket has written.
            entries.append(Entry(peer, incarnation, sequence, sequence == after + 1, bytes(header), payload, is_direct))
            after = sequence
        return stream, entries, after, item_id

    def _look_into(self, key: bytes, before: int, sequence: int) -> None:
        """Check that there are no entries between these two: no checksum covers a number.

        With a number that changed on its way, entries would be skipped, or awaited for ever.

        Raises:
            ValueError: the number is another.
            redis.RedisError: the server could not be asked.
        """
        first = self.client.xrange(key, min=b"%d-0" % (before + 1), count=1)
        if sequence < before or first and sequence > number_of(first[0][0]):
            raise ValueError("an entry with a number that is not its own")

    def _reason(
        self, macs: Macs | None, number: int, is_next: bool, header: Buffer, payload: Buffer, mac: Buffer
    ) -> str | None:
        """Why an entry is not handed on.

        Args:
            is_next: whether a worker may have written the entry's id: its ids end with -0 and ascend.
        """
        if macs is None:
            return "malformed"
        reason = self._watch.refusal(macs, number, header, payload, mac)
        return "replayed" if reason is None and not is_next else reason

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = self._asked = None

    def close(self) -> None:
        """Close every connection; a thread that waits for an answer gets an error."""
        self._followed.set()
        if self._link is not None:
            self._link.close()
        self.client.close()
        self.client.connection_pool.disconnect()


class Batch:
    """Commands of one publication, as pieces for the wire; kept for another try until all are answered.

    Attributes:
        answers: the answers of Redis if it takes every command.
    """

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.answers: list[bytes] = []
        self.sent = self.waiting_bytes = 0

    def add(self, head: bytes, answer: bytes, *rest: Buffer) -> None:
        self.pieces += (head, *rest)
        self.answers.append(answer)
        self.waiting_bytes += len(head) + sum(map(len, rest))
