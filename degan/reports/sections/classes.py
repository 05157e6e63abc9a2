"""The classes of a classifier: the newest accuracy by class of each worker, as bars and as numbers."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from degan.reports import svg
from degan.reports.page import Cell, of_worker
from degan.reports.sections.section import Section
from degan.reports.text import count, or_dash, percent
from degan.runs import facts
from degan.runs.folder import Run

KEY = "accuracy_by_class"


def content(run: Run) -> dict[str, Any] | None:
    """The bars, and the table where the classes are few enough."""
    newest = facts.by_class(run, KEY)
    size = max((len(values) for _, values in newest.values()), default=0)
    if size == 0:
        return None
    named = run.shards is not None and len(run.shards.classes) == size
    classes = run.shards.classes if named else [str(index) for index in range(size)]
    padded = {worker: (step, [*values, *[None] * (size - len(values))]) for worker, (step, values) in newest.items()}
    drawn = svg.bars(
        classes,
        [f"worker {worker}" for worker in padded],
        [[value or 0.0 for value in values] for _, values in padded.values()],
        "Accuracy of each class on each worker",
        full=1.0,
        text=percent,
    )
    rows = [
        [
            of_worker(worker),
            count(step),
            *(Cell(or_dash(value, percent), share=min(1.0, max(0.0, value or 0.0))) for value in values),
        ]
        for worker, (step, values) in padded.items()
    ]
    is_wide = size > svg.DISCS_UP_TO
    return {"drawn": Markup(drawn), "head": ["worker", "step", *classes], "rows": [] if is_wide else rows}


SECTION = Section("classes", content, needs=(KEY,))
