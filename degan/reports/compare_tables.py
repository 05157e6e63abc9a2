"""The comparison's tables: titles and cells as text, as Markdown for a README, and as JSON for a program."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from degan.reports import svg
from degan.reports.compare_data import Entry, Group, differences
from degan.reports.text import DASH, count, many, or_dash, word
from degan.runs import facts
from degan.runs.facts import Point

Table = tuple[list[str], list[list[str]]]  # titles, rows of cells
# The facts of a group besides the metric, in the table and in the JSON.
SPREADS: dict[str, Callable[[Entry], float | None]] = {
    "last": lambda entry: entry.last,
    "coverage": lambda entry: facts.lowest_coverage(entry.run),
    "sent_bytes": lambda entry: facts.total(entry.run, "sent_bytes"),
    "images_per_s": lambda entry: facts.images_per_s(entry.run),
}


def finite(value: float) -> str:
    """A metric's value; a diverged model has no value."""
    return svg.short(value) if math.isfinite(value) else "not finite"


def _steps(entry: Entry) -> str:
    steps = facts.steps(entry.run)
    if steps is None or facts.is_whole(entry.run):
        return or_dash(steps, count)
    return f"{steps:,} of {entry.run.planned_steps:,}"


def _coverage(entry: Entry) -> str:
    lowest, classes = facts.lowest_coverage(entry.run), facts.newest(entry.run, "classes")
    of_them = f" of {svg.short(classes)}" if classes is not None and lowest is not None else ""
    return or_dash(lowest) + of_them


def _mishaps(entry: Entry) -> str:
    dead, restarts, dropped = len(facts.behind(entry.run)), facts.restarts(entry.run), _dropped(entry)
    told = [f"{dead} died"] if dead else []
    told += [many(restarts, "restart")] if restarts else []
    told += [f"{dropped:,} dropped"] if dropped else []
    return ", ".join(told) or "none"


def _dropped(entry: Entry) -> int:
    return sum(facts.dropped(worker) for worker in entry.run.workers.values())


def _of_family(family: str) -> list[tuple[str, Callable[[Entry], str]]]:
    """The columns of the row's metric, for metrics of one family."""

    def column(title: str, of: Callable[[Entry], float | None]) -> tuple[str, Callable[[Entry], str]]:
        return title, lambda entry: or_dash(of(entry) if facts.family(entry.metric or "") == family else None, finite)

    name = word(family)
    return [
        column(f"{name} first", lambda entry: entry.first),
        column(f"{name} last", lambda entry: entry.last),
        column(f"{name} best", lambda entry: entry.best),
    ]


# The title of a column, and its text for a row; a column without any value is left out.
COLUMNS: tuple[tuple[str, Callable[[Entry], str]], ...] = (
    ("run", lambda entry: entry.label),
    ("mode", lambda entry: entry.run.mode or DASH),
    ("split", lambda entry: entry.split or DASH),
    ("seed", lambda entry: DASH if entry.run.seed in (None, "") else str(entry.run.seed)),
    ("workers", lambda entry: str(entry.run.size)),
    ("steps", _steps),
    *(column for family in facts.PRINCIPAL for column in _of_family(family)),
    ("floor", lambda entry: or_dash(entry.floor, finite)),
    ("coverage", _coverage),
    ("sent by all", lambda entry: or_dash(facts.total(entry.run, "sent_bytes"), svg.octets)),
    ("predicted", lambda entry: or_dash(facts.predicted_bytes(entry.run), svg.octets)),
    ("images/s", lambda entry: or_dash(facts.images_per_s(entry.run))),
    ("time", lambda entry: or_dash(facts.seconds(entry.run), svg.seconds)),
    ("void rounds", lambda entry: or_dash(facts.void_rounds(entry.run), count)),
    ("late", lambda entry: or_dash(facts.total(entry.run, "late"), count)),
    ("deaths, drops", _mishaps),
)


def runs_table(entries: Sequence[Entry]) -> Table:
    """One row for each run."""
    cells = {title: [show(entry) for entry in entries] for title, show in COLUMNS}
    shown = [title for title, column in cells.items() if any(cell != DASH for cell in column)]
    return shown, [list(row) for row in zip(*(cells[title] for title in shown), strict=True)]


