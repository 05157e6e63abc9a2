"""A run folder as one HTML page: `python -m degan.report RUN` writes RUN/report.html.

The page is one file that a person can send: charts are inline SVG, pictures are base64, there is no
script and no address outside it, and its content security policy forbids both. Whatever comes from a
file is escaped. It imports no torch, so it starts in a blink.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from config import UsageError
from degan import report_svg as svg
from degan.report_data import Run, Worker, is_of, read_run
from degan.report_style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Series = list[tuple[int, list[tuple[float, "float | None", "float | None"]]]]  # worker, (step, seconds, value)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m degan.report RUN`; returns the exit code: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="degan report", description="Write RUN/report.html from a run folder.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, finished or not")
    folder = parser.parse_args(argv).run
    try:
        print(write_report(folder))
    except UsageError as error:
        print(f"degan report: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(run: Path) -> Path:
    """Write `run`/report.html from what is there, and return its path.

    The folder may be of a run that is still going on or has died; what is missing is left out.

    Raises:
        UsageError: `run` is no run folder, or cannot be written to.
    """
    page = render(read_run(Path(run)))
    path = Path(run) / "report.html"
    temporary = path.with_name(f".report.html.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The whole page as HTML text."""
    name = run.experiment.name if run.experiment else run.folder.resolve().name
    sections = (_headline, _faults, _curves, _pictures, _shards, _settings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · degan report</title><style>{STYLE}</style></head><body>"
        '<input class="choice" type="radio" name="axis" id="by-steps" checked aria-label="curves over steps">'
        '<input class="choice" type="radio" name="axis" id="by-time" aria-label="curves over time">'
        f'<div class="page"><header><h1>{escape(name)}</h1><p>{_subtitle(run)}</p></header>'
        + "".join(section(run) for section in sections)
        + "<footer>Written by degan report. The file needs nothing beside it.</footer></div></body></html>\n"
    )


def _subtitle(run: Run) -> str:
    if run.experiment is None:
        return f"{_many(len(run.workers), 'worker')}"
    settings = run.experiment
    tags = [
        settings.mode.__struct_config__.tag,
        settings.model.__struct_config__.tag,
        settings.data.name,
        settings.loss,
    ]
    return " · ".join(escape(part) for part in [*tags, _many(settings.workers, "worker"), f"seed {settings.seed}"])


def _headline(run: Run) -> str:
    steps = max((worker.lines[-1]["step"] for worker in run.workers.values() if worker.lines), default=None)
    time_s = max((worker.last("time_s") or 0.0 for worker in run.workers.values()), default=0.0)
    sent = sum(worker.last("sent_bytes") or 0.0 for worker in run.workers.values())
    tiles = [
        (f"{steps:,}" if steps is not None else "–", "steps"),
        (svg.seconds(time_s) if time_s else "–", "training time"),
    ]
    for name in [name for name in run.measured() if is_of("fid", name)][:2]:
        last = [value for value in (_ends(line)[1] for line in run.metrics[name].values()) if value is not None]
        if last:
            tiles.append((svg.short(min(last)), f"lowest {_pretty(name)} at the end"))
        if run.floor(name) is not None:
            tiles.append((svg.short(run.floor(name)), f"floor of {_pretty(name)}"))
    tiles.append((svg.octets(sent), "sent by all workers"))
    cards = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles
    )
    return f'<div class="tiles">{cards}</div><h2>Workers</h2>{_workers_table(run)}'


