"""A run folder as one HTML page: `python -m degan.report RUN` writes RUN/report.html.

Whatever comes from a file is escaped; see `degan.reports.html` for what a page may hold. It imports no
torch, so it starts in a blink.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from config import UsageError
from degan.reports import svg
from degan.reports.faults import faults
from degan.reports.html import (
    AXIS_CHOICE,
    AXIS_SWITCH,
    ends,
    figure,
    many,
    or_dash,
    page,
    picture,
    pretty,
    swatch,
    table,
    write_page,
)
from degan.reports.rounds import rounds
from degan.runs.records import Run, Worker, is_of, read_run


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
    path = Path(run) / "report.html"
    write_page(path, render(read_run(Path(run))))
    return path


def render(run: Run) -> str:
    """The whole page as HTML text."""
    name = run.experiment.name if run.experiment else run.folder.resolve().name
    sections = (_headline, faults, _curves, rounds, _pictures, _shards, _settings)
    return page(
        name, "degan report", _subtitle(run), "".join(section(run) for section in sections), before_html=AXIS_CHOICE
    )


def _subtitle(run: Run) -> str:
    if run.experiment is None:
        return f"{many(len(run.workers), 'worker')}"
    settings = run.experiment
    tags = [
        settings.mode.__struct_config__.tag,
        (settings.model or settings.classifier).__struct_config__.tag,
        settings.data.name,
        settings.loss,
    ]
    return " · ".join(escape(part) for part in [*tags, many(settings.workers, "worker"), f"seed {settings.seed}"])


def _headline(run: Run) -> str:
    steps = max((worker.lines[-1]["step"] for worker in run.workers.values() if worker.lines), default=None)
    time_s = max((worker.last("time_s") or 0.0 for worker in run.workers.values()), default=0.0)
    sent = sum(worker.last("sent_bytes") or 0.0 for worker in run.workers.values())
    tiles = [
        (f"{steps:,}" if steps is not None else "–", "steps"),
        (svg.seconds(time_s) if time_s else "–", "training time"),
    ]
    for name in [name for name in run.measured() if is_of("fid", name)][:2]:
        last = [value for value in (ends(line)[1] for line in run.metrics[name].values()) if value is not None]
        if last:
            tiles.append((svg.short(min(last)), f"lowest {pretty(name)} at the end"))
        if run.floor(name) is not None:
            tiles.append((svg.short(run.floor(name)), f"floor of {pretty(name)}"))
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
        head += [f"{pretty(name)} first → last", "floor"]
    head += [*map(pretty, others), "sent", "received", "steps/s", "waiting"]
    rows = []
    for index, worker in run.workers.items():
        cells = [f"{swatch(index)}worker {index}", f"{worker.lines[-1]['step']:,}" if worker.lines else "–"]
        for name in fids:
            first, last = ends(run.metrics[name].get(index, []))
            cells.append(f'<span class="then">{or_dash(first, svg.short)} →</span> <b>{or_dash(last, svg.short)}</b>')
            cells.append(or_dash(run.floor(name), svg.short))
        for name in others:
            last = or_dash(ends(run.metrics[name].get(index, []))[1], svg.short)
            classes = run.newest("classes") if is_of("coverage", name) else None
            cells.append(last if classes is None or last == "–" else f"{last} of {svg.short(classes)}")
        cells += [or_dash(worker.last(key), svg.octets) for key in ("sent_bytes", "received_bytes")]
        time_s = worker.last("time_s")
        cells.append(or_dash(worker.lines[-1]["step"] / time_s if time_s else None, svg.short))
        cells.append(or_dash(_waiting(worker), lambda share: f"{share:.0%}"))
        rows.append(cells)
    note = (
        "FID is the Fréchet distance (lower is better); its floor is the distance between two sets of real samples. "
        "Coverage says how many of the classes the generator makes (higher is better); TV is the total variation "
        "distance between its class frequencies and the data's (0 is perfect)."
    )
    return table(head, rows) + (f'<p class="note">{note}</p>' if fids or others else "")


def _curves(run: Run) -> str:
    figures = []
    for name in run.measured():
        series = list(run.metrics[name].items())
        figures.append(figure(pretty(name), series, svg.short, floor=run.floor(name), may_be_log=is_of("fid", name)))
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
        if run.is_leader_based and key.startswith("staleness"):
            continue  # rounds are not late: they are void, which has a chart of its own
        series = [(index, worker.series(key)) for index, worker in run.workers.items() if worker.lines]
        figures.append(figure(title, series, text, **options))
    drawn = "".join(figures)
    if not drawn:
        return '<h2>Curves</h2><p class="note">Nothing was measured yet.</p>'
    return f'<div class="bar"><h2>Curves</h2>{AXIS_SWITCH}</div><div class="charts">{drawn}</div>'


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
        figures.append(picture(stem, data, caption, is_reals=stem == "reals"))
    left = run.pictures_left_out
    note = "The same latents each time, through the moving average of the generator's weights."
    note += f" {many(left, 'picture')} in between not shown; they lie in the run folder." if left > 0 else ""
    return f'<h2>Samples</h2><p class="note">{note}</p><div class="pictures">{"".join(figures)}</div>'


def _shards(run: Run) -> str:
    if run.shards is None:
        return ""
    classes, counts = run.shards["classes"], run.shards["counts"]
    workers = [f"worker {index}" for index in range(len(counts))]
    is_wide = len(classes) > svg.DISCS_UP_TO
    draw, how = (svg.bars, "the height of a bar") if is_wide else (svg.bubbles, "the area of a disc")
    drawn = draw(classes, workers, counts, "Samples of each class in each worker's shard")
    return (
        '<h2>Who holds what</h2><p class="note">Training samples of each class in each worker\'s shard; '
        f"{how} is the count.{' All counts are in shards.json.' if is_wide else ''}</p>"
        f'<div class="card scroll">{drawn}</div><div class="below">'
        + (_few_numbers(counts) if is_wide else _all_counts(classes, counts))
        + "</div>"
    )


def _all_counts(classes: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    largest = max((count for row in counts for count in row), default=0) or 1
    head = "".join(f"<th>{escape(name)}</th>" for name in ["worker", *classes, "all"])
    body = ""
    for index, row in enumerate(counts):
        cells = "".join(f'<td style="--share:{count / largest:.2f}">{count:,.0f}</td>' for count in row)
        cells = cells or f'<td colspan="{len(classes)}">known on its own host</td>'
        total = f"{sum(row):,.0f}" if row else ""
        body += f"<tr><th>{swatch(index)}worker {index}</th>{cells}<td><b>{total}</b></td></tr>"
    heat = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="card scroll">{heat}</div>'


def _few_numbers(counts: Sequence[Sequence[float]]) -> str:
    """Where a column a class would be too many."""
    rows = []
    for index, row in enumerate(counts):
        held = [count for count in row if count > 0]
        numbers = [f"{number:,.0f}" for number in (len(held), min(held), max(held), sum(held))] if held else ["–"] * 4
        rows.append([f"{swatch(index)}worker {index}", *numbers])
    return table(["worker", "classes", "fewest of one", "most of one", "all"], rows)


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


def _waiting(worker: Worker) -> float | None:
    """The share of a step that went by in waiting, over the whole run."""
    steps = [value for _, _, value in worker.series("step_s") if value is not None]
    waits = [value for _, _, value in worker.series("wait_s") if value is not None]
    return sum(waits) / sum(steps) if waits and sum(steps) > 0 else None


if __name__ == "__main__":
    sys.exit(main())
