"""Workers' own network namespaces on one machine, joined by a switch over links of a chosen rate.

    namespace 0 -- veth --+
    namespace 1 -- veth --+-- bridge, in a namespace of its own
    namespace 2 -- veth --+

Each link is shaped at both of its ends (tbf), so that a worker sends and receives at the rate. Nothing of it is in
the machine's own namespace, and all names have this process's number: removing the namespaces removes everything,
and the next run removes the remains of a killed one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

NAME = "degan-bench"
CLONE_NEWNET = 0x40000000
BURST_BYTES = 32 * 1024
LATENCY = "50ms"
DEVICE = "wire"


class Namespaces:
    """`count` namespaces that reach each other under `address(k)`; see `namespaces`."""

    def __init__(self, count: int):
        self.count = count
        self._switch = f"{NAME}-{os.getpid()}-switch"

    def name(self, k: int) -> str:
        return f"{NAME}-{os.getpid()}-{k}"

    def address(self, k: int) -> str:
        return f"10.83.0.{k + 1}"

    def prefix(self, k: int) -> list[str]:
        """Words before a command that let it run in namespace `k`, as the same process."""
        return ["ip", "netns", "exec", self.name(k)]

    def open(self) -> None:
        names = [self._switch, *map(self.name, range(self.count))]
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for k in range(self.count):
            own, port = ["-n", self.name(k)], ["-n", self._switch]
            peer = ["peer", "name", f"port{k}", "netns", self._switch]
            _run("ip", *own, "link", "add", DEVICE, "type", "veth", *peer)
            _run("ip", *port, "link", "set", f"port{k}", "master", "bridge", "up")
            _run("ip", *own, "address", "add", f"{self.address(k)}/24", "dev", DEVICE)
            _run("ip", *own, "link", "set", DEVICE, "up")

    def shape(self, rate_mbit: float | None) -> None:
        """Give all links this rate in both directions; None for no limit."""
        for k in range(self.count):
            for name, device in ((self.name(k), DEVICE), (self._switch, f"port{k}")):
                words = ["tc", "-n", name, "qdisc"]
                subprocess.run([*words, "del", "dev", device, "root"], capture_output=True)
                if rate_mbit is not None:
                    limits = ["rate", f"{rate_mbit:g}mbit", "burst", str(BURST_BYTES), "latency", LATENCY]
                    _run(*words, "add", "dev", device, "root", "tbf", *limits)

    def socket(self, k: int) -> socket.socket:
        """A TCP socket of namespace `k`, for this process."""
        found: list[socket.socket] = []

        # A thread's namespace is its own, and a socket keeps the namespace in which it was made.
        def make() -> None:
            with open(f"/var/run/netns/{self.name(k)}", "rb") as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET) == 0:
                    found.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if not found:
            raise SystemExit(f"cannot enter the network namespace {self.name(k)}")
        return found[0]

    def measure_mbit(self, seconds: float = 2.0) -> float:
        """The rate of a plain TCP transfer from namespace 0 to namespace 1, after a moment to get going."""
        with self.socket(1) as listener, self.socket(0) as sender:
            listener.bind((self.address(1), 0))
            listener.listen(1)
            sender.connect(listener.getsockname())
            receiver, _ = listener.accept()
            thread = threading.Thread(target=_send_all, args=(sender,), daemon=True)
            with receiver:
                thread.start()
                begin_s, count, began = time.monotonic() + 0.5, 0, 0.0
                while not began or time.monotonic() < began + seconds:
                    size = len(receiver.recv(1 << 16))
                    if began:
                        count += size
                    elif time.monotonic() >= begin_s:
                        began = time.monotonic()
                taken_s = time.monotonic() - began
            thread.join(10)
        return count * 8 / taken_s / 1e6

    def close(self) -> None:
        _delete(f"{NAME}-{os.getpid()}-")


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[Namespaces]:
    """Make `count` namespaces, which are gone after the block; exit with 2 where this is not possible."""
    refuse_unless_possible()
    _delete_stale()
    made = Namespaces(count)
    try:
        try:
            made.open()
            made.shape(100)
        except subprocess.CalledProcessError as error:
            refuse(f"{' '.join(error.cmd)}: {error.stderr.strip()}")
        yield made
    finally:
        made.close()


def refuse(why: str) -> None:
    print(f"this benchmark needs Linux network namespaces with shaped links: {why}", file=sys.stderr)
    raise SystemExit(2)


def refuse_unless_possible() -> None:
    """Exit with 2 and one line where namespaces cannot be made."""
    if not sys.platform.startswith("linux"):
        refuse("this is no Linux")
    if os.geteuid() != 0:
        refuse("run it as root")
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        refuse(f"{' and '.join(missing)} not found on PATH (apt install iproute2)")


def _send_all(sender: socket.socket) -> None:
    block = bytes(1 << 16)
    with contextlib.suppress(OSError):
        while True:
            sender.sendall(block)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _existing() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.startswith(f"{NAME}-")]


def _delete(start: str) -> None:
    for name in _existing():
        if name.startswith(start):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _delete_stale() -> None:
    for name in _existing():
        pid = name.removeprefix(f"{NAME}-").split("-")[0]
        if not os.path.exists(f"/proc/{pid}"):
            _delete(f"{NAME}-{pid}-")
