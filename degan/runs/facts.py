"""Derived facts of a run: the one set that the report, the comparison and the live table share.

Three rules hold everywhere:

* Bytes and images are those of all workers together; the time is that of the slowest worker.
* A run's value of a metric at a step is the worst over the workers that measured there. A value that is not finite,
  from a diverged generator, is the worst of all: infinity.
* In a leader-based mode a step is a round that one worker leads. Every worker's lines have the values of the round;
  the leader's own lines come first. Only the leader knows the number of answers.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from degan.runs.folder import Run
from degan.runs.records import Records, Sample, Worker, number, whole

# Families of metrics in the order in which they are shown.
FAMILIES = ("fid", "coverage", "tv", "accuracy", "loss")
# The families that measure a model's quality, in order of preference. A better value of another family need not be
# a better model.
PRINCIPAL = ("fid", "accuracy")
# The present rate is over this many lines of a worker.
RECENT = 10


@dataclass(frozen=True)
class Point:
    """One evaluation of a run: its step, seconds, bytes and images, and the worst value, which may be infinite."""

    step: int
    seconds: float | None
    sent_bytes: float | None
    images: float | None
    value: float


# --- metrics ----------------------------------------------------------------------------------------


def family(name: str) -> str:
    """The family of a metric: `fid5000_classifier` is of `fid`, `accuracy` of itself."""
    return re.split(r"\d+_", name, maxsplit=1)[0]


def measured(records: Records, *families: str) -> list[str]:
    """The metrics that are shown, in their order, without floors.

    A metric is shown where it is of a known family, or has a sample count in its name.

    Args:
        families: only the metrics of these families; all where none is given.
    """
    names = [name for name in records.measures if re.match(r"[a-z]+\d+_", name) or name in FAMILIES]
    names = [name for name in names if not name.endswith("_floor") and (not families or family(name) in families)]
    return sorted(names, key=lambda name: (next((i for i, f in enumerate(FAMILIES) if f == family(name)), 9), name))


def is_lower_better(name: str) -> bool:
    """Whether the best value of a metric is the lowest."""
    return family(name) not in ("accuracy", "coverage")


def principal(
    records: Records, votes: Mapping[str, int] | None = None, families: Sequence[str] = PRINCIPAL
) -> str | None:
    """The metric of a run where only one is shown: a distance, else an accuracy.

    Args:
        votes: how many runs have each metric; of one family the metric with most votes is taken.
        families: the families to choose from, in order of preference.
    """
    for each in families:
        names = measured(records, each)
        if names:
            return max(names, key=lambda name: ((votes or {}).get(name, 0), "classifier" in name))
    return None


def floor(records: Records, name: str) -> float | None:
    """The value of a metric for real samples: the newest of any worker, because it depends on the data alone."""
    return newest(records, f"{name}_floor")


def newest(records: Records, name: str) -> float | None:
    """The newest finite value of a metric, of any worker."""
    at = [item for steps in records.measures.get(name, {}).values() for item in steps.items()]
    return max(((step, value) for step, value in at if value is not None), default=(0, None))[1]


def ends(samples: Iterable[Sample]) -> tuple[float | None, float | None]:
    """The first and the last finite value."""
    values = [value for _, _, value in samples if value is not None]
    return (values[0], values[-1]) if values else (None, None)


def of_worker(records: Records, name: str | None, worker: int) -> tuple[float | None, float | None]:
    """A worker's first and last finite value of a metric."""
    at = records.measures.get(name or "", {}).get(worker, {})
    return ends(Sample(step, None, value) for step, value in sorted(at.items()))


def lowest_coverage(records: Records) -> float | None:
    """The lowest coverage over the workers at the newest step at which it was measured."""
    name = next(iter(measured(records, "coverage")), "")
    at = [item for steps in records.measures.get(name, {}).values() for item in steps.items()]
    last = max((step for step, _ in at), default=None)
    return min((value for step, value in at if step == last and value is not None), default=None)


