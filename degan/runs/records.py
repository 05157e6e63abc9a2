"""What a run folder holds, read forgivingly: a run that died half-way still has something to tell.

Missing files are empty, lines that are no JSON object are skipped and counted, values that are no finite
number are None. A worker that restarted from a checkpoint wrote some steps twice: the newest line of a
step is kept, and counters that began again at zero are continued from where they stood.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import Experiment, UsageError, load, parse

COUNTERS = (
    *("time_s", "images", "sent_bytes", "received_bytes", "predicted_sent_bytes", "predicted_received_bytes"),
    *("late", "swaps", "swaps_missed"),
)
# The modes in which a step is a round that somebody leads, and one worker measures for all.
LED = ("federated", "multi_discriminator")
MAX_PICTURES = 24
MAX_PICTURE_BYTES = 8_000_000  # all pictures together
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Worker:
    """One worker's lines of stats.jsonl, by rising step, with what went wrong.

    `dropped` counts messages by reason over the whole run; `restarts` are (from step, to step).
    """

    number: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, float] = field(default_factory=dict)
    restarts: list[tuple[int, int]] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[float, float | None, float | None]]:
        """(step, seconds, value) a line that has `key`; None where that is no finite number.

        Lines without it are no gap: who did not train in a round has no loss of it.
        """
        return [(line["step"], line["time_s"], number(line[key])) for line in self.lines if key in line]

    def last(self, key: str) -> float | None:
        """The newest finite value of `key`."""
        found = self._nearest(key, range(len(self.lines) - 1, -1, -1))
        return None if found is None else found[1]

    def seconds_at(self, step: float) -> float | None:
        """When the worker reached `step`, between its lines by straight interpolation."""
        before, after = self._around("time_s", step)
        if after is not None:
            return _between(before or (0, 0.0), after, step)
        if before is None:
            return None
        return step * before[1] / before[0] if before[0] else None

    def count_at(self, key: str, step: float) -> float | None:
        """Where the counter `key` stood at `step`: between lines by straight interpolation, never beyond the last one.

        The first line counts what was done since a line's distance before it: since the start, or, for a worker
        that joined a run which was going on, since it came. None where the worker never counted this.
        """
        before, after = self._around(key, step)
        if after is None:
            return None if before is None else before[1]
        if before is None:
            steps = [line["step"] for line in self.lines]
            # The distance is the largest between two lines; the last of all may stand closer than the others.
            distance = max((high - low for low, high in itertools.pairwise(steps)), default=0) if len(steps) > 2 else 0
            before = (after[0] - distance if 0 < distance < after[0] else 0, 0.0)
        return _between(before, after, step) if step > before[0] else before[1]

    def _around(self, key: str, step: float) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
        """The nearest (step, value) before `step`, and at or after it."""
        at = bisect.bisect_left(self.lines, step, key=lambda line: line["step"])
        return self._nearest(key, range(at - 1, -1, -1)), self._nearest(key, range(at, len(self.lines)))

    def _nearest(self, key: str, places: range) -> tuple[int, float] | None:
        """(step, value) of the first of these lines that has a finite number."""
        for place in places:
            value = number(self.lines[place].get(key))
            if value is not None:
                return self.lines[place]["step"], value
        return None


@dataclass
class Run:
    """Everything that the report shows; `metrics` maps name -> worker -> [(step, seconds, value)].

    `experiment` is None where its file is missing or does not load; `plain` is what could be read of it even then.
    """

    folder: Path
    workers: dict[int, Worker]
    metrics: dict[str, dict[int, list[tuple[float, float | None, float | None]]]]
    experiment: Experiment | None
    settings: str
    plain: dict[str, Any]
    environment: dict[str, Any]
    shards: dict[str, Any] | None
    pictures: list[tuple[str, bytes]]
    pictures_left_out: int
    unreadable: dict[str, int]

    @property
    def mode(self) -> str:
        """The mode's name; "" where it is not known."""
        block = self.plain.get("mode", {"name": "partial_exchange"} if self.plain else None)
        return str(block.get("name", "")) if isinstance(block, dict) else ""

    @property
    def is_leader_based(self) -> bool:
        """Whether a step is a round that somebody leads."""
        return self.mode in LED or (not self.mode and any(w.last("leader") is not None for w in self.workers.values()))

    @property
    def planned_steps(self) -> int | None:
        """How many steps the run should have."""
        return self.experiment.run.steps if self.experiment else self._of_run("steps")

    @property
    def log_every(self) -> int:
        """Steps between two lines of a worker; 0 where it is not known."""
        return self.experiment.run.log_every if self.experiment else self._of_run("log_every") or 0

    def _of_run(self, key: str) -> int | None:
        """From settings that do not load: those of another degan, say."""
        block = self.plain.get("run")
        return _whole(block.get(key)) if isinstance(block, dict) else None

    @property
    def void_rounds(self) -> float | None:
        """Rounds that counted for nothing: the leader tells everybody the run's count, so the highest that was heard.

        None where nobody counts them.
        """
        known = [count for worker in self.workers.values() for _, _, count in worker.series("void_rounds")]
        return max((count for count in known if count is not None), default=None)

    @property
    def late(self) -> float | None:
        """Answers that came too late: each is counted by whoever led and read it. None where nobody counts them."""
        known = [count for worker in self.workers.values() if (count := worker.last("late")) is not None]
        return sum(known) if known else None

    def measured(self) -> list[str]:
        """The metrics with a sample count in their name, floors apart: FID first, then coverage, TV, the rest."""
        order = ("fid", "coverage", "tv")
        names = [name for name in self.metrics if re.match(r"[a-z]+\d+_", name) and not is_floor(name)]
        return sorted(names, key=lambda name: (next((i for i, f in enumerate(order) if is_of(f, name)), 3), name))

    def floor(self, name: str) -> float | None:
        """The newest finite floor of a metric, of any worker."""
        return self.newest(f"{name}_floor")

    def newest(self, name: str) -> float | None:
        """The newest finite value of a metric, of any worker."""
        found = [point for line in self.metrics.get(name, {}).values() for point in line]
        values = [(step, value) for step, _, value in found if value is not None]
        return max(values)[1] if values else None


