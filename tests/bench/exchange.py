"""Benchmark of the wire: a full exchange between two workers, against its rivals and its limit, in the same run.

Two workers, each with its own redis-server, on loopback. As the launcher starts them, a worker writes to its own
server through a unix socket and reads the other's over TCP, and so does the bare socket; with --tcp all of it is
TCP. ZeroMQ and Gloo have TCP: in a real deployment all their messages go from host to host. Only one of degan's two
hops does, and this hop is TCP here as well.

A round is over when every worker has the whole vector of the other (degan's: and the mean of both). Every method
has two worker processes of its own, because the cost of large pieces of memory depends on the former work of a
process (after Gloo ZeroMQ takes a third less: its messages lie in memory that is there already). A method runs in
blocks, the blocks of all methods take turns, a block's figure is the median of its rounds, and a ratio is the median
of the ratios of blocks of one turn.

The tables have the CPU of a round for both workers and for both servers. `off the wire` is the CPU of both workers
for the same round without sending: encoding with error feedback, checksums, decoding, norms for the gate and the mean,
one after the other in one thread with nothing else running. The bare socket does nothing of that.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import redis
import torch

from degan.learners.casts import torch_cast
from peers.bus.redis.bus import RedisBus
from peers.bus.redis.client import split_socket
from peers.codecs.exact import NAMES, RAW_BYTES, build
from peers.exchange.exchange import Exchange
from peers.exchange.factory import make_rule
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.session.meet import Rendezvous
from peers.types import Entry, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from peers.wire.assembler import Assembler
from tests.bench.rivals import BareSocket, Gloo, Rival, ZeroMq
from tests.bench.table import finish, show
from tests.servers import free_port, redis_server

VALUES = 4_240_320  # DEGAN's model.
KEEP_ROUNDS = 8
BARE_COUNT = 4
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
RIVALS = ("bare socket", "gloo all_gather", "gloo all_reduce", "zeromq pickle")


def _layout(codec: str, values: int) -> ExchangeLayout:
    return ExchangeLayout(Schedule(values, 1), build(codec, cast=torch_cast), 0, b"benchmrk")


def off_the_wire_s(codec: str, values: int, rounds: int = 9) -> float:
    """Median CPU seconds of one worker in a round, without sending and receiving."""
    layout, everything, buffers = _layout(codec, values), Slice(0, values), BufferPool()
    random, found = np.random.default_rng(0), []
    gradient, other = (random.standard_normal(values, np.float32) * np.float32(1e-3) for _ in range(2))
    rule, theirs = (make_rule(Options(slack=0), rank, layout, np.zeros(values, np.float32), buffers) for rank in (0, 1))
    said = [
        (header, bytes(payload)) for header, payload in theirs.encoder.encode(theirs.offer(1, everything, other), {})
    ]
    assembler = Assembler(layout, buffers)
    for round in range(1, rounds + 1):
        began = time.process_time()
        for _ in rule.encoder.encode(rule.offer(round, everything, gradient), {}):
            pass
        for number, (header, payload) in enumerate(said, 1):
            message = assembler.feed(Entry(1, "incarnation", number, True, header, payload))
        message.round = round
        rule.collect(round, gradient, [message], 1)
        found.append(time.process_time() - began)
        buffers.give(message.values)
    return statistics.median(found)


class Degan:
    """The exchange as `degan.modes.partial_exchange` builds it, with a gradient that costs nothing."""

    def __init__(self, rank: int, urls: list[str], run: str, codec: str, values: int, **secure: Any):
        self.values = values
        self._gradient = np.random.default_rng(rank).standard_normal(values, np.float32) * np.float32(1e-3)
        self._bus = RedisBus(run, rank, urls, f"life-{rank}", [1 - rank], **secure)
        layout = _layout(codec, values)
        rules = Options(slack=0, keep_rounds=KEEP_ROUNDS)
        self._rendezvous = Rendezvous(self._bus, {"codec": codec}, rules.lease_s, 30.0, _silent, _silent)
        self._rendezvous.claim([])
        start = self._rendezvous.meet([], {})
        self._exchange = Exchange(self._bus, layout, np.zeros(values, np.float32), rules, _silent)
        self._exchange.start(start, 0)

    def round(self) -> None:
        self._exchange.exchange(self._gradient)

    def close(self) -> None:
        self._exchange.finish(np.zeros_like(self._gradient))
        self._exchange.close()
        self._rendezvous.close()
        self._bus.close()


def _silent(_: object) -> None:
    pass


def _open(method: str, rank: int, urls: list[str], ports: list[int], values: int, run: str) -> Rival:
    if method == "bare socket":
        entries = KEEP_ROUNDS * -(-4 * values // RAW_BYTES)
        return BareSocket(rank, urls, values, entries, BARE_COUNT)
    if method.startswith("gloo"):
        return Gloo(rank, ports[0], values, method.endswith("reduce"))
    if method.startswith("zeromq"):
        return ZeroMq(rank, (ports[0], ports[1]), values)
    return Degan(rank, urls, run, method.removeprefix("degan "), values)


def _work(rank: int, urls: list[str], values: int, pipe: Connection, open_rival: Callable = _open) -> None:
    """A worker process: opens a method, warms it up, runs rounds on request, and sends the seconds of each."""
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            method, run, ports, warm, rounds = pipe.recv()
            rival = open_rival(method, rank, urls, ports, values, run)
            for _ in range(warm):
                rival.round()
            pipe.send("warm")
            pipe.recv()
            times = [time.perf_counter()]
            for _ in range(rounds):
                rival.round()
                times.append(time.perf_counter())
            pipe.send([after - before for before, after in zip(times[:-1], times[1:], strict=True)])
            pipe.recv()
            rival.close()
            pipe.send("closed")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


class Figures(NamedTuple):
    """Figures of a block: median seconds a round, and CPU seconds a round of all, the workers, and the servers."""

    round_s: float
    cpu_s: float
    workers_cpu_s: float
    servers_cpu_s: float


class Pair:
    """Two servers, and for each method two worker processes.

    Args:
        urls: of the servers; after a comma may follow further text for `open_rival`.
        open_rival: called in a worker with a method's name; opens the measured method.
    """

    def __init__(self, urls: list[str], values: int, open_rival: Callable = _open):
        self._arguments = urls, values, open_rival
        self._clients = [redis.Redis.from_url(split_socket(url.split(",")[0])[0]) for url in urls]
        self._servers = [client.info("server")["process_id"] for client in self._clients]
        self._workers: dict[str, list[tuple[BaseProcess, Connection]]] = {}
        self._blocks = 0

    def _start(self) -> list[tuple[BaseProcess, Connection]]:
        urls, values, open_rival = self._arguments
        context, started = multiprocessing.get_context("spawn"), []
        for rank in range(2):
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(rank, urls, values, there, open_rival), daemon=True)
            worker.start()
            there.close()
            started.append((worker, here))
        return started

    def block(self, method: str, warm: int, rounds: int) -> Figures:
        """Run a block of a method."""
        if method not in self._workers:
            self._workers[method] = self._start()
        workers, pipes = zip(*self._workers[method], strict=True)
        for client in self._clients:
            client.flushall()
        self._blocks += 1
        ports = [free_port(), free_port()]
        _tell(pipes, (method, f"bench{self._blocks}", ports, warm, rounds))
        _hear(pipes)
        pids = [worker.pid for worker in workers], self._servers
        before = [sum(map(cpu_s, some)) for some in pids]
        _tell(pipes, "go")
        times = _hear(pipes)
        used_s = [sum(map(cpu_s, some)) - spent_s for some, spent_s in zip(pids, before, strict=True)]
        _tell(pipes, "close")
        _hear(pipes)
        round_s = statistics.median(max(both) for both in zip(*times, strict=True))
        return Figures(round_s, sum(used_s) / rounds, *(spent_s / rounds for spent_s in used_s))

    def close(self) -> None:
        started = [one for pair in self._workers.values() for one in pair]
        for _, pipe in started:
            pipe.close()
        for worker, _ in started:
            worker.join(10)
            if worker.is_alive():
                worker.kill()
        for client in self._clients:
            client.close()


def _tell(pipes: Sequence[Connection], what: object) -> None:
    for pipe in pipes:
        pipe.send(what)


def _hear(pipes: Sequence[Connection]) -> list:
    heard = []
    for pipe in pipes:
        if not pipe.poll(120):
            raise TimeoutError("a worker of the benchmark does not answer")
        heard.append(pipe.recv())
    return heard


def ratio(results: dict[str, list[Figures]], one: str, other: str, index: int = 0) -> float:
    """The median over the turns of the ratio of two methods' figures in one turn; infinite where the other's is 0.

    CPU time is counted in ticks of 10 ms, so the CPU time of very few short rounds is 0.
    """
    pairs = zip(results[one], results[other], strict=True)
    return statistics.median(a[index] / b[index] if b[index] else math.inf for a, b in pairs)


def _bars(results: dict[str, list[Figures]]) -> list[tuple[str, float, float, bool]]:
    wanted = [
        ("raw / zeromq pickle", "degan raw", "zeromq pickle", 0, 1.0),
        ("raw / gloo all_gather", "degan raw", "gloo all_gather", 0, 1.0),
        ("raw / bare socket", "degan raw", "bare socket", 0, 1.35),
        ("float16 / raw", "degan float16", "degan raw", 0, 0.75),
        ("float16 / raw, CPU", "degan float16", "degan raw", 1, 1.0),
    ]
    bars = []
    for label, one, other, index, limit in wanted:
        if one in results and other in results:
            value = ratio(results, one, other, index)
            bars.append((label, round(value, 3), limit, value <= limit))
    return bars


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=VALUES, help="float32 values of the vector")
    parser.add_argument("--turns", type=int, default=7, help="blocks of every method")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of a block")
    parser.add_argument("--only", nargs="*", default=[], help="methods whose name contains one of these")
    parser.add_argument("--tcp", action="store_true", help="reach one's own Redis by TCP as well")
    options = parser.parse_args(arguments)
    methods = [f"degan {name}" for name in NAMES] + list(RIVALS)
    methods = [m for m in methods if not options.only or any(word in m for word in options.only)]
    results: dict[str, list[Figures]] = {method: [] for method in methods}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="degan-bench-"))
        urls = []
        for rank in range(2):
            path = f"{folder}/{rank}.sock"
            url = stack.enter_context(redis_server(options=() if options.tcp else ("--unixsocket", path)))
            urls.append(url if options.tcp else f"{url}?socket={path}")
        pair = Pair(urls, options.values)
        try:
            for _ in range(options.turns):
                for method in methods:
                    # The outbox is full after these rounds: from then on Redis frees as much as it takes.
                    results[method].append(pair.block(method, KEEP_ROUNDS + 2, options.rounds))
        finally:
            pair.close()
    rows = [row(method, figures, options.values) for method, figures in results.items()]
    torch.set_num_threads(1)
    for line in rows:
        kind, _, codec = line["method"].partition(" ")
        line["off the wire"] = round(2e3 * off_the_wire_s(codec, options.values), 1) if kind == "degan" else 0.0
    show(f"A full exchange of {options.values:,} float32 between two workers", rows)
    names = {"ms": "ms a round", "cpu_ms": "CPU ms", "workers_cpu_ms": "workers", "servers_cpu_ms": "servers"}
    names["off_the_wire_cpu_ms"] = "off the wire"
    figures = {line["method"]: {name: line[column] for name, column in names.items()} for line in rows}
    return finish("exchange", _bars(results), {"values": options.values, "methods": figures})


def row(method: str, figures: list[Figures], values: int) -> dict[str, object]:
    middle = Figures(*map(statistics.median, zip(*figures, strict=True)))
    return {
        "method": method,
        "ms a round": round(1e3 * middle.round_s, 2),
        "lowest": round(1e3 * min(one.round_s for one in figures), 2),
        # The bytes of the gradient in float32: a codec delivers the same values in fewer bytes.
        "MB/s delivered": round(4 * values / middle.round_s / 1e6),
        "CPU ms": round(1e3 * middle.cpu_s, 1),
        "workers": round(1e3 * middle.workers_cpu_s, 1),
        "servers": round(1e3 * middle.servers_cpu_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
