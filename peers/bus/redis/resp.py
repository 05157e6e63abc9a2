"""Redis' wire protocol (RESP2) for bulk data: payloads are neither copied when sent nor when received.

Sending gathers small headers and the callers' buffers in one system call. Receiving fills a large buffer, and the
bytes of a reply are views into it. A buffer is used again only when no view of it is left: Python itself
keeps count, because a bytearray with a view refuses to change its size.

Every size that a server announces is checked before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from peers.types import Buffer

MAX_BULK_BYTES = 64 * 1024 * 1024
MAX_REPLY_BYTES = 4 * MAX_BULK_BYTES
MAX_ITEMS = 1 << 20
# The memory of one item of an array besides its bytes, at least. It counts for the size of a reply.
ITEM_BYTES = 64
MAX_DEPTH = 8
MAX_LINE_BYTES = 64 * 1024
# Linux takes 1024 pieces in one call.
MAX_PIECES = 1000
KEPT_BUFFERS = 8
WHOLE_BYTES = 8 * 1024
ROOM_BYTES = 1024 * 1024

# The answer to XREAD where one stream has news, up to its entries.
_ANSWER = re.compile(rb"\*1\r\n\*2\r\n\$(\d{1,3})\r\n([^\r\n]+)\r\n\*(\d{1,5})\r\n")
# An entry of XREAD with two or three fields of one letter, up to the bytes of its first value; and from the end of a
# value to the next. The values before the last, of at most 9,999 bytes, may be anything.
_ENTRY = re.compile(rb"\*2\r\n\$(\d\d?)\r\n([\d-]+)\r\n\*([46])\r\n\$1\r\n(.)\r\n\$(\d{1,4})\r\n", re.DOTALL)
_NEXT = re.compile(rb"\r\n\$1\r\n(.)\r\n\$(\d{1,8})\r\n", re.DOTALL)
MAX_SMALL_BYTES = 9_999

# The class under a name that the argument `socket` does not hide.
_Socket = socket.socket


class ReplyError(Exception):
    """The server refuses a command; the text is its error line, code first."""


class ProtocolError(ConnectionError):
    """The bytes are no RESP2, or announce an absurd size; nothing more can be read from this connection."""


class Busy:
    """Seconds in which at least one of several threads was inside.

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._lock = threading.Lock()
        self._active = 0
        self._since = self._total_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._active:
                self._since = self._now()
            self._active += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                self._total_s += self._now() - self._since

    @property
    def total_s(self) -> float:
        """Seconds so far, the present stay included."""
        with self._lock:
            return self._total_s + (self._now() - self._since if self._active else 0.0)


def command(*arguments: Buffer) -> bytes:
    """A whole command in one piece, for small arguments."""
    return b"*%d\r\n" % len(arguments) + bulks(*arguments)


