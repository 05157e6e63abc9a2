"""Fleets of workers in threads, and a stand-in vector to exchange where no GAN is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from peers.bus.door import Bus
from peers.bus.memory import MemoryHub
from peers.bus.redis.bus import RedisBus
from peers.codecs.exact import CODECS
from peers.exchange.auto import CHOICES, FIRST
from peers.exchange.exchange import Exchange
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.session.meet import Rendezvous, Start
from peers.types import Received, Slice
from peers.vectors.graph import complete
from peers.vectors.partition import Schedule

HANG_S = 60.0


def in_threads(jobs: list[Callable[[], object]], timeout_s: float = HANG_S) -> list[object]:
    """Run every job in a thread of its own; results in order. The first exception is raised; a hang is a failure."""
    results: list[object] = [None] * len(jobs)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
        if errors:
            break
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a worker hangs"
    return results


def close(modes: list) -> None:
    """Close the workers of a fleet at once: each waits until its threads have ended."""
    in_threads([mode.close for mode in modes])


def make_layout(
    size: int,
    parts: int | str = 1,
    codec: str = "raw",
    state_size: int = 0,
    may_be_whole: bool = False,
) -> ExchangeLayout:
    is_auto = parts == "auto"
    schedule = Schedule(size, FIRST if is_auto else parts)
    return ExchangeLayout(schedule, CODECS[codec], state_size, b"testtest", CHOICES if is_auto else (), may_be_whole)


def contribution(
    sender: int,
    incarnation: str,
    round: int,
    part: Slice,
    values: np.ndarray,
    last_sequence: int = 0,
    extras: dict[str, float] | None = None,
    is_whole: bool = False,
    squares: float | None = None,
) -> Received:
    """A received part of a peer, as the decoder returns it."""
    extras = {} if extras is None else extras
    return Received("part", sender, incarnation, round, part, values, {}, last_sequence, extras, is_whole, squares)


def term(sender: int, incarnation: str, norm: float) -> Received:
    """A contribution with nothing but a norm."""
    return Received("part", sender, incarnation, 1, norm=norm)


def memory_buses(workers: int) -> list[Bus]:
    hub = MemoryHub()
    return [hub.bus(worker, complete(worker, workers), f"life-{worker}") for worker in range(workers)]


def redis_buses(workers: int, url: str, run: str) -> list[Bus]:
    return [
        RedisBus(run, worker, [url] * workers, f"life-{worker}", complete(worker, workers), 10, 10)
        for worker in range(workers)
    ]


class Fleet:
    """Exchanges of n workers that have already met.

    Args:
        buses: one a worker.
        layout, rules: as of `Exchange`.
        size: number of values in the vector.
        initial: the vector with which every worker begins; zeros where not given.
    """

    def __init__(
        self, buses: list[Bus], layout: ExchangeLayout, size: int, rules: Options, initial: np.ndarray | None = None
    ):
        self.buses, self.layout, self.size, self.rules = buses, layout, size, rules
        self.lines: list[str] = []
        self.rendezvous = [
            Rendezvous(bus, {"layout": size}, rules.lease_s, 20.0, self.lines.append, self._fail) for bus in buses
        ]
        first = np.zeros(size, dtype=np.float32) if initial is None else initial
        self.exchanges: list[Exchange] = [Exchange(bus, layout, first, rules, self.lines.append) for bus in buses]
        self.failures: list[BaseException] = []

    def _fail(self, error: BaseException) -> None:
        self.failures.append(error)

    def run(self, job: Callable[[int, Exchange], object], timeout_s: float = HANG_S) -> list[object]:
        """Meet, start, and run `job(worker, exchange)` for every worker in a thread; close everything."""

        def live(worker: int) -> object:
            exchange, meeting = self.exchanges[worker], self.rendezvous[worker]
            meeting.claim([])
            start: Start = meeting.meet([], {})
            exchange.start(start, 0)
            return job(worker, exchange)

        try:
            return in_threads([lambda w=w: live(w) for w in range(len(self.buses))], timeout_s)
        finally:
            self.close()

    def close(self) -> None:
        for exchange in self.exchanges:
            exchange.close()
        for meeting in self.rendezvous:
            meeting.close()
        for bus in self.buses:
            bus.close()


def integers(rng: np.random.Generator, size: int) -> np.ndarray:
    """Values whose sums are exact in float32, so that sums can be compared bit for bit."""
    return rng.integers(-64, 65, size).astype(np.float32)
