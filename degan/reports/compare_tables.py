"""The comparison's tables: titles and cells as text, as Markdown for a README, and as JSON for a program."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from degan.reports import svg
from degan.reports.compare_data import Entry, Group, Point, differences
from degan.reports.html import many

DASH = "–"
Table = tuple[list[str], list[list[str]]]  # titles, rows of cells


def fid(value: float | None) -> str:
    """A Frechet distance; a generator that diverged has none."""
    if value is None:
        return DASH
    return svg.short(value) if math.isfinite(value) else "not finite"


def _known(value: Any, text: Callable[[Any], str] = str) -> str:
    return DASH if value is None or value == "" else text(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _steps(entry: Entry) -> str:
    if entry.steps is None:
        return DASH
    return _count(entry.steps) if entry.is_whole else f"{entry.steps:,} of {entry.run.planned_steps:,}"


def _coverage(entry: Entry) -> str:
    if entry.coverage is None:
        return DASH
    classes = entry.run.newest("classes")
    return svg.short(entry.coverage) + (f" of {svg.short(classes)}" if classes is not None else "")


def _mishaps(entry: Entry) -> str:
    told = [f"{entry.dead} died"] if entry.dead else []
    told += [many(entry.restarts, "restart")] if entry.restarts else []
    told += [f"{entry.dropped:,} dropped"] if entry.dropped else []
    return ", ".join(told) or "none"


# Title, and what a row shows under it; a column in which no run knows anything is left out.
COLUMNS: tuple[tuple[str, Callable[[Entry], str]], ...] = (
    ("run", lambda entry: entry.label),
    ("mode", lambda entry: _known(entry.run.mode)),
    ("split", lambda entry: _known(entry.split)),
    ("seed", lambda entry: _known(entry.seed)),
    ("workers", lambda entry: str(entry.workers)),
    ("steps", _steps),
    ("FID first", lambda entry: fid(entry.first)),
    ("FID last", lambda entry: fid(entry.last)),
    ("FID best", lambda entry: fid(entry.best)),
    ("floor", lambda entry: fid(entry.floor)),
    ("coverage", _coverage),
    ("sent by all", lambda entry: _known(entry.sent_bytes, svg.octets)),
    ("predicted", lambda entry: _known(entry.predicted_bytes, svg.octets)),
    ("images/s", lambda entry: _known(entry.images_per_s, svg.short)),
    ("time", lambda entry: _known(entry.seconds, svg.seconds)),
    ("void rounds", lambda entry: _known(entry.run.void_rounds, _count)),
    ("late", lambda entry: _known(entry.run.late, _count)),
    ("deaths, drops", _mishaps),
)


def runs_table(entries: Sequence[Entry]) -> Table:
    """A row a run."""
    cells = {title: [show(entry) for entry in entries] for title, show in COLUMNS}
    shown = [title for title, column in cells.items() if any(cell != DASH for cell in column)]
    return shown, [list(row) for row in zip(*(cells[title] for title in shown), strict=True)]


def groups_table(groups: Sequence[Group]) -> Table:
    """A row a setting, with the median over its seeds, and from the lowest to the highest."""
    titles = ["setting", "runs", "FID last", "coverage", "sent by all", "images/s"]
    rows = []
    for group in groups:
        whole, all_of_them = len(group.counted), len(group.entries)
        runs = str(all_of_them) if whole == all_of_them else f"{whole} of {all_of_them}"
        shown = (("last", fid), ("coverage", svg.short), ("sent_bytes", svg.octets), ("images_per_s", svg.short))
        rows.append([group.label, runs, *(_spread(group, what, text) for what, text in shown)])
    return titles, rows


def _spread(group: Group, what: str, text: Callable[[float], str]) -> str:
    spread = group.spread(what)
    if spread is None:
        return DASH
    middle, low, high = map(text, spread)
    return middle if low == high else f"{middle} ({low} to {high})"


def has_repeats(groups: Sequence[Group]) -> bool:
    """Whether any setting was run more than once."""
    return any(len(group.entries) > 1 for group in groups)


def settings_table(entries: Sequence[Entry]) -> tuple[Table, dict[str, list[tuple[str, str]]]]:
    """A row a setting in which the runs differ, a column a run; and what only one mode has, where its runs agree.

    A setting of `mode` that the other modes do not know is no difference between two runs that have it: it is
    told once, by the mode's name.
    """
    rows, alone = [], {}
    for key, values in differences(entries).items():
        modes = {entry.run.mode for entry, value in zip(entries, values, strict=True) if value is not None}
        known = [_setting(value) for value in values if value is not None]
        if key.startswith("mode.") and len(modes) == 1 and len(set(known)) == 1:
            alone.setdefault(modes.pop(), []).append((key.removeprefix("mode."), known[0]))
        else:
            rows.append([key, *map(_setting, values)])
    return (["setting", *(entry.label for entry in entries)], rows), alone


def _setting(value: Any) -> str:
    if value is None:
        return DASH
    return value if isinstance(value, str) else json.dumps(value, default=str)


def as_markdown(entries: Sequence[Entry], groups: Sequence[Group]) -> str:
    """The groups, then the runs, for a README."""
    return f"{_markdown(*groups_table(groups))}\n\n{_markdown(*runs_table(entries))}"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(cell: str) -> str:
    """Without what would end the cell, or be read as HTML."""
    cell = " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
    return cell.replace("&", "&amp;").replace("<", "&lt;")


def as_json(entries: Sequence[Entry], groups: Sequence[Group]) -> str:
    """All of it, the curves too; null is what is not known, and what was no finite number."""
    found = {
        "runs": [_run(entry) for entry in entries],
        "groups": [
            {
                "setting": group.label,
                "runs": [entry.label for entry in group.entries],
                "counted": [entry.label for entry in group.counted],
                **{
                    what: _finite(dict(zip(("median", "low", "high"), group.spread(what) or [None] * 3, strict=True)))
                    for what in ("last", "coverage", "sent_bytes", "images_per_s")
                },
            }
            for group in groups
        ],
        "settings": differences(entries),
    }
    return json.dumps(found, indent=1, default=str)


def _run(entry: Entry) -> dict[str, Any]:
    row = {"run": entry.label, "folder": str(entry.run.folder), "mode": entry.run.mode, "split": entry.split}
    row |= {"seed": entry.seed, "workers": entry.workers, "steps": entry.steps, "is_whole": entry.is_whole}
    row |= {"metric": entry.fid, "fid_first": entry.first, "fid_last": entry.last, "fid_best": entry.best}
    row |= {"fid_floor": entry.floor, "coverage": entry.coverage, "classes": entry.run.newest("classes")}
    row |= {"sent_bytes": entry.sent_bytes, "predicted_sent_bytes": entry.predicted_bytes, "images": entry.images}
    row |= {"images_per_s": entry.images_per_s, "seconds": entry.seconds, "void_rounds": entry.run.void_rounds}
    row |= {"late": entry.run.late, "dead": entry.dead, "restarts": entry.restarts, "dropped": entry.dropped}
    curves = {name: [_point(point) for point in points] for name, points in entry.curves.items()}
    return {**_finite(row), "curves": curves}


def _point(point: Point) -> dict[str, Any]:
    row = {"step": point.step, "seconds": point.seconds, "sent_bytes": point.sent_bytes}
    return _finite({**row, "images": point.images, "fid": point.fid})


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
