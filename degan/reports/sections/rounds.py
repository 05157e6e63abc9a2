"""The rounds of a run: leaders, answers, void rounds, and the bytes beside the mode's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from degan.reports import svg
from degan.reports.figures import figure
from degan.reports.page import Cell, of_worker
from degan.reports.sections.section import Section
from degan.reports.text import count, or_dash
from degan.runs import facts
from degan.runs.folder import Run

SO_FAR = (
    ("Void rounds so far", "void_rounds"),
    ("Late answers so far", "late"),
    ("Discriminators exchanged so far", "swaps"),
    ("Discriminators that never came so far", "swaps_missed"),
)
PREDICTED = (("sent", "sent_bytes", "predicted_sent_bytes"), ("received", "received_bytes", "predicted_received_bytes"))


def content(run: Run) -> dict[str, Any]:
    """A sentence about the leaders, the figures, and the table of workers."""
    asked = facts.of_the_leader(run, "cohort"), facts.of_the_leader(run, "answered", by_others=False)
    names = {0: "asked", 1: "answered in time"}
    title = "Asked and answered in a round"
    figures = [figure(title, list(enumerate(asked)), svg.short, names=names, from_zero=True)]
    for title, key in SO_FAR:
        series = [(index, worker.series(key)) for index, worker in run.workers.items()]
        series = [(index, samples) for index, samples in series if any(sample.value for sample in samples)]
        figures.append(figure(title, series, svg.short, from_zero=True))
    return {
        "leaders": facts.leaders(run),
        "void": facts.void_rounds(run),
        "figures": [each for each in figures if each is not None],
        **_table(run),
    }


def _table(run: Run) -> dict[str, Any]:
    """A worker's bytes beside the formula's, its images and its counters."""
    workers = [worker for worker in run.workers.values() if worker.lines]
    known = [row for row in PREDICTED if any(worker.last(row[2]) is not None for worker in workers)]
    counted = [(title, key) for title, key in SO_FAR if any(worker.last(key) for worker in workers)]
    head = ["worker", "images"]
    for name, *_ in known:
        head += [name, "predicted", "ratio"]
    head += [title.removesuffix(" so far").lower() for title, _ in counted]

    def numbers(value_of: Callable[[str], float | None]) -> list[str]:
        cells = [or_dash(value_of("images"), count)]
        for _, measured, predicted in known:
            cells += _beside(value_of(measured), value_of(predicted))
        return cells

    rows = [
        [of_worker(worker.number), *numbers(worker.last), *(or_dash(worker.last(key), count) for _, key in counted)]
        for worker in workers
    ]
    if len(workers) > 1:
        sums = numbers(lambda key: facts.complete_total(workers, key))
        rows.append([*(Cell(text, is_strong=True) for text in ["all", *sums]), *[""] * len(counted)])
    return {"head": head, "rows": rows, "has_formula": bool(known)}


def _beside(measured: float | None, predicted: float | None) -> list[str]:
    ratio = measured / predicted if measured is not None and predicted else None
    return [or_dash(measured, svg.octets), or_dash(predicted, svg.octets), or_dash(ratio, "{:.3f}".format)]


SECTION = Section("rounds", content, needs=("leader",))