def bulks(*arguments: Buffer) -> bytes:
    """Arguments of a command."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(argument), bytes(argument)) for argument in arguments)


class Replies:
    """Reads one reply after the other.

    Bulk strings come as memoryviews, which stay valid as long as a reference is held, or, small ones, as
    bytes; arrays as lists, nil as None. An error inside or instead of a reply is returned as a `ReplyError` and
    not raised.

    Args:
        receive_into: waits for bytes, writes them, returns how many; 0 at the end. Its second argument is the number
            of bytes needed: it may wait for as many, and for no more, before it returns.
        buffer_bytes: size of a buffer; a reply that needs more gets a larger one.
        busy: is entered while a reply comes in, from its first byte to its last.
    """

    def __init__(self, receive_into: Callable[[memoryview, int], int], buffer_bytes: int, busy: Busy | None = None):
        self._receive_into = receive_into
        self._buffer_bytes = buffer_bytes
        self._busy = busy or Busy()
        self._buffers: list[bytearray] = []
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        # The bytes from `_at` to `_end` have come and have not been read.
        self._at = self._end = 0
        self._left_bytes = 0

    def read(self) -> Any:
        """The next reply.

        Raises:
            ProtocolError, ConnectionError, OSError: nothing more can be read from this connection.
        """
        if self._at == self._end:
            self._move(self._buffer_bytes)
            self._fill(1)
        self._left_bytes = MAX_REPLY_BYTES
        with self._busy:
            return self._answer() or self._value(MAX_DEPTH)

    def expect(self, text: bytes) -> bool:
        """Whether exactly this text comes next. If so it has been read, else nothing has. Raises as `read`."""
        while True:
            here = min(len(text), self._end - self._at)
            if self._buffer[self._at : self._at + here] != text[:here]:
                return False
            if here == len(text):
                self._at += here
                return True
            self._fill(here + 1)

    def _value(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            size = self._length(rest, MAX_BULK_BYTES)
            if size < 0:
                return None
            return self._bulk(size)
        if kind == b"*":
            size = self._length(rest, MAX_ITEMS)
            if not depth:
                raise ProtocolError("arrays in arrays without end")
            return None if size < 0 else self._items(size, depth)
        if kind == b":":
            return self._length(rest, 2**63)
        if kind == b"+":
            self._count(len(rest))
            return rest
        if kind == b"-":
            self._count(len(rest))
            return ReplyError(rest.decode(errors="replace"))
        raise ProtocolError(f"no RESP2: {line[:32]!r}")

    def _items(self, size: int, depth: int) -> list[Any]:
        self._count(ITEM_BYTES * size)
        return [self._entry(depth) or self._value(depth - 1) for _ in range(size)]

    def _count(self, size: int) -> None:
        """Take `size` bytes from the limit of this reply. Raises ProtocolError if that is more than is left."""
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise ProtocolError(f"a reply of more than {MAX_REPLY_BYTES} bytes")

    def _bulk(self, size: int) -> memoryview:
        self._count(size)
        if self._end - self._at < size + 2:
            self._fill(size + 2)
        start = self._at
        self._at = start + size + 2
        if self._buffer[start + size : self._at] != b"\r\n":
            raise ProtocolError("a bulk string that does not end where it should")
        return self._view[start : start + size]

    # The most frequent replies of degan are recognised by their form: reading the head of an entry line by line takes
    # longer than the checksum of its payload. A reply of another form, or an incomplete one, is left to `_value`.

    def _answer(self) -> list[Any] | None:
        """The answer to XREAD if one stream has entries; else nothing has been read."""
        found = _ANSWER.match(self._buffer, self._at, self._end)
        # The sizes of the list of streams, of the stream's name and of its list of entries.
        size = len(found[2]) + 3 * ITEM_BYTES if found else 0
        if found is None or len(found[2]) != int(found[1]) or size > self._left_bytes:
            return None
        self._left_bytes -= size
        self._at = found.end()
        return [[found[2], self._items(int(found[3]), MAX_DEPTH - 2)]]

    def _entry(self, depth: int) -> list[Any] | None:
        """An item of an array if it is an entry; else nothing has been read."""
        if self._at == self._end:
            self._fill(1)
        first = _ENTRY.match(self._buffer, self._at, self._end)
        if first is None or depth < 3:
            return None
        id_size, item_id, words, name, size_text = first.groups()
        if len(item_id) != int(id_size):
            return None
        fields, start, size = [name], first.end(), int(size_text)
        small_bytes = len(item_id) + 1 + (2 + int(words)) * ITEM_BYTES
        for _ in range(int(words) // 2 - 1):
            found = _NEXT.match(self._buffer, start + size, self._end)
            if found is None or size > min(MAX_SMALL_BYTES, MAX_BULK_BYTES):
                return None
            fields += (bytes(self._view[start : start + size]), found[1])
            small_bytes += size + 1
            start, size = found.end(), int(found[2])
        if size > MAX_BULK_BYTES or small_bytes + size > self._left_bytes:
            return None
        self._left_bytes -= small_bytes
        self._at = start
        fields.append(self._bulk(size))
        return [item_id, fields]

    def _length(self, text: bytes, limit: int) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ProtocolError(f"no number: {text[:32]!r}") from None
        if not -1 <= value <= limit:
            raise ProtocolError(f"{value} is beyond {limit}")
        return value

    def _line(self) -> bytes:
        searched = 0
        while True:
            found = self._buffer.find(b"\r\n", self._at + searched, self._end)
            if found >= 0:
                line = bytes(self._view[self._at : found])
                self._at = found + 2
                return line
            # The last byte may be the first half of the line's end.
            count = self._end - self._at
            searched = max(0, count - 1)
            if searched > MAX_LINE_BYTES:
                raise ProtocolError("a line without end")
            if self._end == len(self._buffer):
                # Room for more than a byte, or each byte would cost a copy of all those before it.
                self._move(count + self._buffer_bytes)
            self._fill(count + 1)

    def _fill(self, size: int) -> None:
        """Wait until `size` bytes have come that have not been read."""
        while self._end - self._at < size:
            if self._at + size > len(self._buffer):
                self._move(size)
            received = self._receive_into(self._view[self._end :], size - (self._end - self._at))
            if not received:
                raise ConnectionError("the server has closed the connection")
            self._end += received

    def _move(self, size: int) -> None:
        """Go on in a buffer that has no views and room for `size` bytes; unread bytes are copied over."""
        count, old = self._end - self._at, self._buffer
        self._view.release()
        fresh = self._free(size, old if count else None)
        fresh[:count] = old[self._at : self._end]
        self._buffer, self._view, self._at, self._end = fresh, memoryview(fresh), 0, count

    def _free(self, size: int, but: bytearray | None) -> bytearray:
        for buffer in self._buffers:
            if buffer is not but and len(buffer) >= size and _is_unseen(buffer):
                return buffer
        buffer = bytearray(max(size, self._buffer_bytes))
        self._buffers.append(buffer)
        del self._buffers[:-KEPT_BUFFERS]
        return buffer


def _is_unseen(buffer: bytearray) -> bool:
    """Whether no view of a buffer is left."""
    try:
        last = buffer.pop()
    except BufferError:
        return False
    buffer.append(last)
    return True


def _let_the_kernel_wait(connected: socket.socket) -> None:
    """Hand the timeout to the kernel: Python's own would poll before each call and forbid waiting for all bytes."""
    timeout_s = connected.gettimeout()
    if timeout_s:
        packed = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
        connected.settimeout(None)


