"""The shards: the samples of each class in each worker's shard, as discs or bars and as numbers."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from degan.reports import svg
from degan.reports.page import Cell, of_worker
from degan.reports.sections.section import Section
from degan.reports.text import DASH, count
from degan.runs.folder import Run, Shards


def content(run: Run) -> dict[str, Any]:
    """The drawing and the table."""
    shards = run.shards
    is_wide = len(shards.classes) > svg.DISCS_UP_TO
    names = [f"worker {index}" for index in range(len(shards.counts))]
    draw = svg.bars if is_wide else svg.bubbles
    drawn = Markup(draw(shards.classes, names, shards.counts, "Samples of each class in each worker's shard"))
    head, rows = _few_numbers(shards) if is_wide else _all_counts(shards)
    return {"drawn": drawn, "is_wide": is_wide, "head": head, "rows": rows}


def _all_counts(shards: Shards) -> tuple[list[str], list[list[Cell]]]:
    largest = max((value for row in shards.counts for value in row), default=0) or 1
    rows = []
    for index, row in enumerate(shards.counts):
        cells = [Cell(count(value), share=value / largest) for value in row]
        cells = cells or [Cell("known on its own host", span=len(shards.classes))]
        rows.append([of_worker(index), *cells, Cell(count(sum(row)) if row else "", is_strong=True)])
    return ["worker", *shards.classes, "all"], rows


def _few_numbers(shards: Shards) -> tuple[list[str], list[list[Cell | str]]]:
    """The table where there are too many classes for one column each."""
    rows: list[list[Cell | str]] = []
    for index, row in enumerate(shards.counts):
        held = [value for value in row if value > 0]
        numbers = [count(value) for value in (len(held), min(held), max(held), sum(held))] if held else [DASH] * 4
        rows.append([of_worker(index), *numbers])
    return ["worker", "classes", "fewest of one", "most of one", "all"], rows


SECTION = Section("shards", content, needs=("shards",))
