"""Secured runs for the tests: folders of `launch secure`, real TLS servers that use them, and an admin."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from config.security import read_secrets
from launch.__main__ import main
from peers.bus.redis.tls import Access
from tests.servers import free_port
from tests.workers import experiment

ADMIN, ADMIN_PASSWORD = "admin", "only-in-tests"
RULE = f"user {ADMIN} on >{ADMIN_PASSWORD} ~* &* +@all\n"


@functools.cache
def tls_server() -> str | None:
    """A redis-server of version 7 or newer that was built with TLS; None where PATH has none."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = shutil.which("redis-server", path=folder)
        if program is None:
            continue
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20).stdout
        major = int(version.partition("v=")[2].partition(".")[0] or 0)
        # The server ends at once: with TLS because it misses a certificate, without because it knows no such option.
        tried = subprocess.run([program, "--port", "0", "--tls-port", "1"], capture_output=True, text=True, timeout=20)
        has_tls = "No tls-" in tried.stdout + tried.stderr
        if major >= 7 and has_tls:
            return program
    return None


def secure_folder(folder: Path, name: str, workers: int, mode: str = "partial_exchange") -> Path:
    """The folder that `launch secure` makes for a small experiment on this machine, with an admin for its servers."""
    file = experiment(folder, name, [f"redis://localhost:{free_port()}" for _ in range(workers)], mode)
    made = folder / f"{name}-secrets"
    assert main(["secure", str(file), "--out", str(made)]) == 0
    for users in made.glob("w*/users.acl"):
        with open(users, "a", encoding="utf-8") as file:
            file.write(RULE)
    return made


@contextlib.contextmanager
def server(folder: Path) -> Iterator[int]:
    """Start the Redis of a worker's folder and wait until it answers TLS; yields its port."""
    program = tls_server()
    if program is None:
        pytest.skip("no redis-server >= 7 with TLS on PATH (Debian's redis-server has it)")
    port = int((folder / "redis.conf").read_text().partition("tls-port ")[2].split()[0])
    log = open(folder / "log.txt", "ab")  # noqa: SIM115
    child = subprocess.Popen([program, "redis.conf"], cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while b"Ready to accept connections" not in (folder / "log.txt").read_bytes():
            assert child.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.02)
        yield port
    finally:
        child.kill()
        child.wait(10)
        log.close()


@contextlib.contextmanager
def servers(made: Path) -> Iterator[list[int]]:
    """Start all servers of a secured run; yields their ports in worker order."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server(folder)) for folder in sorted(made.glob("w*"))]


def access(made: Path, worker: int) -> Access:
    found = read_secrets(f"{made}/w{{worker}}", worker)
    return Access(found.user, found.password, found.ca, found.certificate, found.key)


def admin(made: Path, port: int, user: str = ADMIN, password: str | None = None) -> redis.Redis:
    """A plain redis-py client, by default of the admin, who may use every command."""
    context = made / "w0"
    return redis.Redis(
        host="localhost",
        port=port,
        protocol=2,
        username=user,
        password=password or ADMIN_PASSWORD,
        ssl=True,
        ssl_ca_certs=str(context / "ca.crt"),
        ssl_certfile=str(context / "worker.crt"),
        ssl_keyfile=str(context / "worker.key"),
        ssl_min_version=ssl.TLSVersion.TLSv1_2,
        socket_timeout=10,
    )