def is_floor(name: str) -> bool:
    """Whether a metric is the reference level of another: `fid5000_classifier_floor`."""
    return name.endswith("_floor")


def is_of(family: str, name: str) -> bool:
    """Whether a metric is of a family: `fid5000_classifier` is of `fid`."""
    return re.match(rf"{family}\d+_", name) is not None


def read_run(folder: Path) -> Run:
    """Read a run folder as the design's section 8 lays it out.

    Raises:
        UsageError: the folder is missing, or nothing in it was written by a run.
    """
    if not folder.is_dir():
        raise UsageError(f"no run folder {folder}")
    stats = {int(path.parent.name[1:]): path for path in folder.glob("w*/stats.jsonl") if _is_worker(path.parent.name)}
    if not (stats or (folder / "experiment.yaml").is_file() or (folder / "metrics.jsonl").is_file()):
        raise UsageError(f"{folder} is no run folder: it has no experiment.yaml, metrics.jsonl or w0/stats.jsonl")
    unreadable: dict[str, int] = {}
    experiment, text = None, _text(folder / "experiment.yaml")
    if (folder / "experiment.yaml").is_file():
        try:
            experiment = load(folder / "experiment.yaml")
        except UsageError:
            unreadable["experiment.yaml"] = 1
    workers = {index: Worker(index) for index in range(min(experiment.workers, 1024) if experiment else 0)}
    for index, path in stats.items():
        workers[index] = _worker(index, _lines(path, folder, unreadable))
    metrics = _metrics(_lines(folder / "metrics.jsonl", folder, unreadable), workers)
    pictures, left_out = _pictures(folder)
    return Run(
        folder=folder,
        workers=dict(sorted(workers.items())),
        metrics=metrics,
        experiment=experiment,
        settings=_without_passwords(text),
        plain=_plain(text),
        environment=_object(folder / "environment.json"),
        shards=_shards(_object(folder / "shards.json")),
        pictures=pictures,
        pictures_left_out=left_out,
        unreadable=unreadable,
    )


