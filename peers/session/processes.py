"""The process behind a lease: which process on which host wrote it, and whether that process lives."""

from __future__ import annotations

import os
import platform

from peers.types import Lease


def process_birth(pid: int) -> str:
    """When a process started, to tell a reused pid apart; `gone` for a zombie, empty where the time is not known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return "gone" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""


def this_host() -> str:
    """Host name, and on Linux the boot and the process namespace, within which a pid means something."""
    parts = [platform.node() or "localhost"]
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts.append(file.read().strip()[:8])
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    except OSError:
        pass
    return "/".join(parts)


def is_dead(lease: Lease) -> bool:
    """Whether the process that wrote a lease is certainly gone: it was on this host and is not there now."""
    if lease.host != this_host():
        return False
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    birth = process_birth(lease.pid)
    return bool(birth) and bool(lease.birth) and birth != lease.birth
