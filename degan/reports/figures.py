"""Figures of curves as the templates show them: charts over one or two axes, a legend, remarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from degan.reports import svg
from degan.reports.text import many, or_dash, time_unit, whole_or_short
from degan.runs.facts import ends
from degan.runs.records import Sample


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        legend: (index, name, value) for each curve.
        views: (CSS class, chart); a chart is "" if it has no points. The page shows one of several views.
        floor: the value of the dashed line as text; "" where there is no floor.
        aside: a remark under the charts.
    """

    title: str
    legend: Sequence[tuple[int, str, str]]
    views: Sequence[tuple[str, Markup]]
    floor: str = ""
    aside: str = ""


def is_wide(values: Sequence[float], floor: float | None) -> bool:
    """Whether the values, with the floor, need a logarithmic axis: they span a factor above ten."""
    spread = [*values, floor] if floor else values
    return min(spread) > 0 and max(spread) > 10 * min(spread)


def figure(
    title: str,
    series: Sequence[tuple[int, Sequence[Sample]]],
    text: Callable[[float], str],
    floor: float | None = None,
    may_be_log: bool = False,
    names: Mapping[int, str] | None = None,
    **options: bool,
) -> Figure | None:
    """One chart over steps and one over time; None where there are no points.

    Args:
        series: (index, samples) for each curve.
        text: a value as text.
        may_be_log: use a logarithmic axis where the values span more than a factor of ten.
        names: the names of the curves; None for workers by their numbers.
        options: those of `svg.chart`.
    """
    values = [value for _, samples in series for _, _, value in samples if value is not None]
    if not values:
        return None
    log = may_be_log and is_wide(values, floor)
    unit, divisor = time_unit(max((at for _, samples in series for _, at, _ in samples if at is not None), default=0.0))
    long, brief = (names, names) if names else ({i: f"worker {i}" for i, _ in series}, {i: f"w{i}" for i, _ in series})
    by_steps = [(index, long[index], [(step, y) for step, _, y in samples]) for index, samples in series]
    by_time = [
        (index, long[index], [(at / divisor, y) for _, at, y in samples if at is not None]) for index, samples in series
    ]
    views = []
    for css, x_label, curves, x_text in (
        ("by-steps", "step", by_steps, whole_or_short),
        ("by-time", f"time ({unit})", by_time, svg.short),
    ):
        describe = f"{title} over {x_label}, one curve {'each' if names else 'a worker'}"
        labels = {"x_label": x_label, "x_text": x_text, "y_text": text, "describe": describe}
        views.append((css, Markup(svg.chart(curves, **labels, floor=floor, log=log, **options))))
    missing = sum(value is None for _, samples in series for _, _, value in samples)
    remarks = []
    if options.get("smooth") and max(len(samples) for _, samples in series) >= svg.DOTS_UP_TO:
        remarks.append("Faint: as logged; line: running mean.")
    if missing:
        remarks.append(f"{many(missing, 'value')} not finite or missing, left out.")
    return Figure(
        f"{title}{', log scale' if log else ''}",
        [(index, brief[index], or_dash(ends(samples)[1], text)) for index, samples in series],
        views,
        "" if floor is None else text(floor),
        " ".join(remarks),
    )
