"""The comparison as one HTML page: curves of all runs over four axes, tables, the newest samples side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape

from degan.reports import svg
from degan.reports.compare_data import Entry, Group, Point
from degan.reports.compare_tables import Table, fid, groups_table, has_repeats, runs_table, settings_table
from degan.reports.html import (
    floor_in_legend,
    framed,
    many,
    page,
    picture,
    pretty,
    swatch,
    table,
    time_unit,
    whole_or_short,
)

# A page that is sent around: the newest samples of so many runs as fit.
MAX_PICTURES_BYTES = 24_000_000
# From this ratio between the most and the fewest bytes on, the frugal runs would be a line at the edge.
LOG_FROM = 20


def render(entries: Sequence[Entry], groups: Sequence[Group]) -> str:
    """The whole page as HTML text."""
    styles = _styles(groups)
    body = _key(entries, styles) + _curves(entries, styles) + _runs(entries, styles)
    body += _groups(groups) + _samples(entries, styles) + _settings(entries)
    subtitle = f"{many(len(entries), 'run')}, {many(len(groups), 'setting')}"
    return page("Runs compared", "degan compare", subtitle, body)


def _styles(groups: Sequence[Group]) -> dict[str, int]:
    """A line for each run, by its label: repeats of a setting share the colour and differ in the dashes."""
    found = {}
    for at, group in enumerate(groups):
        for repeat, entry in enumerate(group.entries):
            dashes = (at // svg.COLOURS + repeat) % svg.DASHES
            found[entry.label] = at % svg.COLOURS + svg.COLOURS * dashes
    return found


def _key(entries: Sequence[Entry], styles: dict[str, int]) -> str:
    """The legend of all charts, once."""
    lines = "".join(
        f"<span>{swatch(styles[entry.label])}{escape(entry.label)} <b>{escape(fid(entry.last))}</b></span>"
        for entry in entries
    )
    return f'<div class="card key"><div class="legend">{lines}</div></div>'


def _curves(entries: Sequence[Entry], styles: dict[str, int]) -> str:
    names = {name: None for entry in entries for name in entry.curves}
    drawn = "".join(_of_metric(name, [entry for entry in entries if name in entry.curves], styles) for name in names)
    if not drawn:
        return '<h2>Curves</h2><p class="note">No run has measured an FID yet.</p>'
    note = (
        "A curve is a run: at each step the worst, that is the largest, FID over the workers that measured at that "
        "step. Bytes and images are those of all the run's workers together so far, between two lines of their "
        "statistics by straight interpolation; time is training time. Lower, and further to the left, is better. "
        "The number in the legend is the newest FID."
    )
    if len({entry.fid for entry in entries if entry.fid}) > 1:
        note += " FIDs of different sample counts or networks cannot be held against each other."
    return f'<h2>Curves</h2><p class="note">{note}</p>{drawn}'


def _of_metric(name: str, entries: Sequence[Entry], styles: dict[str, int]) -> str:
    """The four charts of one FID."""
    curves = [(styles[entry.label], entry.label, entry.curves[name]) for entry in entries]
    values = [point.fid for _, _, points in curves for point in points if math.isfinite(point.fid)]
    if not values:
        return f'<h3>{escape(pretty(name))}</h3><p class="note">No finite value.</p>'
    floors = [floor for entry in entries if (floor := entry.run.floor(name)) is not None]
    floor = min(floors, default=None)
    spread = [*values, floor] if floor else values
    is_log = min(spread) > 0 and max(spread) > 10 * min(spread)
    longest = max((point.seconds or 0.0 for _, _, points in curves for point in points), default=0.0)
    unit, divisor = time_unit(longest)
    ends = [points[-1].sent_bytes for _, _, points in curves if points[-1].sent_bytes]
    is_log_x = bool(ends) and max(ends) > LOG_FROM * min(ends)
    led = [entry.run.is_leader_based for entry in entries]
    over_steps = "rounds" if all(led) else "steps and rounds" if any(led) else "steps"
    axes: list[tuple[str, Callable[[Point], float | None], Callable[[float], str], str, bool]] = [
        (over_steps, lambda point: point.step, whole_or_short, "round" if all(led) else "step", False),
        ("bytes", lambda point: point.sent_bytes, svg.octets, "sent by all workers so far", is_log_x),
        ("time", lambda point: _over(point.seconds, divisor), svg.short, f"training time ({unit})", False),
        (
            "images",
            lambda point: point.images,
            lambda x: f"{x:,.0f}",
            "images that all workers have trained on so far",
            False,
        ),
    ]
    drawn = ""
    for over, x_of, x_text, x_label, log_x in axes:
        series = [
            (index, label, [(x, _drawable(point.fid)) for point in points if (x := x_of(point)) is not None])
            for index, label, points in curves
        ]
        chart = svg.chart(
            series,
            x_label=f"{x_label}{', log scale' if log_x else ''}",
            x_text=x_text,
            y_text=svg.short,
            floor=floor,
            log=is_log,
            log_x=log_x,
            describe=f"{pretty(name)} over {over}, one curve a run",
        )
        aside = _aside(entries, name, log_x) if over == "bytes" else ""
        legend = floor_in_legend(svg.short(floor)) if floor is not None else ""
        drawn += framed(f"FID over {over}{', log scale' if is_log else ''}", legend, (chart or "") + aside)
    lost = sum(not math.isfinite(point.fid) for _, _, points in curves for point in points)
    told = [f"{many(lost, 'value')} not finite: the curve has a gap."] if lost else []
    if floors and max(floors) > 1.01 * min(floors):
        told.append(f"The floors are from {svg.short(min(floors))} to {svg.short(max(floors))}; the lowest is drawn.")
    note = f'<p class="note">{" ".join(told)}</p>' if told else ""
    return f'<h3 class="over">{escape(pretty(name))}</h3>{note}<div class="charts four">{drawn}</div>'


def _aside(entries: Sequence[Entry], name: str, log_x: bool) -> str:
    """Which runs the chart over bytes cannot show as a curve: what was sent at an evaluation may be nothing."""
    if log_x:
        lost = [entry.label for entry in entries if not any(point.sent_bytes for point in entry.curves[name])]
        told = f"Nothing was sent, so not in this chart: {', '.join(lost)}."
    else:
        lost = [entry.label for entry in entries if not entry.sent_bytes]
        told = f"Nothing was sent, so at the left edge: {', '.join(lost)}."
    return f'<p class="aside">{escape(told)}</p>' if lost else ""


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _drawable(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _runs(entries: Sequence[Entry], styles: dict[str, int]) -> str:
    titles, rows = runs_table(entries)
    cells = [[escape(cell) for cell in row] for row in rows]
    for entry, row in zip(entries, cells, strict=True):
        row[0] = swatch(styles[entry.label]) + row[0]
    note = (
        "FID and coverage are those of the worst worker; bytes are those of all workers, beside what the mode's "
        "formula predicts where it has one. The floor is the distance between two sets of real samples."
    )
    return f'<h2>Runs</h2>{table(titles, cells, css="dense")}<p class="note">{note}</p>'


def _groups(groups: Sequence[Group]) -> str:
    if not has_repeats(groups):
        return ""
    note = (
        "Runs whose settings are the same but for the seed, the name and the hosts; the median, and the lowest and "
        "the highest. Where a run has not reached its last step, only the others of its row count."
    )
    return f'<h2>Settings over their seeds</h2>{_escaped(groups_table(groups))}<p class="note">{note}</p>'


def _settings(entries: Sequence[Entry]) -> str:
    (titles, rows), alone = settings_table(entries)
    shown = _escaped((titles, rows)) if rows else '<p class="note">None but the seeds and the names.</p>'
    only = "".join(
        f'<p class="note">Only {escape(mode)} has: {escape(", ".join(f"{key} {value}" for key, value in held))}.</p>'
        for mode, held in alone.items()
    )
    return f"<h2>Settings that differ</h2>{shown}{only}"


def _escaped(what: Table) -> str:
    titles, rows = what
    return table(titles, [[escape(cell) for cell in row] for row in rows], css="dense")


def _samples(entries: Sequence[Entry], styles: dict[str, int]) -> str:
    figures, room, left_out = [], MAX_PICTURES_BYTES, 0
    for entry in entries:
        fakes = [(stem, data) for stem, data in entry.run.pictures if stem != "reals"]
        if not fakes:
            continue
        stem, data = fakes[-1]
        if len(data) > room:
            left_out += 1
            continue
        room -= len(data)
        found = re.search(r"\d+", stem)
        step = f" · step {int(found[0]):,}" if found else ""
        caption = f"{swatch(styles[entry.label])}<b>{escape(entry.label)}</b>{step} · FID {escape(fid(entry.last))}"
        figures.append(picture(f"{entry.label} {stem}", data, caption))
    if not figures:
        return ""
    reals = next((data for entry in entries for stem, data in entry.run.pictures if stem == "reals"), None)
    if reals is not None and len(reals) <= room:
        figures.append(picture("reals", reals, "<b>Real samples</b>", is_reals=True))
    note = "The newest samples of each run."
    note += f" {many(left_out, 'picture')} too large for this page left out." if left_out else ""
    return f'<h2>Samples</h2><p class="note">{note}</p><div class="pictures">{"".join(figures)}</div>'
