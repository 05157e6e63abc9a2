"""The comparison as one HTML page: curves of all runs over four axes, tables, the newest samples side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from degan.reports import svg
from degan.reports.compare_data import Entry, Group
from degan.reports.compare_tables import finite, groups_table, has_repeats, runs_table, settings_table
from degan.reports.figures import Figure, is_wide
from degan.reports.page import Cell, render
from degan.reports.text import count, many, or_dash, pretty, time_unit, title, whole_or_short, word
from degan.runs import facts
from degan.runs.facts import Point
from degan.runs.folder import Picture

# The page is meant to be sent around: it has the newest samples of as many runs as fit.
MAX_PICTURES_BYTES = 24_000_000
# From this ratio of the most to the fewest bytes on, runs with few bytes would be a line at the edge.
LOG_FROM = 20


@dataclass(frozen=True)
class Axis:
    """An x axis: its name in the title, the position of a point, a value as text, the label."""

    over: str
    x_of: Callable[[Point], float | None]
    text: Callable[[float], str]
    label: str
    log: bool = False


def compare_page(entries: Sequence[Entry], groups: Sequence[Group]) -> str:
    """The whole page as HTML text."""
    styles = _styles(groups)
    names = {name: None for entry in entries for name in entry.curves}
    titles, rows = runs_table(entries)
    settings, alone = settings_table(entries)
    pictures, reals, left_out = _samples(entries)
    return render(
        "compare.html",
        title="Runs compared",
        command="degan compare",
        subtitle=f"{many(len(entries), 'run')}, {many(len(groups), 'setting')}",
        legend=[(styles[entry.label], entry.label, or_dash(entry.last, finite)) for entry in entries],
        metrics=[_of_metric(name, [entry for entry in entries if name in entry.curves], styles) for name in names],
        is_mixed=len({entry.metric for entry in entries if entry.metric}) > 1,
        worst=" or ".join({_worst(name): None for name in names}),
        better=" or ".join({"lower" if facts.is_lower_better(name) else "higher": None for name in names}).capitalize(),
        runs=(titles, [[Cell(row[0], line=styles[e.label]), *row[1:]] for e, row in zip(entries, rows, strict=True)]),
        groups=groups_table(groups) if has_repeats(groups) else None,
        settings=settings,
        alone=alone,
        pictures=[
            (styles[entry.label], entry.label, picture, or_dash(entry.last, finite)) for entry, picture in pictures
        ],
        measure=" or ".join({word(entry.metric): None for entry in entries if entry.metric}) or "FID",
        reals=reals,
        left_out=left_out,
    )


def _worst(name: str) -> str:
    return f"the {'largest' if facts.is_lower_better(name) else 'lowest'} {word(name)}"


def _styles(groups: Sequence[Group]) -> dict[str, int]:
    """The line style of each run, by its label: repeats of a setting share the colour and differ in the dashes."""
    found = {}
    for at, group in enumerate(groups):
        for repeat, entry in enumerate(group.entries):
            dashes = (at // svg.COLOURS + repeat) % svg.DASHES
            found[entry.label] = at % svg.COLOURS + svg.COLOURS * dashes
    return found


def _of_metric(name: str, entries: Sequence[Entry], styles: dict[str, int]) -> dict[str, Any]:
    """The four figures of one metric, and remarks."""
    curves = [(styles[entry.label], entry.label, entry.curves[name]) for entry in entries]
    values = [point.value for _, _, points in curves for point in points if math.isfinite(point.value)]
    if not values:
        return {"title": pretty(name), "remarks": ["No finite value."], "figures": []}
    floors = [floor for entry in entries if (floor := facts.floor(entry.run, name)) is not None]
    floor = min(floors, default=None)
    log = facts.family(name) == "fid" and is_wide(values, floor)
    figures = []
    for axis in _axes(entries, curves):
        over = f"{axis.over}{', log scale' if log else ''}"
        series = [
            (index, label, [(x, _drawable(p.value)) for p in points if (x := axis.x_of(p)) is not None])
            for index, label, points in curves
        ]
        chart = svg.chart(
            series,
            x_label=f"{axis.label}{', log scale' if axis.log else ''}",
            x_text=axis.text,
            y_text=svg.short,
            floor=floor,
            log=log,
            log_x=axis.log,
            describe=f"{pretty(name)} over {axis.over}, one curve a run",
        )
        aside = _aside(entries, name, axis.log) if axis.over == "bytes" else ""
        shown_floor = "" if floor is None else svg.short(floor)
        figures.append(Figure(f"{title(name)} over {over}", [], [("", Markup(chart))], shown_floor, aside))
    lost = sum(not math.isfinite(point.value) for _, _, points in curves for point in points)
    remarks = [f"{many(lost, 'value')} not finite: the curve has a gap."] if lost else []
    if floors and max(floors) > 1.01 * min(floors):
        remarks.append(
            f"The floors are from {svg.short(min(floors))} to {svg.short(max(floors))}; the lowest is drawn."
        )
    return {"title": pretty(name), "remarks": remarks, "figures": figures}


def _axes(entries: Sequence[Entry], curves: Sequence[tuple[int, str, list[Point]]]) -> list[Axis]:
    unit, divisor = time_unit(max((point.seconds or 0.0 for _, _, points in curves for point in points), default=0.0))
    sent = [points[-1].sent_bytes for _, _, points in curves if points[-1].sent_bytes]
    log = bool(sent) and max(sent) > LOG_FROM * min(sent)
    rounds = [facts.has_rounds(entry.run) for entry in entries]
    over = "rounds" if all(rounds) else "steps and rounds" if any(rounds) else "steps"
    return [
        Axis(over, lambda point: point.step, whole_or_short, "round" if all(rounds) else "step"),
        Axis("bytes", lambda point: point.sent_bytes, svg.octets, "sent by all workers so far", log),
        Axis(
            "time",
            lambda point: None if point.seconds is None else point.seconds / divisor,
            svg.short,
            f"training time ({unit})",
        ),
        Axis("images", lambda point: point.images, count, "images that all workers have trained on so far"),
    ]


def _aside(entries: Sequence[Entry], name: str, log_x: bool) -> str:
    """A remark with the runs that the chart over bytes cannot show as a curve, because they sent nothing."""
    if log_x:
        lost = [entry.label for entry in entries if not any(point.sent_bytes for point in entry.curves[name])]
        where = "not in this chart"
    else:
        lost = [entry.label for entry in entries if not facts.total(entry.run, "sent_bytes")]
        where = "at the left edge"
    return f"Nothing was sent, so {where}: {', '.join(lost)}." if lost else ""


def _drawable(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _samples(entries: Sequence[Entry]) -> tuple[list[tuple[Entry, Picture]], Picture | None, int]:
    """The newest samples of the runs, real samples, and the number of pictures that are too large and left out."""
    found, room, left_out = [], MAX_PICTURES_BYTES, 0
    for entry in entries:
        fakes = [picture for picture in entry.run.pictures if not picture.is_reals]
        if not fakes:
            continue
        if len(fakes[-1].data) > room:
            left_out += 1
            continue
        room -= len(fakes[-1].data)
        found.append((entry, fakes[-1]))
    reals = next((picture for entry in entries for picture in entry.run.pictures if picture.is_reals), None)
    return found, reals if reals and len(reals.data) <= room else None, left_out
