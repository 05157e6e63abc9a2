"""Run folders for the tests of the report and of the comparison, and a strict parser of their pages."""

from __future__ import annotations

import html.parser
import json
import math
from pathlib import Path

import numpy as np

import config
from degan.artifacts.pictures import save_png


class Page(html.parser.HTMLParser):
    """Reads a page strictly: every tag that is opened is closed, in order; keeps the texts and attributes."""

    EMPTY = {"meta", "input", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def stats_line(worker, step, **changes):
    line = {"step": step, "time_s": step * 0.1 * (worker + 1), "images": step * 32}
    line |= {"d_loss": 1 / step, "g_loss": 0.7, "step_s": 0.1, "wait_s": 0.02, "live_peers": 1, "dropped": {}}
    line |= {"sent_bytes": step * 1000, "received_bytes": step * 1000, "staleness_mean": 1.5, "staleness_max": 3}
    return line | changes


def metric_lines(worker, steps, **fid):
    """Lines of the metrics; `fid` changes the values of the steps that it names: `s500=None`."""
    for step in steps:
        values = {"fid5000_classifier": 400 * math.exp(-step / 300) + 20 + worker, "fid5000_classifier_floor": 3.25}
        values |= {"coverage5000_classes": 9.0, "classes": 10.0, "tv5000_labels": 0.125}
        values["fid5000_classifier"] = fid.get(f"s{step}", values["fid5000_classifier"])
        for name, value in values.items():
            yield {"step": step, "worker": worker, "images": 0, "metric": name, "value": value, "seconds": 2.0}


def make_run(
    folder: Path, *overrides: str, workers: int = 2, steps: int = 1000, experiment: str = "mnist-degan"
) -> Path:
    """A run of workers that each measured every 250 steps, with all files complete."""
    folder.mkdir(parents=True)
    settings = config.load(experiment, [f"peers={workers}", f"run.steps={steps}", *overrides])
    (folder / "experiment.yaml").write_text(config.dump(settings))
    write_lines(
        folder / "metrics.jsonl", [line for w in range(workers) for line in metric_lines(w, range(0, steps + 1, 250))]
    )
    for worker in range(workers):
        lines = [stats_line(worker, step) for step in range(10, steps + 1, 10)]
        write_lines(folder / f"w{worker}" / "stats.jsonl", lines)
    for step in (0, steps):
        save_png(folder / f"fakes-{step:06d}.png", np.zeros((8, 8, 3), dtype=np.uint8))
    return folder


def round_line(worker, step, cohort=(0, 1), leader=0, **changes):
    """A worker's line in a mode with rounds: a worker outside the cohort trains on nothing and has no losses."""
    line = {"step": step, "round": step, "time_s": step * 0.1, "step_s": 0.1, "wait_s": 0.02, "exchange_s": 0.01}
    line |= {"images": 32 * 20 * step if worker in cohort else 0, "live_peers": 2, "dropped": {}}
    line |= {"leader": leader, "cohort": len(cohort), "answered": len(cohort), "void_rounds": 0, "late": 0}
    line |= {"sent_bytes": step * (2100 if worker == leader else 1050), "received_bytes": step * 1050}
    line |= {
        "predicted_sent_bytes": step * (2000 if worker == leader else 1000),
        "predicted_received_bytes": step * 1000,
    }
    line |= {"staleness_mean": 0.0, "staleness_max": 0}
    if worker in cohort:
        line |= {"d_loss": 1 / step, "g_loss": 0.7}
    return line | changes


def make_leader_based_run(
    folder: Path, *overrides: str, mode: str = "federated", workers: int = 3, steps: int = 100
) -> Path:
    """A run with rounds in which worker 0 leads and measures, and the last worker was never asked."""
    folder.mkdir(parents=True)
    words = [f"peers={workers}", f"run.steps={steps}", f"mode.name={mode}", *overrides]
    (folder / "experiment.yaml").write_text(config.dump(config.load("smoke", words)))
    write_lines(folder / "metrics.jsonl", metric_lines(0, range(0, steps + 1, 50)))
    for worker in range(workers):
        lines = [round_line(worker, step) for step in range(10, steps + 1, 10)]
        write_lines(folder / f"w{worker}" / "stats.jsonl", lines)
    save_png(folder / f"fakes-{steps:06d}.png", np.zeros((8, 8, 3), dtype=np.uint8))
    return folder
