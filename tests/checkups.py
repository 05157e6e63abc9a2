"""Helpers for the tests of the doctor: the checks of a node, servers that are no Redis, and lines of the table."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator

from peers.doctor.checkup import look
from peers.doctor.findings import Finding
from peers.doctor.node import Visit
from peers.types import Lease

LEASE_S, BEAT_S = 20.0, 5.0


def findings(url: str, run: str = "r", **changes) -> dict[str, Finding]:
    """The checks of one node by name; of those with several lines the last."""
    asked = {
        "url": url,
        "run": run,
        "workers": (0,),
        "is_own": True,
        "needed_bytes": 2**20,
        "step_bytes": 1000,
        "lease_s": LEASE_S,
        "beat_s": BEAT_S,
        "is_dead": lambda lease: False,
    }
    return {finding.check: finding for finding in look(Visit(**{**asked, **changes}))}


def lease(worker: int = 0, **changes) -> Lease:
    peer_info = {
        "incarnation": "incarnation",
        "host": "host9/boot/1",
        "pid": 77,
        "birth": "1",
        "phase": "training",
        "step": 40,
    }
    return Lease(worker=worker, **{**peer_info, **changes})


def rows(table: str) -> list[tuple[str, str]]:
    """Check and state of every line of the table."""
    return [(check, state) for state, check in re.findall(r"^  (ok|warn|fail) +(\S+(?: \S+)*?)  ", table, re.MULTILINE)]


@contextlib.contextmanager
def listener(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server that answers every request with `answer(request)`; yields its port."""
    server = socket.create_server(("127.0.0.1", 0))
    open_connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := connection.recv(65536):
                connection.sendall(answer(request))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                open_connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in open_connections:
            connection.close()
        thread.join(10)


def only_pong(request: bytes) -> bytes:
    """A server that answers the commands of a new connection, and nothing after that."""
    return b"+OK\r\n" * request.count(b"SETINFO") + b"+PONG\r\n" * request.count(b"PING")


def nonsense(request: bytes) -> bytes:
    """A server that answers every command with a number."""
    return only_pong(request) or b":7\r\n" * max(1, len(re.findall(rb"^\*\d+\r\n", request, re.MULTILINE)))


def http(request: bytes) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\n\r\n"


def silence(request: bytes) -> bytes:
    return b""
