"""What is known of each worker, gathered from the run folder's files: a `Row` a worker."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.fleet import Worker
from launch.folder import RunFolder
from launch.tail import Tail

FID = re.compile(r"fid[0-9]+_classifier")
# What a classifier knows of the test set.
ACCURACY = "accuracy"
FLOOR = re.compile(r"fid[0-9]+_classifier_floor")
# The live rate is over this many lines of stats.jsonl.
RECENT = 10


@dataclass
class Row:
    """One worker's line of every table; what is not known yet is None."""

    worker: int
    total: int
    state: str = "starting"
    stats: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None
    mean_rate: float | None = None
    first_fid: float | None = None
    fid: float | None = None
    floor: float | None = None
    first_accuracy: float | None = None
    accuracy: float | None = None

    def number(self, key: str) -> float | None:
        """The newest value of `key` in stats.jsonl, where it is a number."""
        return _number(self.stats, key)

    @property
    def dropped(self) -> int:
        """Messages not applied, whatever the reason."""
        counts = self.stats.get("dropped")
        values = counts.values() if isinstance(counts, dict) else ()
        return int(sum(value for value in values if isinstance(value, int | float)))


class Board:
    """Follows the files of a run; `update` is cheap enough for a few calls a second."""

    def __init__(self, folder: RunFolder, workers: Sequence[Worker], total: int) -> None:
        """Where a run is resumed, what earlier lives wrote counts for the FID and for nothing else."""
        self.rows = [Row(worker.number, total) for worker in workers]
        self._workers = workers
        self._marks: list[list[tuple[float, float]]] = [[] for _ in workers]
        self._recent = [deque(maxlen=RECENT) for _ in workers]
        self._metrics = Tail(folder.path / "metrics.jsonl")

    def update(self) -> None:
        """Read what is new."""
        for metric in self._metrics.read():
            self._note_metric(metric)
        for index, row in enumerate(self.rows):
            for stats in self._workers[index].stats.read():
                self._note_stats(index, row, stats)
            row.state = self._workers[index].state(seen=bool(row.stats))

    def _note_stats(self, index: int, row: Row, stats: dict[str, Any]) -> None:
        row.stats = stats
        step, time_s = _number(stats, "step"), _number(stats, "time_s")
        if step is None or time_s is None:
            return
        recent, marks = self._recent[index], self._marks[index]
        if recent and (time_s < recent[-1][0] or step < recent[-1][1]):
            # Another life of the worker: its clock begins anew.
            recent.clear()
            marks.clear()
        recent.append((time_s, step))
        marks[1:] = [(time_s, step)]
        row.rate = _slope(recent[0], recent[-1])
        row.mean_rate = _slope(marks[0], marks[-1])

    def _note_metric(self, metric: dict[str, Any]) -> None:
        name, number, value = str(metric.get("metric")), metric.get("worker"), _number(metric, "value")
        if value is None:
            return
        for row in self.rows:
            if FID.fullmatch(name) and row.worker == number:
                row.first_fid = value if row.first_fid is None else row.first_fid
                row.fid = value
            elif name == ACCURACY and row.worker == number:
                row.first_accuracy = value if row.first_accuracy is None else row.first_accuracy
                row.accuracy = value
            # The floor is the data's; one worker's measurement stands in for those that have none.
            elif FLOOR.fullmatch(name) and (row.worker == number or row.floor is None):
                row.floor = value


def _slope(first: tuple[float, float], last: tuple[float, float]) -> float | None:
    seconds = last[0] - first[0]
    return (last[1] - first[1]) / seconds if seconds > 0 else None


def _number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