def _workers_table(run: Run) -> str:
    if not run.workers:
        return '<p class="note">No worker has written anything yet.</p>'
    fids = [name for name in run.measured() if is_of("fid", name)]
    others = [name for name in run.measured() if name not in fids]
    head = ["worker", "steps"]
    for name in fids:
        head += [f"{_pretty(name)} first → last", "floor"]
    head += [*map(_pretty, others), "sent", "received", "steps/s", "waiting"]
    rows = []
    for index, worker in run.workers.items():
        cells = [f"{_swatch(index)}worker {index}", f"{worker.lines[-1]['step']:,}" if worker.lines else "–"]
        for name in fids:
            first, last = _ends(run.metrics[name].get(index, []))
            cells.append(f'<span class="then">{_or_dash(first, svg.short)} →</span> <b>{_or_dash(last, svg.short)}</b>')
            cells.append(_or_dash(run.floor(name), svg.short))
        for name in others:
            last = _or_dash(_ends(run.metrics[name].get(index, []))[1], svg.short)
            classes = run.newest("classes") if is_of("coverage", name) else None
            cells.append(last if classes is None else f"{last} of {svg.short(classes)}")
        cells += [_or_dash(worker.last(key), svg.octets) for key in ("sent_bytes", "received_bytes")]
        time_s = worker.last("time_s")
        cells.append(_or_dash(worker.lines[-1]["step"] / time_s if time_s else None, svg.short))
        cells.append(_or_dash(_waiting(worker), lambda share: f"{share:.0%}"))
        rows.append(cells)
    note = (
        "FID is the Fréchet distance (lower is better); its floor is the distance between two sets of real samples. "
        "Coverage says how many of the classes the generator makes (higher is better); TV is the total variation "
        "distance between its class frequencies and the data's (0 is perfect)."
    )
    return _table(head, rows) + (f'<p class="note">{note}</p>' if fids or others else "")


def _faults(run: Run) -> str:
    """Drops, restarts, workers that fell silent, unreadable lines; a calm line where there were none."""
    ends = {index: worker.lines[-1]["step"] for index, worker in run.workers.items() if worker.lines}
    furthest = max(ends.values(), default=0)
    planned = run.experiment.run.steps if run.experiment else None
    every = run.experiment.run.log_every if run.experiment else 0
    # A run that is still going on has workers a line or two apart; in a finished one all end together.
    lag = 2 * every if planned is None or furthest + every <= planned else 0
    behind = {index for index, step in ends.items() if step < furthest - lag}
    found: list[str] = []
    witnesses: dict[str, list[str]] = {}
    if planned and ends and furthest + every <= planned:
        found.append(f"The run has {furthest:,} of its {planned:,} steps.")
    for index, worker in run.workers.items():
        who = f"worker {index}"
        if not worker.lines:
            found.append(f"{who} wrote no statistics in this folder.")
        elif index in behind:
            found.append(f"{who} wrote its last line at step {ends[index]:,}; another reached {furthest:,}.")
        found += [f"{who} restarted: from step {a:,} back to {b:,}." for a, b in worker.restarts]
        dropped = [(reason, int(count)) for reason, count in worker.dropped.items() if count]
        found += [f"{who} dropped {_many(count, 'message')}: {reason}." for reason, count in dropped]
        lost = _lost_peers(run, worker, bool(behind - {index}))
        if lost:
            witnesses.setdefault(lost, []).append(str(index))
    found += [f"worker{'s' * (len(who) > 1)} {', '.join(who)} saw {lost}." for lost, who in witnesses.items()]
    found += [f"{file}: {_many(count, 'line')} could not be read." for file, count in run.unreadable.items()]
    if not found:
        return '<h2>Drops and deaths</h2><p class="note">None: no message dropped, no worker lost, no restart.</p>'
    items = "".join(f"<li>{escape(line)}</li>" for line in found)
    return f'<h2>Drops and deaths</h2><div class="card bad"><ul class="faults">{items}</ul></div>'


def _lost_peers(run: Run, worker: Worker, someone_is_behind: bool) -> str:
    """When a worker saw fewer live peers than there are, unless those had merely finished before it."""
    seen = [(step, int(value)) for step, _, value in worker.series("live_peers") if value is not None]
    full = max((value for _, value in seen), default=0)
    if run.experiment and run.experiment.mode.__struct_config__.tag != "local":
        full = run.experiment.workers - 1
    fewer = next(((step, value) for step, value in seen if value < full), None)
    if fewer is None:
        return ""
    back = next((step for step, value in seen if step > fewer[0] and value >= full), None)
    if back is None and not someone_is_behind:
        return ""
    until = f", all of them again at step {back:,}" if back is not None else ""
    return f"{fewer[1]} of {full} peers alive at step {fewer[0]:,}{until}"