def curve(run: Run, name: str) -> list[Point]:
    """The run's worst value of a metric at each step at which any worker measured."""
    worst, lost = (max, math.inf) if is_lower_better(name) else (min, -math.inf)
    at: dict[int, list[float]] = {}
    for steps in run.measures.get(name, {}).values():
        for step, value in steps.items():
            at.setdefault(step, []).append(lost if value is None else value)
    return [
        Point(step, _seconds_at(run, name, step), *(_all_at(run, key, step) for key in ("sent_bytes", "images")), found)
        for step, found in ((step, worst(values)) for step, values in sorted(at.items()))
    ]


def by_class(records: Records, name: str = "accuracy_by_class") -> dict[int, tuple[int, list[float | None]]]:
    """The newest (step, values by class) of each worker."""
    return {worker: max(at.items()) for worker, at in sorted(records.lists.get(name, {}).items())}


def _seconds_at(run: Run, name: str, step: int) -> float | None:
    """The seconds of the slowest worker at `step`; before any line reaches `step`, of those that measured there."""
    there = [worker for worker in run.workers.values() if (worker.step or -1) >= step]
    if not there:
        there = [run.workers[index] for index, steps in run.measures[name].items() if step in steps]
    return _largest(worker.seconds_at(step) for worker in there)


def _all_at(run: Run, key: str, step: int) -> float | None:
    return _total(worker.count_at(key, step) for worker in run.workers.values())


# --- progress and cost --------------------------------------------------------------------------------


def steps(run: Run) -> int | None:
    """The step that the furthest worker has reached."""
    return max((worker.step for worker in run.workers.values() if worker.step is not None), default=None)


def is_whole(run: Run) -> bool:
    """Whether the run reached its last step; true where the last step is not known."""
    return run.planned_steps is None or (steps(run) or 0) >= run.planned_steps


def seconds(run: Run) -> float | None:
    """The training time of the worker that trained longest."""
    return _largest(worker.last("time_s") for worker in run.workers.values())


def total(run: Run, key: str) -> float | None:
    """The sum of a counter over the workers that have the counter; None where no worker does."""
    return _total(worker.last(key) for worker in run.workers.values())


def complete_total(workers: Iterable[Worker], key: str) -> float | None:
    """The sum of a counter over all workers; None where one worker lacks it, because such a sum does not compare."""
    values = [worker.last(key) for worker in workers]
    return None if None in values or not values else _total(values)


def predicted_bytes(run: Run) -> float | None:
    """The bytes sent by the mode's formula; None unless every worker that sent anything reports them."""
    return complete_total(
        (worker for worker in run.workers.values() if worker.last("sent_bytes") is not None), "predicted_sent_bytes"
    )


def images_per_s(run: Run) -> float | None:
    """Images that all workers trained on, per second of the whole run."""
    images, took_s = total(run, "images"), seconds(run)
    return images / took_s if images is not None and took_s else None


def steps_per_s(worker: Worker) -> float | None:
    """Steps per second over the whole run."""
    time_s = worker.last("time_s")
    return worker.step / time_s if worker.step is not None and time_s else None


def rate(worker: Worker, recent: int | None = None) -> float | None:
    """Steps per second between lines of the worker's present incarnation; None where there are fewer than two.

    Args:
        recent: only over this many newest lines.
    """
    if worker.incarnation >= len(worker.lines):
        return None
    first = worker.lines[max(worker.incarnation, len(worker.lines) - recent) if recent else worker.incarnation]
    last = worker.lines[-1]
    took_s = (last["time_s"] or 0.0) - (first["time_s"] or 0.0)
    return (last["step"] - first["step"]) / took_s if took_s > 0 else None


def waiting_share(worker: Worker) -> float | None:
    """The share of a step's time that was waiting, over the whole run."""
    took = [value for _, _, value in worker.series("step_s") if value is not None]
    waits = [value for _, _, value in worker.series("wait_s") if value is not None]
    return sum(waits) / sum(took) if waits and sum(took) > 0 else None


# --- faults -------------------------------------------------------------------------------------------


def dropped(worker: Worker) -> int:
    """Messages that were not applied; without late answers of a round where the worker counts these separately."""
    apart = "late" if worker.last("late") is not None else None
    return int(sum(count for reason, count in worker.dropped.items() if reason != apart))


