"""The head of a run's page: steps, time, quality and bytes in a few numbers."""

from __future__ import annotations

from typing import Any

from degan.reports import svg
from degan.reports.sections.section import Section
from degan.reports.text import DASH, count, pretty
from degan.runs import facts
from degan.runs.folder import Run


def content(run: Run) -> dict[str, Any]:
    """The tiles: (value, meaning)."""
    steps, took_s = facts.steps(run), facts.seconds(run)
    tiles = [
        (DASH if steps is None else count(steps), "steps"),
        (svg.seconds(took_s) if took_s else DASH, "training time"),
    ]
    for name in facts.measured(run, *facts.PRINCIPAL)[:2]:
        best, how = (min, "lowest") if facts.is_lower_better(name) else (max, "highest")
        last = [facts.of_worker(run, name, worker)[1] for worker in run.measures[name]]
        if any(value is not None for value in last):
            value = best(value for value in last if value is not None)
            tiles.append((svg.short(value), f"{how} {pretty(name)} at the end"))
        floor = facts.floor(run, name)
        if floor is not None:
            tiles.append((svg.short(floor), f"floor of {pretty(name)}"))
    tiles.append((svg.octets(facts.total(run, "sent_bytes") or 0.0), "sent by all workers"))
    return {"tiles": tiles}


SECTION = Section("headline", content)
