"""A bus that injects faults into its worker before, while and after it publishes, and the injection of signals.

The worker uses it only where `DEGAN_FAULTS` is set (see `peers.chaos.faults`). All other calls go straight to the bus
below.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from peers.bus.door import Bus
from peers.chaos.faults import Fault, Plan
from peers.types import Buffer

Entries = Iterable[tuple[bytes, Buffer]]


class FaultyBus:
    """A bus with the hooks `before_publish`, `between_chunks` and `after_publish`; see `peers.bus.door.Bus`.

    A message belongs to the step that is its round. `between_chunks` is when its first entry is in the stream and the
    others are not; a message of a single entry has no such moment.

    Args:
        bus: the bus below.
        plan: the faults at those hooks.
        act: called with each fault that is due.
    """

    def __init__(self, bus: Bus, plan: Plan, act: Callable[[Fault], None]):
        self._bus, self._plan, self._act = bus, plan, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def publish(self, entries: Entries) -> None:
        self._inject_around(self._bus.publish, entries)

    def send(self, peer: int, entries: Entries) -> None:
        self._inject_around(lambda some: self._bus.send(peer, some), entries)

    def _inject_around(self, log: Callable[[Entries], None], entries: Entries) -> None:
        rest = iter(entries)
        first = list(itertools.islice(rest, 1))
        step = _round(first[0][0]) if first else 0
        self._at(step, "before_publish")
        second = list(itertools.islice(rest, 1))
        between = self._plan.due(step, "between_chunks") if second else []
        if between:
            log(first)
            first = []
            for fault in between:
                self._act(fault)
        log(itertools.chain(first, second, rest))
        self._at(step, "after_publish")

    def _at(self, step: int, hook: str) -> None:
        for fault in self._plan.due(step, hook):
            self._act(fault)


def _round(header: bytes) -> int:
    return int(msgpack.unpackb(header)["r"])


def inject(fault: Fault) -> None:
    """Inject a fault of signals into this very process."""
    me = os.getpid()
    if fault.action == "stop":
        # A stopped process cannot wake itself; the other one has its own session, so that it also survives a Ctrl-C.
        words = ["sh", "-c", 'sleep "$1"; kill -CONT "$2"', "sh", f"{fault.seconds:g}", str(me)]
        subprocess.Popen(words, start_new_session=True)
        os.kill(me, signal.SIGSTOP)
        return
    os.kill(me, getattr(signal, f"SIG{fault.action.upper()}"))
