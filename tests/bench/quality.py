"""The quality of the pictures for the bytes sent: MNIST's even and odd digits on four workers, setting by setting.

    python tests/bench/quality.py --data ROOT [--seeds 1,2,3] [--settings TEXT ...] [--full] [--budget-s N]

Every finished run is a line of the results file, and a run with a line is not repeated: the benchmark can be stopped
at any time and started again. First come the settings of the bar, with all seeds; then the base lines and the
neighbours of two centres, one thing changed at a time, with the first seed; then the other seeds; with --full the
rest of the grid as well.

The bar: a setting that sends at most 1/16 of the full vector's bytes a step has a Frechet distance of at most 1.15
times that of the synchronous full exchange. The distance of a run is its worst worker's, that of a setting the
median over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# One thread each: more threads only get into each other's way, and a process with a pool must not fork.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from config import UsageError  # noqa: E402
from tests.bench.quality_runs import Bench, RunError, Setting, open_bench, prepare  # noqa: E402
from tests.bench.table import finish, show  # noqa: E402

MODEL = ("model.name=dcgan", "model.width=16")
SMALL, BAR = 1 / 16, 1.15

SYNCHRONOUS = Setting("synchronous full exchange", Setting.exchange("mean", "raw", 1, 0).words)
DECISIVE = (SYNCHRONOUS.label, Setting.exchange("parameters", "int8", 5, 2).label)
BASE_LINES = (
    SYNCHRONOUS,
    Setting("local", ("mode.name=local",)),
    Setting("all data on one worker, batch 32", ("mode.name=local", "data.split.kind=iid"), 1),
    Setting("all data on one worker, batch 128", ("mode.name=local", "data.split.kind=iid", "data.batch_size=128"), 1),
)
RULES, CODECS, PARTS, SLACKS = (
    ("mean", "sum", "parameters"),
    ("raw", "float16", "int8", "topk 1%"),
    (4, 16),
    (2, 0, 8),
)


def star() -> Iterator[Setting]:
    """The base lines, the rules side by side, then their neighbours, and the settings that send least."""
    yield from BASE_LINES
    exchange = Setting.exchange
    for rule in RULES:
        yield exchange(rule, "float16", 4, 2)
    # Settings with far less than a sixteenth of the bytes, and with almost a sixteenth.
    yield exchange("parameters", "int8", 16, 2)
    yield exchange("parameters", "int8", 5, 2)
    yield exchange("parameters", "int8", 5, 0)
    for rule in ("parameters", "mean"):
        yield exchange(rule, "float16", 16, 2)
        yield exchange(rule, "int8", 4, 2)
        yield exchange(rule, "topk 1%", 4, 2)
        yield exchange(rule, "float16", 4, 0)
        yield exchange(rule, "float16", 4, 8)
        yield exchange(rule, "raw", 4, 2)
        # The whole vector in every step, but small.
        yield exchange(rule, "topk 1%", 1, 0)
    yield exchange("parameters", "sign", 1, 0)
    yield exchange("parameters", "raw", 1, 0)
    yield exchange("alike", "sign", 1, 0)
    yield exchange("alike", "int8", 1, 0)
    yield exchange("alike", "float16", 1, 2)
    yield exchange("mean", "float16", 1, 2)
    yield exchange("sum", "float16", 16, 2)
    yield exchange("mean", "float16", "auto", 2)
    yield exchange("parameters", "float16", "auto", 2)


def grid() -> Iterator[Setting]:
    """Every rule with every codec, number of parts and bound; the usual bound first, for an unfinished grid."""
    for slack in SLACKS:
        for parts in PARTS:
            for codec in CODECS:
                for rule in RULES:
                    yield Setting.exchange(rule, codec, parts, slack)


class Results:
    """The finished runs of one experiment, in a file of JSON lines that may hold others as well.

    Args:
        path: the file, which need not exist.
        same: the values that a line of this experiment has.
    """

    def __init__(self, path: Path, same: dict[str, Any]):
        self._path, self._same = path, same
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # A run whose line was cut off in the middle is run again.
        self._runs = [run for run in map(_parsed, lines) if run and all(run.get(k) == v for k, v in same.items())]

    def has(self, label: str, seed: int) -> bool:
        return any(run["setting"] == label and run["seed"] == seed for run in self._runs)

    def add(self, label: str, seed: int, figures: dict[str, Any]) -> None:
        run = {"setting": label, "seed": seed, **self._same, **figures}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        self._runs.append(run)

    def of(self, label: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
        return [run for run in self._runs if run["setting"] == label and run["seed"] in seeds]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def worst(run: dict[str, Any]) -> float:
    """The Frechet distance of the run's worst worker; a distance that is no number is the worst of all."""
    return max(math.inf if value is None else value for value in run["fid"])