def _curves(run: Run) -> str:
    figures = []
    for name in run.measured():
        series = list(run.metrics[name].items())
        figures.append(_figure(_pretty(name), series, svg.short, floor=run.floor(name), may_be_log=is_of("fid", name)))
    stats: list[tuple[str, str, Callable[[float], str], dict]] = [
        ("Discriminator loss", "d_loss", svg.short, {"smooth": True}),
        ("Generator loss", "g_loss", svg.short, {"smooth": True}),
        ("Time of a step", "step_s", svg.seconds, {"from_zero": True, "smooth": True}),
        ("Waiting in a step", "wait_s", svg.seconds, {"from_zero": True, "smooth": True}),
        ("Sent so far", "sent_bytes", svg.octets, {"from_zero": True}),
        ("Received so far", "received_bytes", svg.octets, {"from_zero": True}),
        ("Staleness, mean (rounds)", "staleness_mean", svg.short, {"from_zero": True, "smooth": True}),
        ("Staleness, maximum (rounds)", "staleness_max", svg.short, {"from_zero": True, "smooth": True}),
    ]
    for title, key, text, options in stats:
        series = [(index, worker.series(key)) for index, worker in run.workers.items() if worker.lines]
        figures.append(_figure(title, series, text, **options))
    drawn = "".join(figures)
    if not drawn:
        return '<h2>Curves</h2><p class="note">Nothing was measured yet.</p>'
    switch = '<div class="switch"><label for="by-steps">steps</label><label for="by-time">time</label></div>'
    return f'<div class="bar"><h2>Curves</h2>{switch}</div><div class="charts">{drawn}</div>'


def _figure(
    title: str,
    series: Series,
    text: Callable[[float], str],
    floor: float | None = None,
    may_be_log: bool = False,
    **options: bool,
) -> str:
    """One chart over steps and over time, with its legend; "" where there is nothing to draw."""
    values = [value for _, points in series for _, _, value in points if value is not None]
    if not values:
        return ""
    spread = [*values, floor] if floor else values
    options["log"] = may_be_log and min(spread) > 0 and max(spread) > 10 * min(spread)
    longest = max((at for _, points in series for _, at, _ in points if at is not None), default=0.0)
    unit, divisor = next((u for u in (("s", 1), ("min", 60), ("h", 3600)) if longest <= 120 * u[1]), ("h", 3600))
    by_steps = [(index, f"worker {index}", [(step, y) for step, _, y in points]) for index, points in series]
    by_time = [
        (index, f"worker {index}", [(at / divisor, y) for _, at, y in points if at is not None])
        for index, points in series
    ]
    charts = [
        ("by-steps", "step", by_steps, lambda x: f"{x:,.0f}" if x == int(x) else svg.short(x)),
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
            describe=f"{title} over {x_label}, one curve a worker",
            **options,
        )
        drawn += f'<div class="{css}">{chart or "<p class=aside>No times are known for this.</p>"}</div>'
    legend = "".join(
        f"<span>{_swatch(index)}w{index} <b>{_or_dash(_ends(points)[1], text)}</b></span>" for index, points in series
    )
    if floor is not None:
        dashed = '<svg viewBox="0 0 20 8" aria-hidden="true"><path class="floor" d="M0 4H20"/></svg>'
        legend += f"<span>{dashed}floor <b>{escape(text(floor))}</b></span>"
    missing = sum(value is None for _, points in series for _, _, value in points)
    remarks = []
    if options.get("smooth") and max(len(points) for _, points in series) >= svg.DOTS_UP_TO:
        remarks.append("Faint: as logged; line: running mean.")
    if missing:
        remarks.append(f"{_many(missing, 'value')} not finite or missing, left out.")
    aside = f'<p class="aside">{" ".join(remarks)}</p>' if remarks else ""
    scale = ", log scale" if options["log"] else ""
    return (
        f'<figure class="card chart"><figcaption><h3>{escape(title)}{scale}</h3><div class="legend">{legend}</div>'
        f"</figcaption>{drawn}{aside}</figure>"
    )


