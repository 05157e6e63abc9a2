"""The table of workers: the steps, measures, bytes and speed of each."""

from __future__ import annotations

from typing import Any

from degan.reports import svg
from degan.reports.page import Cell, of_worker
from degan.reports.sections.section import Section
from degan.reports.text import count, or_dash, percent, pretty
from degan.runs import facts
from degan.runs.folder import Run
from degan.runs.records import Worker

NOTES = {
    "fid": "FID is the Fréchet distance (lower is better); its floor is the distance between two sets of real samples.",
    "coverage": "Coverage says how many of the classes the generator makes (higher is better).",
    "tv": "TV is the total variation distance between its class frequencies and the data's (0 is perfect).",
    "accuracy": "Accuracy is the share of held-out samples whose class is found (higher is better).",
}


def content(run: Run) -> dict[str, Any]:
    """Titles, rows and the meaning of the measures."""
    names = [*facts.measured(run, *facts.PRINCIPAL)]
    names += [name for name in facts.measured(run) if name not in names]
    head = ["worker", "steps"]
    for name in names:
        head.append(f"{pretty(name)} first → last" if facts.family(name) in facts.PRINCIPAL else pretty(name))
        head += ["floor"] if facts.floor(run, name) is not None else []
    head += ["sent", "received", "steps/s", "waiting"]
    families = {facts.family(name) for name in names}
    return {
        "head": head,
        "rows": [_row(run, worker, names) for worker in run.workers.values()],
        "notes": [note for family, note in NOTES.items() if family in families],
    }


def _row(run: Run, worker: Worker, names: list[str]) -> list[Cell | str]:
    cells: list[Cell | str] = [of_worker(worker.number), or_dash(worker.step, count)]
    for name in names:
        first, last = facts.of_worker(run, name, worker.number)
        if facts.family(name) in facts.PRINCIPAL:
            cells.append(Cell(or_dash(last), then=or_dash(first)))
        else:
            classes = facts.newest(run, "classes") if facts.family(name) == "coverage" and last is not None else None
            cells.append(or_dash(last) + ("" if classes is None else f" of {svg.short(classes)}"))
        floor = facts.floor(run, name)
        cells += [svg.short(floor)] if floor is not None else []
    return [
        *cells,
        *(or_dash(worker.last(key), svg.octets) for key in ("sent_bytes", "received_bytes")),
        or_dash(facts.steps_per_s(worker)),
        or_dash(facts.waiting_share(worker), percent),
    ]


SECTION = Section("workers", content)
