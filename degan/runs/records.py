"""The lines that workers write, as records: a `Worker` of statistics, and the metrics of all.

Lines are added one by one, in the order of the files, so the same records serve a folder that is read whole and one
that is followed while it grows. Three rules always hold:

* A value that is not a finite number is None.
* A worker that restarted from a checkpoint wrote some steps twice: the newest line of a step is kept. A counter that
  began again at zero continues from its earlier value.
* Of a metric, the last line of a step is kept.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from degan.runs.words import in_todays_words

COUNTERS = (
    *("time_s", "images", "sent_bytes", "received_bytes", "predicted_sent_bytes", "predicted_received_bytes"),
    *("late", "swaps", "swaps_missed"),
)


class Sample(NamedTuple):
    """A value at a step; `seconds` is the worker's training time there. None means unknown or not finite."""

    step: int
    seconds: float | None
    value: float | None


@dataclass
class Worker:
    """One worker's lines of stats.jsonl, by rising step, with its losses.

    `dropped` counts messages by reason over the whole run; `restarts` are (from step, to step); `incarnation` is the
    place in `lines` at which the worker's present incarnation begins.
    """

    number: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, float] = field(default_factory=dict)
    restarts: list[tuple[int, int]] = field(default_factory=list)
    incarnation: int = 0
    _base: dict[str, float] = field(default_factory=dict)
    _dropped_base: dict[str, float] = field(default_factory=dict)

    def add(self, raw: dict[str, Any]) -> bool:
        """Add a line of stats.jsonl; False if the line has no step."""
        step = whole(raw.get("step"))
        if step is None:
            return False
        line = {"time_s": None, **in_todays_words(raw), "step": step}
        self._go_back_to(step)
        for key in COUNTERS:
            if key in line:
                line[key] = self._continued(key, number(line[key]))
        drops = line.get("dropped") if isinstance(line.get("dropped"), dict) else {}
        for reason, count in drops.items():
            count = number(count)
            if count is not None:
                self.dropped[reason] = _continued(count, self.dropped.get(reason), reason, self._dropped_base)
        self.lines.append(line)
        return True

    @property
    def step(self) -> int | None:
        """The step of the newest line."""
        return self.lines[-1]["step"] if self.lines else None

    def series(self, key: str) -> list[Sample]:
        """One sample for each line that has `key`.

        Lines without the key are no gap: a worker that did not train in a round has no loss of that round.
        """
        return [Sample(line["step"], line["time_s"], number(line[key])) for line in self.lines if key in line]

    def newest(self, key: str) -> float | None:
        """The value of `key` in the newest line; None where this is not a finite number."""
        return number(self.lines[-1].get(key)) if self.lines else None

    def last(self, key: str) -> float | None:
        """The newest finite value of `key`, of any line."""
        found = self._nearest(key, range(len(self.lines) - 1, -1, -1))
        return None if found is None else found[1]

    def seconds_at(self, step: float) -> float | None:
        """The time at which the worker reached `step`; linear interpolation between its lines."""
        before, after = self._around("time_s", step)
        if after is not None:
            return _between(before or (0, 0.0), after, step)
        if before is None:
            return None
        return step * before[1] / before[0] if before[0] else None

    def count_at(self, key: str, step: float) -> float | None:
        """The counter `key` at `step`: linear interpolation between the lines, never beyond the last line.

        The count of the first line is taken to begin one line's distance earlier: at the start of the run, or where the
        worker joined a running run. None where the worker never had this counter.
        """
        before, after = self._around(key, step)
        if after is None:
            return None if before is None else before[1]
        if before is None:
            steps = [line["step"] for line in self.lines]
            # The distance is the largest between two lines; the last line may be closer to the one before.
            distance = max((high - low for low, high in itertools.pairwise(steps)), default=0) if len(steps) > 2 else 0
            before = (after[0] - distance if 0 < distance < after[0] else 0, 0.0)
        return _between(before, after, step) if step > before[0] else before[1]

    def _go_back_to(self, step: int) -> None:
        """Forget the lines from `step` on, because the worker trains these steps again."""
        newest = self.step
        if newest is None or step > newest:
            return
        while self.lines and self.lines[-1]["step"] >= step:
            self.lines.pop()
        self.incarnation = min(self.incarnation, len(self.lines))
        if step < newest:
            self.restarts.append((newest, step))
            self.incarnation = len(self.lines)

    def _continued(self, key: str, value: float | None) -> float | None:
        if value is None:
            return None
        before = next((line[key] for line in reversed(self.lines) if line.get(key) is not None), None)
        if key == "time_s" and before is not None and value + self._base.get(key, 0.0) < before:
            # The worker's clock has restarted.
            self.incarnation = len(self.lines)
        return _continued(value, before, key, self._base)

    def _around(self, key: str, step: float) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
        """The nearest (step, value) before `step`, and the nearest at or after `step`."""
        at = bisect.bisect_left(self.lines, step, key=lambda line: line["step"])
        return self._nearest(key, range(at - 1, -1, -1)), self._nearest(key, range(at, len(self.lines)))

    def _nearest(self, key: str, places: range) -> tuple[int, float] | None:
        """(step, value) of the first of these lines with a finite number."""
        for place in places:
            value = number(self.lines[place].get(key))
            if value is not None:
                return self.lines[place]["step"], value
        return None


