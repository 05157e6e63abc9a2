"""The rounds of a run that somebody leads: who led, who answered, what was void, and the bytes against the formula.

In the federated and the multi-discriminator mode a step is a round. What belongs to the round itself
(who led, how many were asked) is in every worker's lines, and the leader's own are believed first; how many
answered only the leader knows.
"""

from __future__ import annotations

from degan.reports import svg
from degan.reports.html import figure, many, or_dash, swatch, table
from degan.runs.records import Run, Worker, number

SO_FAR = (
    ("Void rounds so far", "void_rounds"),
    ("Late answers so far", "late"),
    ("Discriminators exchanged so far", "swaps"),
    ("Discriminators that never came so far", "swaps_missed"),
)
PREDICTED = (("sent", "sent_bytes", "predicted_sent_bytes"), ("received", "received_bytes", "predicted_received_bytes"))


def rounds(run: Run) -> str:
    """The section of the report; "" for the modes without rounds, and where nothing was written yet."""
    if not run.is_leader_based or not any(worker.lines for worker in run.workers.values()):
        return ""
    figures = [
        figure(
            "Asked and answered in a round",
            [(0, of_the_leader(run, "cohort")), (1, of_the_leader(run, "answered", by_others=False))],
            svg.short,
            names={0: "asked", 1: "answered in time"},
            from_zero=True,
        )
    ]
    for title, key in SO_FAR:
        series = [(index, worker.series(key)) for index, worker in run.workers.items()]
        series = [(index, points) for index, points in series if any(value for _, _, value in points)]
        figures.append(figure(title, series, svg.short, from_zero=True))
    drawn = "".join(figures)
    charts = f'<div class="charts">{drawn}</div>' if drawn else ""
    return f'<h2>Rounds</h2><p class="note">{_said(run)}</p>{charts}{_table(run)}'


def of_the_leader(run: Run, key: str, by_others: bool = True) -> list[tuple[float, float | None, float | None]]:
    """A round's value over the rounds: the leader's own where it is there, else that of any worker `by_others`."""
    found: dict[int, tuple[bool, tuple[float, float | None, float | None]]] = {}
    for index, worker in run.workers.items():
        for line in worker.lines:
            if key not in line:
                continue
            leads = line.get("leader") == index
            if not (leads or by_others):
                continue
            if line["step"] not in found or (leads and not found[line["step"]][0]):
                found[line["step"]] = (leads, (line["step"], line["time_s"], number(line[key])))
    return [point for _, (_, point) in sorted(found.items())]


def _said(run: Run) -> str:
    """The leaders in their order, and how many rounds counted for nothing."""
    leads: list[tuple[int, int]] = []  # (leader, the first step at which it was seen)
    for step, _, value in of_the_leader(run, "leader"):
        if value is not None and (not leads or leads[-1][0] != int(value)):
            leads.append((int(value), int(step)))
    said = "A step is a round; one worker measures and draws for all. "
    if len(leads) == 1:
        said += f"Worker {leads[0][0]} led all of them. "
    elif leads:
        said += f"Worker {leads[0][0]} led first, "
        said += ", ".join(f"worker {leader} from step {step:,} on" for leader, step in leads[1:]) + ". "
    if run.void_rounds is not None:
        void = int(run.void_rounds)
        said += f"{many(void, 'round')} void. " if void else "No round was void. "
    return said.strip()


def _table(run: Run) -> str:
    """A worker's bytes beside what the formula says, its images, and what it counted."""
    workers = {index: worker for index, worker in run.workers.items() if worker.lines}
    known = [row for row in PREDICTED if any(worker.last(row[2]) is not None for worker in workers.values())]
    counted = [(title, key) for title, key in SO_FAR if any(worker.last(key) for worker in workers.values())]
    head = ["worker", "images"]
    for name, *_ in known:
        head += [name, "predicted", "ratio"]
    head += [title.removesuffix(" so far").lower() for title, _ in counted]
    rows = []
    for index, worker in workers.items():
        cells = [f"{swatch(index)}worker {index}", or_dash(worker.last("images"), lambda count: f"{count:,.0f}")]
        for _, measured, predicted in known:
            cells += _beside(worker.last(measured), worker.last(predicted))
        rows.append([*cells, *(or_dash(worker.last(key), lambda count: f"{count:,.0f}") for _, key in counted)])
    if len(workers) > 1:
        cells = ["all", or_dash(_sum(workers, "images"), lambda count: f"{count:,.0f}")]
        for _, measured, predicted in known:
            cells += _beside(_sum(workers, measured), _sum(workers, predicted))
        rows.append([*(f"<b>{cell}</b>" for cell in cells), *[""] * len(counted)])
    note = (
        '<p class="note">Bytes as measured, beside what the formula of the mode says; the ratio is measured over '
        "predicted: above 1 is the envelope, the beginning and the end; below 1 is what had not left yet when the "
        "worker wrote its last line.</p>"
        if known
        else ""
    )
    return f'<div class="below">{table(head, rows)}</div>{note}'


def _beside(measured: float | None, predicted: float | None) -> list[str]:
    ratio = measured / predicted if measured is not None and predicted else None
    return [
        or_dash(measured, svg.octets),
        or_dash(predicted, svg.octets),
        or_dash(ratio, lambda value: f"{value:.3f}"),
    ]


def _sum(workers: dict[int, Worker], key: str) -> float | None:
    """Over all workers; None where one of them does not know it, since a sum without it would not compare."""
    values = [worker.last(key) for worker in workers.values()]
    return None if None in values else sum(value for value in values if value is not None)
