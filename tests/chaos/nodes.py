"""A node's Redis that dies, freezes, fills up and comes back, on the same port; ended by its own pid."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import redis

from launch.servers import find
from tests.servers import free_port

START_S = 20.0


class Node:
    """One redis-server.

    Args:
        folder: its own, for its log and its data.
        is_durable: whether it writes every command to an append-only file; else nothing is on disk.
    """

    def __init__(self, folder: Path, is_durable: bool):
        self.folder, self._is_durable, self.port = folder, is_durable, free_port()
        self._process: subprocess.Popen | None = None
        self.is_frozen = False
        folder.mkdir(parents=True, exist_ok=True)
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server with its data on disk, and wait until it answers."""
        durable = ["--appendonly", "yes", "--appendfsync", "everysec"] if self._is_durable else ["--appendonly", "no"]
        command = [
            *(find("redis").path, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *durable),
            *("--maxmemory-policy", "noeviction", "--dir", str(self.folder), "--logfile", str(self.folder / "log.txt")),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.client.ping()
                return
            except redis.RedisError:
                assert self._process.poll() is None, f"the redis-server of {self.folder} ended at once"
                assert time.monotonic() < deadline, f"the redis-server of {self.folder} does not answer"
                time.sleep(0.02)

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self, number: int = signal.SIGKILL) -> None:
        """End the server by a signal and wait."""
        if self.is_up:
            self.thaw()
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def freeze(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)
        self.is_frozen = False

    def limit(self, size_bytes: int) -> None:
        """Set `maxmemory`; 0 for none."""
        self.client.config_set("maxmemory", size_bytes)

    def used_bytes(self) -> int:
        return self.client.info("memory")["used_memory"]

    def streams(self) -> dict[str, list[int]]:
        """The sequence numbers of each stream's entries."""
        found = {}
        for key in self.client.scan_iter(count=1000):
            if self.client.type(key) == b"stream":
                found[key.decode()] = [int(number.split(b"-")[0]) for number, _ in self.client.xrange(key)]
        return found

    def close(self) -> None:
        self.end()
        self.client.close()
