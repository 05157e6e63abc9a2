"""Charts as inline SVG text: curves with axes, and the table of classes as bubbles. No I/O, no style.

CSS classes give the colours: `c0` to `c7` draw a series, `d0` to `d2` its dashes, so that 24 workers are
distinct. Light and dark pages differ only in the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, "float | None"]

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 38
COLOURS, DASHES = 8, 3
DISCS_UP_TO = 40  # classes; more are drawn as bars
MAX_POINTS = 360  # a series is thinned to about its width in pixels
DOTS_UP_TO = 30  # fewer points than this are also drawn as dots


def style_of(index: int) -> str:
    """The CSS classes of series `index`."""
    return f"c{index % COLOURS} d{index // COLOURS % DASHES}"


def chart(
    series: Sequence[tuple[int, str, Sequence[Point]]],
    *,
    x_label: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    describe: str,
    floor: float | None = None,
    log: bool = False,
    log_x: bool = False,
    from_zero: bool = False,
    smooth: bool = False,
) -> str:
    """A line chart as an `<svg>` element; "" where no series has a finite point.

    Args:
        series: (index, name, points) for each curve; a point is (x, y), and y = None breaks the line.
        x_text, y_text: a value as a short text, for the ticks and the points' tooltips.
        describe: the alternative text.
        floor: a dashed horizontal line.
        log: logarithmic y, where every value is above zero; linear otherwise.
        log_x: logarithmic x; points at x <= 0 are left out.
        from_zero: the y axis begins at 0 (linear only).
        smooth: draw the values faintly, and a centred running mean over them.
    """
    if log_x:
        series = [(index, name, [point for point in points if point[0] > 0]) for index, name, points in series]
    finite = [(x, y) for _, _, points in series for x, y in points if y is not None]
    if not finite:
        return ""
    values = [y for _, y in finite] + ([floor] if floor is not None else [])
    log = log and min(values) > 1e-30
    left, right = min(x for x, _ in finite) / 1.1 if log_x else 0, max(x for x, _ in finite)
    x_ticks = _log_ticks(left, right) if log_x else _ticks(0, right, 5)
    if log:
        low, high = min(values) / 1.2, max(values) * 1.2
        y_ticks = _log_ticks(low, high)
    else:
        y_ticks = _ticks(min(0.0, *values) if from_zero else min(values), max(values), 5)
        low, high = y_ticks[0], y_ticks[-1]
    x_line = _scale(math.log10(left) if log_x else 0, math.log10(right) if log_x else right, LEFT, WIDTH - RIGHT)
    y_line = _scale(math.log10(low) if log else low, math.log10(high) if log else high, HEIGHT - BOTTOM, TOP)

    def x_at(value: float) -> float:
        return x_line(math.log10(value) if log_x else value)

    def y_at(value: float) -> float:
        return y_line(math.log10(value) if log else value)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(describe)}">']
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(y_text(tick))}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for tick in x_ticks:
        x = x_at(tick)
        if x > WIDTH - RIGHT + 0.5:
            continue
        anchor = "end" if x > WIDTH - RIGHT - 16 else "middle"
        parts.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">'
            f"{escape(x_text(tick))}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    if floor is not None:
        parts.append(f'<path class="floor" d="M{LEFT} {y_at(floor):.1f}H{WIDTH - RIGHT}"/>')
    for index, name, points in series:
        faint = smooth and sum(y is not None for _, y in points) >= DOTS_UP_TO
        line = _thin(points)
        parts.append(f'<path class="line{" faint" if faint else ""} {style_of(index)}" d="{_path(line, x_at, y_at)}"/>')
        if faint:
            parts.append(f'<path class="line {style_of(index)}" d="{_path(_thin(_mean(points)), x_at, y_at)}"/>')
        elif len(line) < DOTS_UP_TO:
            parts += [
                f'<circle class="dot c{index % COLOURS}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3">'
                f"<title>{escape(f'{name}, {x_label} {x_text(x)}: {y_text(y)}')}</title></circle>"
                for x, y in line
                if y is not None
            ]
    return "".join(parts) + "</svg>"


def bubbles(columns: Sequence[str], rows: Sequence[str], counts: Sequence[Sequence[float]], describe: str) -> str:
    """Counts as discs whose area is the count: one row for each worker, one column for each class."""
    cell, left, top = (44 if len(rows) <= 12 and len(columns) <= 24 else 30), 84, 6
    longest = max(len(name) for name in columns)
    slanted = longest > 3
    below = 24 if not slanted else min(96, 20 + 5 * longest)
    width, height = left + cell * len(columns) + 8, top + cell * len(rows) + below
    largest = max((count for row in counts for count in row), default=0) or 1
    parts = [
        f'<svg class="bubbles" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(describe)}">'
    ]
    for j, name in enumerate(columns):
        parts.append(_class_name(name, left + cell * (j + 0.5), top + cell * len(rows) + 14, slanted))
    for i, row in enumerate(rows):
        y = top + cell * (i + 0.5)
        parts.append(f'<text class="tick" x="{left - 10}" y="{y + 4:.0f}" text-anchor="end">{escape(row)}</text>')
        parts.append(f'<path class="grid" d="M{left} {y:.0f}H{width - 8}"/>')
        for j, count in enumerate(counts[i]):
            if count > 0:
                radius = max(1.5, (cell / 2 - 3) * math.sqrt(count / largest))
                parts.append(
                    f'<circle class="bubble c{i % COLOURS}" cx="{left + cell * (j + 0.5):.0f}" cy="{y:.0f}" '
                    f'r="{radius:.1f}"><title>{escape(f"{row}, {columns[j]}: {count:,.0f}")}</title></circle>'
                )
    return "".join(parts) + "</svg>"


def bars(
    columns: Sequence[str],
    rows: Sequence[str],
    counts: Sequence[Sequence[float]],
    describe: str,
    full: float | None = None,
    text: Callable[[float], str] = "{:,.0f}".format,
) -> str:
    """As `bubbles`, for too many columns for discs: one bar for each class, its height the count.

    Args:
        full: the value of a whole bar; None for the largest.
        text: a value as text.
    """
    left, top, row_height, tallest = 84, 6, 52, 42
    wide = max(3.0, min(20.0, 1080 / len(columns)))
    longest = min(16, max(len(name) for name in columns))
    slanted = longest > 3
    # The names under all bars would run into one black line.
    every = math.ceil((18 if slanted else 26) / wide)
    width = left + wide * len(columns) + 8
    height = top + row_height * len(rows) + (24 if not slanted else 20 + 5 * longest)
    largest = full or max((count for row in counts for count in row), default=0) or 1
    parts = [
        f'<svg class="bubbles" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(describe)}">'
    ]
    for j in range(0, len(columns), every):
        parts.append(_class_name(columns[j], left + wide * (j + 0.5), top + row_height * len(rows) + 14, slanted))
    for i, row in enumerate(rows):
        base = top + row_height * (i + 1) - 4
        middle = base - tallest / 2 + 4
        parts.append(f'<text class="tick" x="{left - 10}" y="{middle:.0f}" text-anchor="end">{escape(row)}</text>')
        parts.append(f'<path class="axis" d="M{left} {base}H{width - 8:.0f}"/>')
        for j, count in enumerate(counts[i]):
            if count > 0:
                tall = max(1.0, tallest * count / largest)
                parts.append(
                    f'<rect class="bubble c{i % COLOURS}" x="{left + wide * j + wide * 0.1:.1f}" y="{base - tall:.1f}" '
                    f'width="{wide * 0.8:.1f}" height="{tall:.1f}">'
                    f"<title>{escape(f'{row}, {columns[j]}: {text(count)}')}</title></rect>"
                )
    return "".join(parts) + "</svg>"


def _class_name(name: str, x: float, y: float, slanted: bool) -> str:
    turn = f' transform="rotate(-40 {x:.0f} {y})" text-anchor="end"' if slanted else ' text-anchor="middle"'
    brief = name if len(name) <= 16 else name[:15] + "…"
    return f'<text class="tick" x="{x:.0f}" y="{y}"{turn}>{escape(brief)}</text>'


def short(value: float) -> str:
    """A number with three significant digits: 0.0123, 1.23, 45.6, 1,230, 1.2e+07."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: float) -> str:
    """A duration: 850 µs, 12 ms, 3.2 s, 5 min, 2.5 h."""
    size = abs(value)
    if size == 0:
        return "0"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if size < limit:
            return f"{short(value * factor)} {unit}"
    return f"{short(value / 3600)} h"