def _pictures(run: Run) -> str:
    if not run.pictures:
        return ""
    figures = []
    for stem, data in run.pictures:
        found = re.search(r"\d+", stem)
        caption = (
            "<b>Real samples</b>" if stem == "reals" else f"<b>Step {int(found[0]):,}</b>" if found else escape(stem)
        )
        rest = "" if stem == "reals" else re.sub(r"^[-_ .]+", "", stem[found.end() :]) if found else ""
        caption += f" · {escape(rest)}" if rest else ""
        image = base64.b64encode(data).decode("ascii")
        figures.append(
            f'<figure class="card{" reals" if stem == "reals" else ""}"><figcaption>{caption}</figcaption>'
            f'<img alt="{escape(stem)}" src="data:image/png;base64,{image}"></figure>'
        )
    left = run.pictures_left_out
    note = "The same latents each time, through the moving average of the generator's weights."
    note += f" {_many(left, 'picture')} in between not shown; they lie in the run folder." if left > 0 else ""
    return f'<h2>Samples</h2><p class="note">{note}</p><div class="pictures">{"".join(figures)}</div>'


def _shards(run: Run) -> str:
    if run.shards is None:
        return ""
    classes, counts = run.shards["classes"], run.shards["counts"]
    workers = [f"worker {index}" for index in range(len(counts))]
    largest = max((count for row in counts for count in row), default=0) or 1
    head = "".join(f"<th>{escape(name)}</th>" for name in ["worker", *classes, "all"])
    body = ""
    for index, row in enumerate(counts):
        cells = "".join(f'<td style="--share:{count / largest:.2f}">{count:,.0f}</td>' for count in row)
        cells = cells or f'<td colspan="{len(classes)}">known on its own host</td>'
        total = f"{sum(row):,.0f}" if row else ""
        body += f"<tr><th>{_swatch(index)}worker {index}</th>{cells}<td><b>{total}</b></td></tr>"
    table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    picture = svg.bubbles(classes, workers, counts, "Samples of each class in each worker's shard")
    return (
        '<h2>Who holds what</h2><p class="note">Training samples of each class in each worker\'s shard; '
        "the area of a disc is the count.</p>"
        f'<div class="card scroll">{picture}</div><div class="card scroll below">{table}</div>'
    )


def _settings(run: Run) -> str:
    parts = ""
    if run.settings:
        parts += f'<div class="card"><pre>{escape(run.settings)}</pre></div>'
    if run.environment:
        rows = [
            [escape(str(key)), escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
            for key, value in run.environment.items()
        ]
        body = "".join(f'<tr><th>{key}</th><td class="text">{value}</td></tr>' for key, value in rows)
        parts += f'<div class="card scroll"><table><tbody>{body}</tbody></table></div>'
    return f'<h2>Settings and versions</h2><div class="pair">{parts}</div>' if parts else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`head` is text; the cells of `rows` are HTML."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _swatch(index: int) -> str:
    line = f'<path class="line {svg.style_of(index)}" d="M1 4H19"/>'
    return f'<span class="legend" style="display:inline"><svg viewBox="0 0 20 8" aria-hidden="true">{line}</svg></span>'


def _ends(points: Sequence[tuple[float, float | None, float | None]]) -> tuple[float | None, float | None]:
    """The first and the last finite value of a series."""
    values = [value for _, _, value in points if value is not None]
    return (values[0], values[-1]) if values else (None, None)


def _waiting(worker: Worker) -> float | None:
    """The share of a step that went by in waiting, over the whole run."""
    steps = [value for _, _, value in worker.series("step_s") if value is not None]
    waits = [value for _, _, value in worker.series("wait_s") if value is not None]
    return sum(waits) / sum(steps) if waits and sum(steps) > 0 else None


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else escape(text(value))


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _pretty(name: str) -> str:
    """`fid5000_classifier` -> `FID (classifier, 5,000 samples)`."""
    found = re.fullmatch(r"([a-z]+)(\d+)_(.+)", name)
    if not found:
        return name
    family, count, rest = found.groups()
    word = {"fid": "FID", "tv": "TV", "coverage": "Coverage"}.get(family, family.capitalize())
    return f"{word} ({rest.replace('_', ' ')}, {int(count):,} samples)"


if __name__ == "__main__":
    sys.exit(main())
