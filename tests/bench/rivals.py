"""The rivals of the exchange: Gloo, ZeroMQ with pickled arrays, and a bare socket at its limit.

A rival has `round()`, after which this worker has the whole vector of the other one, and `close()`.
"""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.distributed as dist

from peers.bus.redis.client import split_socket
from peers.bus.redis.resp import ROOM_BYTES
from peers.codecs.exact import RAW_BYTES

FIRST_ID = 10**9  # Every id has ten digits: the length of a reply follows from its number of entries.


class Rival(Protocol):
    def round(self) -> None: ...

    def close(self) -> None: ...


class Gloo:
    """torch.distributed over TCP, its own loopback connections.

    Args:
        rank: 0 or 1.
        port: the port at which the two meet.
        values: the number of float32 values of the vector.
        is_reduced: whether to use all_reduce instead of all_gather.
    """

    def __init__(self, rank: int, port: int, values: int, is_reduced: bool):
        self._is_reduced = is_reduced
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        self._vector = torch.ones(values)
        self._gathered = [torch.empty(values) for _ in range(2)]

    def round(self) -> None:
        if self._is_reduced:
            dist.all_reduce(self._vector)
        else:
            dist.all_gather(self._gathered, self._vector)

    def close(self) -> None:
        dist.destroy_process_group()


class ZeroMq:
    """A ROUTER per worker and a DEALER to the peer, and each message a pickled array, as in decentralizepy.

    Args:
        rank: 0 or 1.
        ports: the port of each worker's ROUTER.
        values: the number of float32 values of the vector.
    """

    def __init__(self, rank: int, ports: tuple[int, int], values: int):
        import zmq  # The other rivals run without zmq.

        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(f"tcp://127.0.0.1:{ports[rank]}")
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.IDENTITY, b"%d" % rank)
        self._dealer.connect(f"tcp://127.0.0.1:{ports[1 - rank]}")
        self._vector = np.ones(values, np.float32)
        self._round = 0

    def round(self) -> None:
        self._round += 1
        self._dealer.send(pickle.dumps({"iteration": self._round, "params": self._vector}))
        _, data = self._router.recv_multipart()
        self.received = pickle.loads(data)

    def close(self) -> None:
        self._context.destroy(linger=0)


class BareSocket:
    """The same XADD and XREAD with nothing around them: fixed requests, fixed buffers, no check, no arithmetic.

    One thread sends while there is room and receives while there is data, so neither direction waits for the other.
    The thread parses nothing but the number of entries of a reply.

    Args:
        rank: 0 or 1.
        urls: both workers' Redis.
        values: the number of float32 values of the vector.
        max_entries: the most entries of the stream, as in the exchange.
        count: the entries of a reply.
    """

    def __init__(self, rank: int, urls: list[str], values: int, max_entries: int, count: int):
        self._writer, self._reader = (
            _connected(split_socket(urls[rank])[1]),
            _connected(split_socket(urls[1 - rank])[0]),
        )
        self._vector = memoryview(np.ones(values, np.float32)).cast("B")
        self._keys = [b"bare:%d" % k for k in (rank, 1 - rank)]
        self._chunks = [self._vector[at : at + RAW_BYTES] for at in range(0, 4 * values, RAW_BYTES)]
        self._max_entries, self._count = max_entries, count
        self._buffer = memoryview(bytearray((count + 1) * (RAW_BYTES + 4096)))
        self._added = self._read = self._last = FIRST_ID
        self._header = bytes(60)

    def round(self) -> None:
        pieces = []
        for chunk in self._chunks:
            self._added += 1
            pieces += (self._add(len(chunk)), chunk, b"\r\n")
        pieces = [memoryview(piece) for piece in pieces]
        # Redis answers each XADD with its id: $12, ten digits and -0.
        answers = 19 * len(self._chunks)
        # A reply may have the first entries of the peer's next round.
        self._last += len(self._chunks)
        got, wanted, last = 0, 0, self._last
        if self._read < last:
            self._ask()
        while answers or self._read < last:
            reading = [s for s, more in ((self._writer, answers), (self._reader, self._read < last)) if more]
            readable, writable, _ = select.select(reading, [self._writer] if pieces else [], [])
            if self._reader in readable:
                got += self._reader.recv_into(self._buffer[got:])
                if self._buffer[:got] == b"*-1\r\n":
                    got = 0  # No data within the second.
                    self._ask()
                if not wanted and got >= 256:
                    wanted = self._expected()
                if wanted and got >= wanted[0]:
                    self._read += wanted[1]
                    got, wanted = 0, 0
                    if self._read < last:
                        self._ask()
            if self._writer in readable:
                answers -= len(self._writer.recv(65536))
            if writable:
                _advance(pieces, self._writer.sendmsg(pieces[:900]))

    def _add(self, size: int) -> bytes:
        arguments = b"XADD", self._keys[0], b"MAXLEN", b"%d" % self._max_entries, b"%d-0" % self._added
        return b"*9\r\n" + _bulks(*arguments, b"h", self._header, b"d") + b"$%d\r\n" % size

    def _ask(self) -> None:
        head = _bulks(b"XREAD", b"COUNT", b"%d" % self._count, b"BLOCK", b"1000", b"STREAMS", self._keys[1])
        self._reader.sendall(b"*8\r\n" + head + _bulks(b"%d-0" % self._read))

    def _expected(self) -> tuple[int, int]:
        """Length and number of entries of the reply whose head is in the buffer."""
        head = bytes(self._buffer[:64])
        start = head.index(self._keys[1] + b"\r\n*") + len(self._keys[1]) + 3
        stop = head.index(b"\r\n", start)
        count = int(head[start:stop])
        sizes = [len(self._chunks[(self._read - FIRST_ID + k) % len(self._chunks)]) for k in range(count)]
        each = len(_bulks(b"%d-0" % FIRST_ID, b"h", self._header, b"d")) + len(b"*2\r\n*4\r\n\r\n")
        return stop + 2 + sum(each + len(b"$%d\r\n" % size) + size for size in sizes), count

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


def _bulks(*arguments: bytes) -> bytes:
    return b"".join(b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments)


def _advance(pieces: list[memoryview], sent: int) -> None:
    """Remove the first `sent` bytes."""
    done = 0
    while done < len(pieces) and sent >= len(pieces[done]):
        sent -= len(pieces[done])
        done += 1
    del pieces[:done]
    if sent:
        pieces[0] = pieces[0][sent:]


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        found = socket.socket(socket.AF_UNIX)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM_BYTES)
        found.connect(parts.path)
    else:
        found = socket.create_connection((parts.hostname, parts.port))
    with contextlib.suppress(OSError):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setblocking(False)
    return found
