"""A fleet of exchanges without threads of their own: messages are delivered at once, or when a test asks for it.

So a test decides the order in which workers step and read, and knows to the last value the result of each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from peers.exchange.exchange import Exchange
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.session.meet import Start
from peers.types import Lease
from tests.fleets import in_threads, memory_buses

# No wait in these tests is for time to pass.
RULES = Options(lease_s=30.0, stall_timeout_s=20.0, finish_timeout_s=20.0, norm_gate=0.0, keep_rounds=400)


class Inline:
    """A pool that runs a job in the thread that submits it, and then lets every worker read."""

    def __init__(self, deliver: Callable[[], None]):
        self._deliver = deliver

    def submit(self, job: Callable[[], None], timeout_s: float = 0.0) -> bool:
        job()
        self._deliver()
        return True

    def drain(self, timeout_s: float, log: Callable[[str], None] = lambda line: None) -> bool:
        return True

    def close(self) -> None:
        pass


class HandReader:
    """A reader that reads when a test tells it to."""

    def __init__(self, bus, server, inbox, gate, lease_s, known, log):
        self._bus, self._server, self._inbox = bus, server, inbox

    def start(self) -> None:
        pass

    def read(self) -> None:
        for entry in self._bus.receive(self._server, 0.0):
            self._inbox.feed(entry)

    stop = close = start


class Lockstep:
    """Exchanges of n workers on one memory bus.

    Args:
        patch: of the test; gives the exchanges this module's pool and readers.
        workers: their number.
        layout, rules: as of `Exchange`; for the rules see `RULES`.
        size: number of values in the vector.
        initial: the vector with which every worker begins; zeros where not given.
        first: workers that begin; the others can join later. All where not given.

    Attributes:
        deaf: workers that read nothing for now.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        workers: int,
        layout: ExchangeLayout,
        size: int,
        rules: Options = RULES,
        initial: np.ndarray | None = None,
        first: Sequence[int] | None = None,
    ):
        patch.setattr("peers.session.session.SenderThread", lambda on_failure: Inline(self.deliver))
        patch.setattr("peers.session.session.PeerReader", HandReader)
        self._lock = threading.RLock()
        self.deaf: set[int] = set()
        self.lines: list[str] = []
        self.size, self.buses, self._layout, self._rules = size, memory_buses(workers), layout, rules
        for bus in self.buses:
            bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 600.0, lambda old: True)
        initial = np.zeros(size, np.float32) if initial is None else initial
        self.exchanges = [Exchange(bus, layout, initial, rules, self.lines.append) for bus in self.buses]
        first = range(workers) if first is None else first
        for worker in first:
            self.begin(worker, [peer for peer in first if peer != worker])

    def incarnations(self, peers: Sequence[int]) -> dict[int, str]:
        return {peer: self.buses[peer].incarnation for peer in peers}

    def begin(self, worker: int, peers: Sequence[int]) -> None:
        self.exchanges[worker].start(Start("together", 0, self.incarnations(peers)), 0)

    def join(self, worker: int, helper: int, sizes: dict[str, int], load) -> int:
        """Join by a helper that serves meanwhile in another thread; returns the round at which the joiner stands."""
        others = [peer for peer in range(len(self.buses)) if peer != worker]
        for other in others:
            self.buses[other].follow(worker, self.buses[worker].incarnation)
        return self.exchanges[worker].start(Start("join", 0, self.incarnations(others), helper), 0, sizes, load)

    def renew(self, worker: int) -> None:
        """Another incarnation of a worker, which has not started yet."""
        old = self.buses[worker]
        self.buses[worker] = old._hub.bus(worker, old.servers[0], f"{old.incarnation}-again")
        zeros = np.zeros(self.size, np.float32)
        self.exchanges[worker] = Exchange(self.buses[worker], self._layout, zeros, self._rules, self.lines.append)

    def serve(self, helper: int, make_state) -> None:
        """Wait until a peer has asked for the helper's state, and give it."""
        exchange = self.exchanges[helper]
        exchange.gate.until(lambda: bool(exchange._inbox._requests), lambda: "a request to join")
        exchange.serve(make_state)

    def deliver(self) -> None:
        """Every worker that is not deaf reads the messages that are there."""
        with self._lock:
            for worker, exchange in enumerate(self.exchanges):
                if worker not in self.deaf:
                    for reader in exchange._session._readers:
                        reader.read()
        for exchange in self.exchanges:
            exchange.gate.touch()

    def together(self, job: Callable[[int, Exchange], object], workers: Sequence[int] | None = None) -> list:
        """`job(worker, exchange)` for several workers at once; results in order."""
        workers = range(len(self.exchanges)) if workers is None else workers
        return in_threads([lambda w=w: job(w, self.exchanges[w]) for w in workers], 30.0)

    def finish(self, values_of: Callable[[int], np.ndarray] | None = None) -> list[np.ndarray]:
        """End all together; returns the remainder of each worker, float32 (size,), zeros where there is none."""

        def end(worker: int, exchange: Exchange) -> np.ndarray:
            left = exchange.finish(np.zeros(self.size, np.float32) if values_of is None else values_of(worker))
            return np.zeros(self.size, np.float32) if left is None else left

        return self.together(end)

    def dropped(self) -> list[dict[str, int]]:
        return [exchange.stats()["dropped"] for exchange in self.exchanges]


def rules(**changes) -> Options:
    """`RULES` with changes."""
    return replace(RULES, **changes)


def close(found, expected, slip=2e-5):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=slip)


# --- codecs by hand, of vectors of no more than one block ---------------------------------------


def exact(values):
    return values


def int8(values):
    """Rounded to the nearest of 127 steps of the largest value."""
    scale = np.abs(values).max() / 127
    return np.rint(values / scale) * scale if scale else values


def sign(values):
    return np.where(np.signbit(values), -1, 1) * np.abs(values).mean()


def topk(values):
    """The largest value alone, as the codec keeps of so few."""
    only = np.zeros_like(values)
    only[np.abs(values).argmax()] = values[np.abs(values).argmax()]
    return only


def float16(values):
    """Rounded to eleven bits."""
    return values.astype(np.float16).astype(np.float64)


QUANTISE = {"raw": exact, "float16": float16, "int8": int8, "sign": sign, "topk": topk}