def summary(label: str, runs: Sequence[dict[str, Any]], full_bytes: int) -> dict[str, Any]:
    """The figures of a setting over its runs."""
    fids = [worst(run) for run in runs]
    sent = statistics.median(run["bytes_per_step"] for run in runs)
    return {
        "setting": label,
        "seeds": len(runs),
        "bytes_per_step": round(sent),
        "share": round(sent / full_bytes, 6),
        "fid": round(statistics.median(fids), 4),
        "fid_range": [round(min(fids), 4), round(max(fids), 4)],
        "coverage": min(min(run["coverage"]) for run in runs),
        "seconds": round(statistics.median(run["seconds"] for run in runs), 1),
    }


def collect(settings: Sequence[Setting], results: Results, seeds: Sequence[int], full_bytes: int) -> list[dict]:
    """A summary of each setting that has a run, in the order of the bytes that they send."""
    found = ((setting.label, results.of(setting.label, seeds)) for setting in settings)
    rows = [summary(label, runs, full_bytes) for label, runs in found if runs]
    return sorted(rows, key=lambda row: (row["bytes_per_step"], row["fid"]))


def cells(row: dict[str, Any], reference: float | None) -> dict[str, str]:
    """The cells of a row as text."""
    low, high = row["fid_range"]
    share = row["share"]
    return {
        "setting": row["setting"],
        "bytes a step": f"{row['bytes_per_step']:,.0f}",
        "of the full vector": "0" if not share else f"1/{1 / share:.3g}" if share < 0.5 else f"{share:.2f}",
        "FID": f"{row['fid']:.2f}",
        "range": f"{low:.2f} to {high:.2f}" if row["seeds"] > 1 else "",
        "of synchronous": f"{row['fid'] / reference:.2f}" if reference else "",
        "classes": f"{row['coverage']:.0f}",
        "seeds": str(row["seeds"]),
        "seconds": f"{row['seconds']:.0f}",
    }


def glance(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, str]], set[str]]:
    """The grid's distances and classes, a line for each rule and codec; and the labels of its settings."""
    found, table, labels = {row["setting"]: row for row in rows}, [], set()
    for rule in RULES:
        for codec in CODECS:
            line = {"rule": rule, "codec": codec}
            for parts in PARTS:
                for slack in sorted(SLACKS):
                    row = found.get(Setting.exchange(rule, codec, parts, slack).label)
                    labels |= {row["setting"]} if row else set()
                    line[f"parts {parts}, slack {slack}"] = f"{row['fid']:.1f} ({row['coverage']:.0f})" if row else ""
            table.append(line)
    return table, labels


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table in Markdown."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python tests/bench/quality.py", description=__doc__.splitlines()[0])
    found.add_argument("--data", metavar="ROOT", help="the folder with MNIST/raw (default: DEGAN_TEST_DATA)")
    found.add_argument("--results", type=Path, default=Path("runs/quality.jsonl"), metavar="FILE")
    found.add_argument("--settings", action="append", metavar="TEXT", help="only those with this text; repeatable")
    found.add_argument("--seeds", default="1,2,3", metavar="1,2,3")
    found.add_argument("--steps", type=int, default=3000)
    found.add_argument("--model", default=",".join(MODEL), metavar="a.b=c,...", help="settings of every run")
    found.add_argument("--budget-s", type=float, default=math.inf, metavar="N", help="start no run after so long")
    found.add_argument("--full", action="store_true", help="the whole grid")
    found.add_argument("--table-only", action="store_true", help="run nothing")
    found.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as well")
    return found