def groups_table(groups: Sequence[Group]) -> Table:
    """One row for each setting: the median over its seeds, and the range from the lowest to the highest."""
    metrics = {word(entry.metric): None for group in groups for entry in group.entries if entry.metric}
    titles = ["setting", "runs", f"{' or '.join(metrics) or 'FID'} last", "coverage", "sent by all", "images/s"]
    texts = {"last": finite, "coverage": svg.short, "sent_bytes": svg.octets, "images_per_s": svg.short}
    rows = []
    for group in groups:
        whole, all_of_them = len(group.counted), len(group.entries)
        runs = str(all_of_them) if whole == all_of_them else f"{whole} of {all_of_them}"
        rows.append([group.label, runs, *(_spread(group.spread(SPREADS[what]), text) for what, text in texts.items())])
    return titles, rows


def _spread(spread: tuple[float, float, float] | None, text: Callable[[float], str]) -> str:
    if spread is None:
        return DASH
    middle, low, high = map(text, spread)
    return middle if low == high else f"{middle} ({low} to {high})"


def has_repeats(groups: Sequence[Group]) -> bool:
    """Whether any setting was run more than once."""
    return any(len(group.entries) > 1 for group in groups)


def settings_table(entries: Sequence[Entry]) -> tuple[Table, dict[str, list[tuple[str, str]]]]:
    """The settings in which the runs differ (a column for each run), and by mode the settings that only one mode has.

    A setting that only one mode has, and that is equal in its runs, is no difference between two runs. Such a setting
    is listed by the mode's name.
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
    """The cell without characters that would end the cell or be read as HTML."""
    cell = " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
    return cell.replace("&", "&amp;").replace("<", "&lt;")


def as_json(entries: Sequence[Entry], groups: Sequence[Group]) -> str:
    """The whole comparison with its curves; null means an unknown value, or one that is not finite."""
    found = {
        "runs": [_run(entry) for entry in entries],
        "groups": [
            {
                "setting": group.label,
                "runs": [entry.label for entry in group.entries],
                "counted": [entry.label for entry in group.counted],
                **{
                    what: _finite(dict(zip(("median", "low", "high"), group.spread(of) or [None] * 3, strict=True)))
                    for what, of in SPREADS.items()
                },
            }
            for group in groups
        ],
        "settings": differences(entries),
    }
    return json.dumps(found, indent=1, default=str)


def _run(entry: Entry) -> dict[str, Any]:
    run, family = entry.run, facts.family(entry.metric or facts.PRINCIPAL[0])
    row = {"run": entry.label, "folder": str(run.folder), "mode": run.mode, "split": entry.split}
    row |= {"seed": run.seed, "workers": run.size, "steps": facts.steps(run), "is_whole": facts.is_whole(run)}
    row |= {"metric": entry.metric, f"{family}_first": entry.first, f"{family}_last": entry.last}
    row |= {f"{family}_best": entry.best, f"{family}_floor": entry.floor, "coverage": facts.lowest_coverage(run)}
    row |= {"classes": facts.newest(run, "classes"), "sent_bytes": facts.total(run, "sent_bytes")}
    row |= {"predicted_sent_bytes": facts.predicted_bytes(run), "images": facts.total(run, "images")}
    row |= {"images_per_s": facts.images_per_s(run), "seconds": facts.seconds(run)}
    row |= {"void_rounds": facts.void_rounds(run), "late": facts.total(run, "late"), "dead": len(facts.behind(run))}
    row |= {"restarts": facts.restarts(run), "dropped": _dropped(entry)}
    curves = {name: [_point(name, point) for point in points] for name, points in entry.curves.items()}
    return {**_finite(row), "curves": curves}


def _point(name: str, point: Point) -> dict[str, Any]:
    row = {"step": point.step, "seconds": point.seconds, "sent_bytes": point.sent_bytes}
    return _finite({**row, "images": point.images, facts.family(name): point.value})


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
