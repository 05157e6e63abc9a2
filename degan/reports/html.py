"""What the report's page and the comparison's share: the frame, tables, pictures and figures of curves.

A page is one file that a person can send: charts are inline SVG, pictures are base64, there is no
script and no address outside it, and its content security policy forbids both. `text` arguments are
escaped here; arguments called `html`, and the cells of tables, are markup already.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from config import UsageError
from degan.reports import svg
from degan.reports.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Series = list[tuple[int, list[tuple[float, "float | None", "float | None"]]]]  # index, (step, seconds, value)

# The switch between the two x axes needs no script: two radio buttons before the page, and the style sheet.
AXIS_CHOICE = (
    '<input class="choice" type="radio" name="axis" id="by-steps" checked aria-label="curves over steps">'
    '<input class="choice" type="radio" name="axis" id="by-time" aria-label="curves over time">'
)
AXIS_SWITCH = '<div class="switch"><label for="by-steps">steps</label><label for="by-time">time</label></div>'


def page(title: str, command: str, subtitle_html: str, body_html: str, before_html: str = "") -> str:
    """The whole page as HTML text; `before_html` stands before everything that the style sheet switches."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · {escape(command)}</title><style>{STYLE}</style></head><body>{before_html}"
        f'<div class="page"><header><h1>{escape(title)}</h1><p>{subtitle_html}</p></header>{body_html}'
        f"<footer>Written by {escape(command)}. The file needs nothing beside it.</footer></div></body></html>\n"
    )


def write_page(path: Path, html: str) -> None:
    """Write a page whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """`head` is text; the cells of `rows` are HTML."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    inner = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="card scroll"><table class="{css}">{inner}</table></div>'


def picture(name: str, data: bytes, caption_html: str, is_reals: bool = False) -> str:
    """A PNG with its caption; real samples have a frame of their own."""
    image = base64.b64encode(data).decode("ascii")
    return (
        f'<figure class="card{" reals" if is_reals else ""}"><figcaption>{caption_html}</figcaption>'
        f'<img alt="{escape(name)}" src="data:image/png;base64,{image}"></figure>'
    )


def swatch(index: int) -> str:
    """A short piece of curve `index`'s line."""
    line = f'<path class="line {svg.style_of(index)}" d="M1 4H19"/>'
    return f'<span class="legend" style="display:inline"><svg viewBox="0 0 20 8" aria-hidden="true">{line}</svg></span>'


def floor_in_legend(text: str) -> str:
    """The dashed line of a floor, with its value."""
    dashed = '<svg viewBox="0 0 20 8" aria-hidden="true"><path class="floor" d="M0 4H20"/></svg>'
    return f"<span>{dashed}floor <b>{escape(text)}</b></span>"


def figure(
    title: str,
    series: Series,
    text: Callable[[float], str],
    floor: float | None = None,
    may_be_log: bool = False,
    names: Mapping[int, str] | None = None,
    **options: bool,
) -> str:
    """One chart over steps and over time, with its legend; "" where there is nothing to draw.

    Args:
        text: a value as text.
        may_be_log: use a logarithmic axis where the values span more than a factor of ten.
        names: what the curves are; workers by their numbers where it is None.
        options: as `report_svg.chart` has them.
    """
    values = [value for _, points in series for _, _, value in points if value is not None]
    if not values:
        return ""
    spread = [*values, floor] if floor else values
    options["log"] = may_be_log and min(spread) > 0 and max(spread) > 10 * min(spread)
    longest = max((at for _, points in series for _, at, _ in points if at is not None), default=0.0)
    unit, divisor = time_unit(longest)
    long, brief = (names, names) if names else ({i: f"worker {i}" for i, _ in series}, {i: f"w{i}" for i, _ in series})
    by_steps = [(index, long[index], [(step, y) for step, _, y in points]) for index, points in series]
    by_time = [
        (index, long[index], [(at / divisor, y) for _, at, y in points if at is not None]) for index, points in series
    ]
    charts = [
        ("by-steps", "step", by_steps, whole_or_short),
        ("by-time", f"time ({unit})", by_time, svg.short),
    ]
    drawn = ""
    for css, x_label, curves, x_text in charts:
        chart = svg.chart(
            curves,
            x_label=x_label,
            x_text=x_text,
            y_text=text,
            floor=floor,
            describe=f"{title} over {x_label}, one curve {'each' if names else 'a worker'}",
            **options,
        )
        drawn += f'<div class="{css}">{chart or "<p class=aside>No times are known for this.</p>"}</div>'
    legend = "".join(
        f"<span>{swatch(index)}{escape(brief[index])} <b>{or_dash(ends(points)[1], text)}</b></span>"
        for index, points in series
    )
    if floor is not None:
        legend += floor_in_legend(text(floor))
    missing = sum(value is None for _, points in series for _, _, value in points)
    remarks = []
    if options.get("smooth") and max(len(points) for _, points in series) >= svg.DOTS_UP_TO:
        remarks.append("Faint: as logged; line: running mean.")
    if missing:
        remarks.append(f"{many(missing, 'value')} not finite or missing, left out.")
    aside = f'<p class="aside">{" ".join(remarks)}</p>' if remarks else ""
    return framed(f"{title}{', log scale' if options['log'] else ''}", legend, drawn + aside)


def framed(title: str, legend_html: str, chart_html: str) -> str:
    """A chart under its title, in a card."""
    return (
        f'<figure class="card chart"><figcaption><h3>{escape(title)}</h3><div class="legend">{legend_html}</div>'
        f"</figcaption>{chart_html}</figure>"
    )


def time_unit(longest_s: float) -> tuple[str, float]:
    """The unit of a time axis, and how many seconds it has."""
    return next((unit for unit in (("s", 1), ("min", 60)) if longest_s <= 120 * unit[1]), ("h", 3600))


def whole_or_short(value: float) -> str:
    """A step as text: 1,500; between two steps as few digits as tell."""
    return f"{value:,.0f}" if value == int(value) else svg.short(value)


def ends(points: Sequence[tuple[float, float | None, float | None]]) -> tuple[float | None, float | None]:
    """The first and the last finite value of a series."""
    values = [value for _, _, value in points if value is not None]
    return (values[0], values[-1]) if values else (None, None)


def or_dash(value: float | None, text: Callable[[float], str]) -> str:
    """`text(value)` as HTML, or a dash for None."""
    return "–" if value is None else escape(text(value))


def many(count: int, what: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def pretty(name: str) -> str:
    """`fid5000_classifier` -> `FID (classifier, 5,000 samples)`."""
    found = re.fullmatch(r"([a-z]+)(\d+)_(.+)", name)
    if not found:
        return name
    family, count, rest = found.groups()
    word = {"fid": "FID", "tv": "TV", "coverage": "Coverage"}.get(family, family.capitalize())
    return f"{word} ({rest.replace('_', ' ')}, {int(count):,} samples)"