def octets(value: float) -> str:
    """A size in decimal units: 512 B, 1.5 kB, 20 MB, 3 GB."""
    size = abs(value)
    for limit, factor, unit in ((1e3, 1, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if size < limit:
            return f"{short(value / factor)} {unit}" if value else "0"
    return f"{short(value / 1e12)} TB"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that cover low to high, at most `wanted` + 2 of them."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-20):
        high = low + (abs(low) if abs(low) > 1e-20 else 1.0) * 0.5
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values from low to high: powers of ten, with 3s or with 2s and 5s where these are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 7))
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _thin(points: Sequence[Point]) -> list[Point]:
    """At most about MAX_POINTS points: of each run of neighbours the lowest and the highest stay."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        group = list(enumerate(points[start : start + size]))
        known = [item for item in group if item[1][1] is not None]
        chosen = {group[0]} if not known else {min(known, key=_value), max(known, key=_value)}
        if known and start == 0:
            chosen.add(known[0])
        if known and start + size >= len(points):
            chosen.add(known[-1])
        kept += [point for _, point in sorted(chosen, key=lambda item: item[0])]
    return kept


def _value(item: tuple[int, Point]) -> float:
    return item[1][1] if item[1][1] is not None else math.nan


def _mean(points: Sequence[Point]) -> list[Point]:
    """The centred running mean over a twentieth of the curve, one-sided where the curve ends."""
    half = max(2, len(points) // 40)
    total, count = [0.0], [0]
    for _, y in points:
        total.append(total[-1] + (y or 0.0))
        count.append(count[-1] + (y is not None))
    mean: list[Point] = []
    for index, (x, y) in enumerate(points):
        start, end = max(0, index - half), min(len(points), index + half + 1)
        known = count[end] - count[start]
        mean.append((x, (total[end] - total[start]) / known if y is not None and known else None))
    return mean


def _path(points: Sequence[Point], x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    path, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        path.append(f"{pen}{x_at(x):.1f} {y_at(y):.1f}")
        pen = "L"
    return "".join(path)