def chosen_settings(is_full: bool, texts: Sequence[str] | None, words: Sequence[str], steps: int) -> list[Setting]:
    """The settings to run, in order; a setting that degan does not have is named and left out."""
    unique = {setting.label: setting for setting in (*star(), *(grid() if is_full else ()))}
    found = []
    for setting in unique.values():
        if texts and not any(text in setting.label for text in texts):
            continue
        try:
            setting.experiment(words, 1, steps)
            found.append(setting)
        except UsageError as error:
            print(f"skipped: {setting.label}: {error}", flush=True)
    return found


def run_all(
    bench: Bench,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    words: Sequence[str],
    steps: int,
    results: Results,
    deadline: float,
) -> list[str]:
    """Run the settings without a result; returns the failed ones."""
    runs = [(setting, seed) for seed in seeds for setting in settings if not results.has(setting.label, seed)]
    # The settings of the bar get all their seeds first.
    missing = [run for run in runs if run[0].label in DECISIVE] + [run for run in runs if run[0].label not in DECISIVE]
    failed = []
    for number, (setting, seed) in enumerate(missing, 1):
        if time.monotonic() > deadline:
            print(f"the budget is spent; {len(missing) - number + 1} runs are left for another time", flush=True)
            break
        begun = f"{number}/{len(missing)} {setting.label}, seed {seed}"
        try:
            figures = bench.run(setting, words, seed, steps)
        except RunError as error:
            failed.append(f"{setting.label}, seed {seed}")
            print(f"{begun}: FAILED: {error}", flush=True)
            continue
        results.add(setting.label, seed, figures)
        print(f"{begun}: FID {worst(figures):.2f}, {figures['seconds']:.0f} s", flush=True)
    return failed


def bars_of(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[tuple[str, Any, float, bool]]:
    """The bar, on the settings that have all seeds."""
    whole = [row for row in rows if row["seeds"] == len(seeds)]
    reference = next((row["fid"] for row in whole if row["setting"] == SYNCHRONOUS.label), None)
    small = [row for row in whole if 0 < row["share"] <= SMALL]
    if reference is None or not small:
        return [("FID of synchronous, with at most 1/16 of the bytes: not all runs are there", None, BAR, False)]
    best = min(small, key=lambda row: row["fid"])
    ratio = best["fid"] / reference
    return [(f"FID of synchronous, with at most 1/16 of the bytes: {best['setting']}", ratio, BAR, ratio <= BAR)]


def main(argv: list[str]) -> int:
    words = parser().parse_args(argv)
    root = words.data or os.environ.get("DEGAN_TEST_DATA")
    if not root:
        print("quality: no data; give --data ROOT or DEGAN_TEST_DATA, a folder with MNIST/raw", file=sys.stderr)
        return 2
    seeds, began = [int(seed) for seed in words.seeds.split(",")], time.monotonic()
    model = words.model.split(",")
    overrides = [*model, f"data.root={root}"]
    # With SIGTERM the servers are taken down as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        settings = chosen_settings(words.full or words.table_only, words.settings, overrides, words.steps)
        full_bytes = 4 * prepare(SYNCHRONOUS.experiment(overrides, 1, words.steps))
    except UsageError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    results, failed = Results(words.results, {"steps": words.steps, "model": ",".join(model)}), []
    if not words.table_only:
        with open_bench() as bench:
            failed = run_all(bench, settings, seeds, overrides, words.steps, results, began + words.budget_s)
    rows = collect(settings, results, seeds, full_bytes)
    reference = next((row["fid"] for row in rows if row["setting"] == SYNCHRONOUS.label), None)
    shown = [cells(row, reference) for row in rows]
    title = f"{', '.join(model)}; {words.steps:,} steps; full vector {full_bytes:,} bytes; FID of the worst worker"
    show(title, shown)
    tables = [shown]
    if not words.settings and (words.full or words.table_only):
        grid_table, labels = glance(rows)
        show("FID (and classes) of the grid, by rule and codec", grid_table)
        tables = [[row for row in shown if row["setting"] not in labels], grid_table]
    if words.markdown:
        words.markdown.parent.mkdir(parents=True, exist_ok=True)
        words.markdown.write_text("\n".join(map(markdown, tables)), encoding="utf-8")
    bars = [*bars_of(rows, seeds), ("runs that failed", len(failed), 0, not failed)]
    return finish("quality", bars, {"steps": words.steps, "model": model, "full_bytes": full_bytes, "rows": rows})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
