"""The cost of the norm gate and the robust rules: one worker's own work in a round, with and without them.

    python tests/bench/rules.py [--values N] [--parts N] [--workers N ...]

The exchange rule alone, without a wire: copy out, encode, screen, reduce, apply, of one part in a round; in seconds of
this process, as the median of many rounds, and as a share of that of the mean without a gate in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from degan.learners.casts import torch_cast
from peers.codecs.exact import build
from peers.exchange.factory import make_rule
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.types import Received
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from peers.vectors.reduce import RULES, squares
from tests.bench.table import finish, show

VALUES = 4_240_320  # DEGAN's model.
# An exact codec sends weights, from which the rule has to subtract the last agreed ones first.
BARS = {"float16": 0.25, "raw": 0.75}
KINDS = {"mean, no gate": ("mean", 0.0), "mean": ("mean", 10.0), **{rule: (rule, 10.0) for rule in RULES}}


class Worker:
    """One worker's exchange rule for parameters, and the messages of its peers in every round."""

    def __init__(self, kind: str, codec: str, values: int, parts: int, workers: int):
        rule, gate = KINDS[kind]
        self._layout = ExchangeLayout(Schedule(values, parts), build(codec, cast=torch_cast), 0, b"benchmrk", (), True)
        self._mine, self._buffers, self._round = np.zeros(values, np.float32), BufferPool(workers + 4), 0
        rules = Options(slack=0, exchange="parameters", reduce=rule, norm_gate=gate)
        peers = tuple(range(1, workers))
        self._rule = make_rule(rules, 0, self._layout, self._mine, self._buffers)
        random, largest = np.random.default_rng(0), self._layout.largest.size
        self._theirs = {peer: random.standard_normal(largest, np.float32) * np.float32(1e-3) for peer in peers}

    def round(self) -> float:
        """Seconds of the main thread, without reading and decoding the messages of the others."""
        self._round += 1
        part = self._layout.schedule.slice(self._round)
        began = time.process_time()
        leaving = self._rule.offer(self._round, part, self._mine)
        spent_s = time.process_time() - began
        for _ in self._rule.encoder.encode(leaving, {}):
            pass
        items = []
        for peer, change in self._theirs.items():
            values = self._buffers.take(part.size)
            values[:] = change[: part.size]
            items.append(
                Received(
                    *("part", peer, "a", self._round, part, values),
                    extras=dict(leaving.extras),
                    squares=squares(values),
                )
            )
        began = time.process_time()
        self._rule.collect(self._round, self._mine, items, len(items))
        spent_s += time.process_time() - began
        for item in items:
            self._buffers.give(item.values)
        return spent_s


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=VALUES)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args(words)
    rows, bars = [], []
    for workers in arguments.workers:
        for codec, bar in BARS.items():
            made = {kind: Worker(kind, codec, arguments.values, arguments.parts, workers) for kind in KINDS}
            times: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(arguments.rounds):
                for kind, worker in made.items():
                    times[kind].append(worker.round())
            middle = {kind: statistics.median(found[len(found) // 4 :]) for kind, found in times.items()}
            share = middle["mean"] / middle["mean, no gate"] - 1
            label = f"{workers} workers, {codec}"
            rows.append({"a round, in ms": label} | {kind: 1000 * found for kind, found in middle.items()})
            bars.append((f"the gate's share of the rule's work, {label}", share, bar, share <= bar))
    show(f"{arguments.values:,} values in {arguments.parts} parts", rows)
    return finish("rules", bars, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
