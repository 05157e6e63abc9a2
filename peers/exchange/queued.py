"""How long the thread that trains has queued for a processor."""

from __future__ import annotations


def queued_s() -> float:
    """Seconds since its start in which this thread was ready and had no processor; 0 where the kernel does not count.

    Source: Linux, Documentation/scheduler/sched-stats.rst, the second number of a task's schedstat.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
