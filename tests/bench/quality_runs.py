"""One run of the quality benchmark: its settings, workers forked from a process that has torch loaded, its figures.

The workers are those of `python -m degan.worker`, each a process of its own with a real Redis server of its own. The
fork saves only the seconds that a new Python needs to load torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import torch

# Imported before the fork: the first optimiser of a process loads this module, which takes three seconds.
import torch._dynamo

import config
from config.settings.experiment import Experiment
from degan import models
from degan.data.sources import load
from degan.metrics import classifier
from degan.runs.lines import read_lines
from degan.worker.__main__ import main as work
from tests.servers import redis_server

EXPERIMENT = "mnist-degan"
WORKERS = 4
RUN_TIMEOUT_S = 1800.0
QUIET = (
    "device=cpu",
    "run.log_every=50",
    "run.snapshot_every=0",
    "run.checkpoint_every=0",
    "connect_timeout_s=120",
    # The benchmark may be stopped and continued (SIGSTOP, SIGCONT), servers included: no lease must expire.
    "bus.lease_s=3600",
)


class RunError(Exception):
    """A run failed; the text has the last lines of its workers."""


@dataclass(frozen=True)
class Setting:
    """A setting to compare.

    Attributes:
        label: its name in the table and in the results.
        words: overrides of the experiment, as of `--set`.
        workers: their number; 1 for the base line with all the data in one place.
        base: the experiment that the words change.
    """

    label: str
    words: tuple[str, ...]
    workers: int = WORKERS
    base: str = EXPERIMENT

    @classmethod
    def exchange(cls, rule: str, codec: str, parts: int | str, slack: int) -> Setting:
        """A setting of partial exchange; `rule` is parameters, or the rule of the gradients: mean, sum or alike.

        With mean and sum a worker's own gradient enters at once; with alike it enters when the others take it.
        """
        words = {
            "mean": ("mode.exchange=gradients", "mode.reduce=mean"),
            "sum": ("mode.exchange=gradients", "mode.reduce=sum"),
            "alike": ("mode.exchange=gradients", "mode.reduce=mean", "mode.own=delayed"),
            "parameters": ("mode.exchange=parameters",),
        }[rule]
        name, _, percent = codec.removesuffix("%").partition(" ")
        if percent:
            words = (*words, f"mode.topk_fraction={float(percent) / 100:g}")
        label = f"{rule if rule == 'parameters' else f'gradients {rule}'} {codec} parts {parts} slack {slack}"
        return cls(label, (*words, f"mode.codec={name}", f"mode.parts={parts}", f"mode.slack={slack}"))

    def experiment(self, words: Sequence[str], seed: int, steps: int, peers: Sequence[str] | None = None) -> Experiment:
        """The settings of one run; without `peers` they are not for running.

        Raises:
            config.UsageError: degan does not have such a setting.
        """
        run = [f"seed={seed}", f"run.steps={steps}", f"run.evaluate_every={steps}", *QUIET]
        urls = self.workers if peers is None else "[" + ", ".join(peers[: self.workers]) + "]"
        return config.load(self.base, [*self.words, *run, *words, f"peers={urls}"])


def prepare(settings: Experiment) -> int:
    """Get the data and the metric's classifier ready; returns the number of values of the model.

    Raises:
        config.UsageError: the data is missing.
    """
    # A fork is safe only while this process has started no pool of threads.
    torch.set_num_threads(1)
    source = load(settings.data, settings.model.image_size, "train")
    classifier.obtain(source)
    pair = models.build(settings.model, source.sample_shape)
    return sum(weights.numel() for network in pair for weights in network.parameters())


class Bench:
    """Runs, one after the other, on real servers that are started once.

    Args:
        urls: a Redis for each worker.
        folder: for the run folders; each is removed after its run.
    """

    def __init__(self, urls: Sequence[str], folder: Path):
        self._urls, self._folder = urls, folder
        self._forks = multiprocessing.get_context("fork")

    def run(self, setting: Setting, words: Sequence[str], seed: int, steps: int) -> dict[str, Any]:
        """Train and evaluate once.

        Returns:
            The figures of the run, by name; lists are in worker order.

        Raises:
            RunError: a worker failed.
        """
        settings = setting.experiment(words, seed, steps, self._urls)
        folder = self._folder / "run"
        folder.mkdir()
        try:
            file = folder / "settings.yaml"
            file.write_text(config.dump(settings), encoding="utf-8")
            began, began_cpu_s = time.monotonic(), _children_cpu_s()
            self._work(file, folder, setting.workers)
            figures = _figures(folder, steps, setting.workers)
            figures["seconds"] = round(time.monotonic() - began, 1)
            # On a machine with other work the CPU seconds are the comparable figure.
            figures["cpu_s"] = round(_children_cpu_s() - began_cpu_s, 1)
            return figures
        finally:
            shutil.rmtree(folder)
            for url in self._urls:
                with contextlib.closing(redis.Redis.from_url(url)) as client:
                    client.flushall()

    def _work(self, file: Path, folder: Path, workers: int) -> None:
        logs = [folder / f"log-{number}.txt" for number in range(workers)]
        children = [
            self._forks.Process(
                target=_live, args=([str(n), "--config", str(file), "--out", str(folder)], log), daemon=True
            )
            for n, log in enumerate(logs)
        ]
        deadline = time.monotonic() + RUN_TIMEOUT_S
        try:
            for child in children:
                child.start()
            # The others wait for a failed worker, so all are watched together.
            while any(child.exitcode is None for child in children) and not any(child.exitcode for child in children):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            for number, child in enumerate(children):
                if child.exitcode is None or child.exitcode:
                    how = "still runs" if child.exitcode is None else f"ended with {child.exitcode}"
                    last = logs[number].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
                    raise RunError(f"worker {number} {how}: {' | '.join(last)}")
        finally:
            for child in children:
                if child.exitcode is None:
                    child.kill()
                child.join(10)


def _children_cpu_s() -> float:
    """User and system time of the workers that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _live(words: list[str], log: Path) -> None:
    """Run a worker in the child, from begin to end, with its output in a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(handle, standard)
    code = work(words)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _figures(folder: Path, steps: int, workers: int) -> dict[str, Any]:
    """The figures of a run folder."""
    metrics = {
        (line["metric"], line["worker"]): line["value"]
        for line in read_lines(folder / "metrics.jsonl")
        if line["step"] == steps
    }
    stats = [read_lines(folder / f"w{number}" / "stats.jsonl") for number in range(workers)]

    def of_all(metric: str) -> list[float | None]:
        return [metrics[metric, number] for number in range(workers)]

    def mean(name: str) -> float:
        return sum(sum(line[name] for line in lines) / len(lines) for lines in stats) / workers

    return {
        "fid": of_all("fid5000_classifier"),
        "coverage": of_all("coverage5000_classes"),
        "bytes_per_step": sum(lines[-1]["sent_bytes"] for lines in stats) / workers / steps,
        "dropped": sum(sum(lines[-1]["dropped"].values()) for lines in stats),
        "staleness": round(mean("staleness_mean"), 3),
        "step_s": round(mean("step_s"), 5),
        "wait_s": round(mean("wait_s"), 5),
    }


@contextlib.contextmanager
def open_bench(servers: int = WORKERS) -> Iterator[Bench]:
    """Start the servers and end them."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(redis_server()) for _ in range(servers)]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="degan-quality-"))
        yield Bench(urls, Path(folder))