def offences(worker: Worker) -> dict[str, int]:
    """How often the worker could not use a peer's contributions, by peer."""
    found = worker.lines[-1].get("offences") if worker.lines else None
    counts = {peer: whole(count) for peer, count in found.items()} if isinstance(found, dict) else {}
    return {peer: count for peer, count in counts.items() if count}


def banned(worker: Worker) -> list[str]:
    """The peers whose contributions the worker uses no more."""
    found = worker.lines[-1].get("banned") if worker.lines else None
    return [str(peer) for peer in found] if isinstance(found, list) else []


def behind(run: Run) -> set[int]:
    """The workers whose last line is further behind another worker's than is usual in a running run."""
    reached = {index: worker.step for index, worker in run.workers.items() if worker.step is not None}
    furthest = max(reached.values(), default=0)
    planned, every = run.planned_steps, run.log_every
    # In a running run the workers are a line or two apart; in a finished run all end together.
    lag = 2 * every if planned is None or furthest + every <= planned else 0
    return {index for index, step in reached.items() if step < furthest - lag}


def restarts(run: Run) -> int:
    """How often a worker went back to an earlier step."""
    return sum(len(worker.restarts) for worker in run.workers.values())


@dataclass(frozen=True)
class Loss:
    """A worker saw `alive` of `peers` alive at `step`; all of them again at `back`, or never."""

    step: int
    alive: int
    peers: int
    back: int | None


def lost_peers(run: Run, worker: Worker) -> Loss | None:
    """The first time that a worker saw fewer live peers than there are, unless the others had only finished earlier."""
    seen = [(step, int(value)) for step, _, value in worker.series("live_peers") if value is not None]
    full = max((value for _, value in seen), default=0)
    if has_rounds(run):
        # Rounds begin with the present workers, and others may come later. So only a peer that was seen can be lost.
        most = list(itertools.accumulate((value for _, value in seen), max))
        at = next((i for i, (_, value) in enumerate(seen) if value < most[i]), len(seen))
        seen, full = seen[at:], most[at] if at < len(seen) else 0
    elif run.experiment and any(
        each.last("received_bytes") or each.last("live_peers") for each in run.workers.values()
    ):
        full = run.experiment.workers - 1
    fewer = next(((step, value) for step, value in seen if value < full), None)
    if fewer is None:
        return None
    back = next((step for step, value in seen if step > fewer[0] and value >= full), None)
    if back is None and not behind(run) - {worker.number}:
        return None
    return Loss(fewer[0], fewer[1], full, back)


# --- rounds -------------------------------------------------------------------------------------------


def has_rounds(records: Records) -> bool:
    """Whether a step is a round that a worker leads."""
    return any("leader" in line for worker in records.workers.values() for line in worker.lines[-1:])


def void_rounds(records: Records) -> int | None:
    """The number of void rounds. Each leader announces the run's count, so this is the highest that any worker has."""
    found = _largest(value for worker in records.workers.values() for _, _, value in worker.series("void_rounds"))
    return None if found is None else int(found)


def of_the_leader(run: Run, key: str, by_others: bool = True) -> list[Sample]:
    """A round's value over the rounds: the leader's own if it exists, else with `by_others` that of any worker."""
    found: dict[int, tuple[bool, Sample]] = {}
    for index, worker in run.workers.items():
        for line in worker.lines:
            leads, known = line.get("leader") == index, found.get(line["step"])
            if key in line and (leads or by_others) and (known is None or (leads and not known[0])):
                found[line["step"]] = leads, Sample(line["step"], line["time_s"], number(line[key]))
    return [sample for _, (_, sample) in sorted(found.items())]


def leaders(run: Run) -> list[tuple[int, int]]:
    """(leader, the first step of this leader), in order of the steps."""
    leaders = [(int(value), step) for step, _, value in of_the_leader(run, "leader") if value is not None]
    return [next(group) for _, group in itertools.groupby(leaders, key=lambda each: each[0])]


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