@dataclass
class Records:
    """The lines of all workers.

    `measures` holds metrics.jsonl: metric -> worker -> step -> value; `lists` the same for metrics whose value is a
    list, such as one number for each class.
    """

    workers: dict[int, Worker] = field(default_factory=dict)
    measures: dict[str, dict[int, dict[int, float | None]]] = field(default_factory=dict)
    lists: dict[str, dict[int, dict[int, list[float | None]]]] = field(default_factory=dict)

    def add_metric(self, line: dict[str, Any]) -> bool:
        """Add a line of metrics.jsonl; False if the line has no step."""
        step, worker, name = whole(line.get("step")), whole(line.get("worker")), line.get("metric")
        if step is None:
            return False
        if worker is not None and isinstance(name, str):
            value = line.get("value")
            self.workers.setdefault(worker, Worker(worker))
            if isinstance(value, list):
                self.lists.setdefault(name, {}).setdefault(worker, {})[step] = [number(each) for each in value]
            else:
                self.measures.setdefault(name, {}).setdefault(worker, {})[step] = number(value)
        return True

    def measured(self, name: str) -> dict[int, list[Sample]]:
        """The samples of a metric by worker, each by rising step."""
        return {
            worker: [Sample(step, self.workers[worker].seconds_at(step), value) for step, value in sorted(at.items())]
            for worker, at in sorted(self.measures.get(name, {}).items())
        }

    @property
    def keys(self) -> set[str]:
        """The keys of the workers' statistics, and the names of the metrics."""
        return {key for worker in self.workers.values() for line in worker.lines for key in line} | {
            *self.measures,
            *self.lists,
        }


def number(value: Any) -> float | None:
    """`value` as a float; None where it is not a number, not finite, or too large to be drawn (beyond 1e30)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) <= 1e30 else None


def whole(value: Any) -> int | None:
    """`value` as a count; None where it is not a count."""
    value = number(value)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def _continued(value: float, before: float | None, key: str, base: dict[str, float]) -> float:
    """The continued counter: one that fell has begun again at zero, so its earlier value is added."""
    if before is not None and value + base.get(key, 0.0) < before:
        base[key] = before
    return value + base.setdefault(key, 0.0)


def _between(before: tuple[int, float], after: tuple[int, float], step: float) -> float:
    """The value at `step` on the straight line between two points."""
    share = (step - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 1.0
    return before[1] + share * (after[1] - before[1])