def number(value: Any) -> float | None:
    """`value` as a float, or None where it is none, not finite, or too large to be drawn (beyond 1e30)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) <= 1e30 else None


def _between(before: tuple[int, float], after: tuple[int, float], step: float) -> float:
    """The value at `step` on the straight line between two points."""
    share = (step - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 1.0
    return before[1] + share * (after[1] - before[1])


def _is_worker(name: str) -> bool:
    return re.fullmatch(r"w[0-9]{1,6}", name) is not None


def _whole(value: Any) -> int | None:
    value = number(value)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _plain(settings: str) -> dict[str, Any]:
    try:
        found = parse(settings)
    except UsageError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(path: Path) -> dict[str, Any]:
    found = _json(_text(path))
    return found if isinstance(found, dict) else {}


def _lines(path: Path, folder: Path, unreadable: dict[str, int]) -> list[dict[str, Any]]:
    found = [_json(line) for line in _text(path).split("\n") if line.strip()]
    good = [line for line in found if isinstance(line, dict) and _whole(line.get("step")) is not None]
    if len(good) < len(found):
        unreadable[str(path.relative_to(folder))] = len(found) - len(good)
    return good


def _worker(index: int, lines: list[dict[str, Any]]) -> Worker:
    worker = Worker(index)
    base: dict[str, float] = {}
    dropped_base: dict[str, float] = {}
    for raw in lines:
        line = dict(raw, step=_whole(raw["step"]))
        if worker.lines and line["step"] <= worker.lines[-1]["step"]:
            newest = worker.lines[-1]["step"]
            while worker.lines and worker.lines[-1]["step"] >= line["step"]:
                worker.lines.pop()
            if line["step"] < newest:
                worker.restarts.append((newest, line["step"]))
        line.setdefault("time_s", None)
        for key in COUNTERS:
            if key not in line:
                continue
            value = line[key] = number(line[key])
            if value is not None:
                before = next((kept[key] for kept in reversed(worker.lines) if kept.get(key) is not None), None)
                line[key] = _continued(value, before, key, base)
        drops = line.get("dropped") if isinstance(line.get("dropped"), dict) else {}
        for reason, count in drops.items():
            count = number(count)
            if count is not None:
                worker.dropped[reason] = _continued(count, worker.dropped.get(reason), reason, dropped_base)
        worker.lines.append(line)
    return worker


def _continued(value: float, before: float | None, key: str, base: dict[str, float]) -> float:
    """A counter that fell has begun again at zero: go on from where it stood."""
    if before is not None and value + base.get(key, 0.0) < before:
        base[key] = before
    return value + base.setdefault(key, 0.0)


def _metrics(lines: list[dict[str, Any]], workers: dict[int, Worker]) -> dict[str, dict[int, list]]:
    newest: dict[str, dict[int, dict[int, float | None]]] = {}
    for line in lines:
        worker, name = _whole(line.get("worker")), line.get("metric")
        if worker is None or not isinstance(name, str):
            continue
        workers.setdefault(worker, Worker(worker))
        newest.setdefault(name, {}).setdefault(worker, {})[_whole(line["step"])] = number(line.get("value"))
    return {
        name: {
            worker: [(step, workers[worker].seconds_at(step), value) for step, value in sorted(steps.items())]
            for worker, steps in sorted(by_worker.items())
        }
        for name, by_worker in newest.items()
    }


def _shards(data: dict[str, Any]) -> dict[str, Any] | None:
    classes, counts = data.get("classes"), data.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list) or not classes or not counts:
        return None
    rows = [[number(value) or 0.0 for value in row] if isinstance(row, list) else [] for row in counts]
    # An empty row is a shard that only its own host knows.
    if not any(rows) or any(len(row) not in (0, len(classes)) for row in rows):
        return None
    return {"classes": [str(name) for name in classes], "counts": rows}


def _pictures(folder: Path) -> tuple[list[tuple[str, bytes]], int]:
    """The reals and the fakes in order of their steps; evenly thinned where they are many or large."""

    def order(path: Path) -> tuple[int, str]:
        found = re.search(r"\d+", path.stem)
        return (int(found[0]) if found else -1, path.stem)

    def whole_png(path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except OSError:
            return b""
        return data if data.startswith(_PNG) and b"IEND" in data[-16:] and len(data) <= MAX_PICTURE_BYTES else b""

    fakes = sorted(folder.glob("fakes*.png"), key=order)
    sizes = [path.stat().st_size for path in fakes]
    keep = min(len(fakes), MAX_PICTURES)
    if fakes and sum(sizes) > 0:
        keep = min(keep, max(2, int(MAX_PICTURE_BYTES * len(fakes) / sum(sizes))))
    chosen = [fakes[round(i * (len(fakes) - 1) / max(1, keep - 1))] for i in range(keep)]
    found = [(path.stem, whole_png(path)) for path in [folder / "reals.png", *chosen]]
    return [(stem, data) for stem, data in found if data], len(fakes) - keep


def _without_passwords(text: str) -> str:
    """A report is sent around: passwords in Redis URLs stay at home."""
    return re.sub(r"(rediss?://[^:@/\s]*:)[^@\s]*@", r"\1***@", text)