def _make_room(connected: socket.socket) -> None:
    """Enlarge the buffer of a unix socket: by default it holds less than one entry, and the sender would sleep."""
    if connected.family == socket.AF_UNIX:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM_BYTES)


class Connection:
    """A connected socket that speaks RESP2.

    Args:
        socket: connected, authenticated and with a timeout. Closed by `close`.
        buffer_bytes, busy: as of `Replies`.
    """

    def __init__(self, socket: socket.socket, buffer_bytes: int, busy: Busy | None = None):
        self._socket = socket
        self._is_plain = type(socket) is _Socket
        if self._is_plain:
            self._timeout_ms = int(1000 * (socket.gettimeout() or 1))
            _let_the_kernel_wait(socket)
            _make_room(socket)
            self._poll = select.poll()
            self._poll.register(socket, select.POLLIN)
        self._replies = Replies(self._receive_into, buffer_bytes, busy)
        self.read, self.expect = self._replies.read, self._replies.expect

    def _receive_into(self, view: memoryview, needed: int) -> int:
        try:
            if not self._is_plain or needed < WHOLE_BYTES:
                return self._socket.recv_into(view)
            received = self._receive_now(view)
            if received < needed:
                left = needed - received
                self._await(left)
                received += self._socket.recv_into(view[received:], left, socket.MSG_WAITALL)
            return received
        except BlockingIOError:
            raise TimeoutError("no answer in time") from None

    def _receive_now(self, view: memoryview) -> int:
        """Read without waiting; returns how many bytes were there."""
        try:
            return self._socket.recv_into(view, len(view), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _await(self, size: int) -> None:
        """Sleep until `size` bytes are there, or for the timeout: on a slow wire every packet would wake us.

        Each wake takes the processor, and then Python's lock, from the thread that trains.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        self._poll.poll(self._timeout_ms)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def send_small(self, text: bytes) -> None:
        """Send something small. Raises as `send`."""
        try:
            self._socket.sendall(text)
        except BlockingIOError:
            raise TimeoutError("nothing more is taken") from None

    def send(self, pieces: Iterable[Buffer]) -> None:
        """Send buffers one after the other, as they lie in memory.

        Raises:
            OSError: nothing more can be sent on this connection.
        """
        views = [memoryview(piece) for piece in pieces if len(piece)]
        first = 0
        while first < len(views):
            try:
                sent = self._socket.sendmsg(views[first : first + MAX_PIECES])
            except BlockingIOError:
                raise TimeoutError("nothing more is taken") from None
            except (NotImplementedError, AttributeError):
                # TLS copies every byte anyway, to encrypt it.
                self._socket.sendall(views[first])
                sent = len(views[first])
            while first < len(views) and sent >= len(views[first]):
                sent -= len(views[first])
                first += 1
            if sent:
                views[first] = views[first][sent:]

    def close(self) -> None:
        """End the connection; a thread that waits for a reply gets an error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
