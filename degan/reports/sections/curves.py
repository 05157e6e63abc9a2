"""The curves of a run, over steps and over time: each metric, and each statistic that the records have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from degan.reports import svg
from degan.reports.figures import figure
from degan.reports.sections.section import Section
from degan.reports.text import pretty
from degan.runs import facts
from degan.runs.folder import Run


@dataclass(frozen=True)
class Statistic:
    """A key of the workers' statistics as a figure; left out where the records have the key `unless`."""

    title: str
    key: str
    text: Callable[[float], str] = svg.short
    from_zero: bool = False
    smooth: bool = False
    unless: str = ""


STATISTICS = (
    Statistic("Training loss", "loss", smooth=True),
    Statistic("Discriminator loss", "d_loss", smooth=True),
    Statistic("Generator loss", "g_loss", smooth=True),
    Statistic("Time of a step", "step_s", svg.seconds, from_zero=True, smooth=True),
    Statistic("Waiting in a step", "wait_s", svg.seconds, from_zero=True, smooth=True),
    Statistic("Sent so far", "sent_bytes", svg.octets, from_zero=True),
    Statistic("Received so far", "received_bytes", svg.octets, from_zero=True),
    # A round of a leader is not late but void; the section of rounds has a chart of void rounds.
    Statistic("Staleness, mean (rounds)", "staleness_mean", from_zero=True, smooth=True, unless="leader"),
    Statistic("Staleness, maximum (rounds)", "staleness_max", from_zero=True, smooth=True, unless="leader"),
)


def content(run: Run) -> dict[str, Any]:
    """The figures."""
    figures = [
        figure(
            pretty(name),
            list(run.measured(name).items()),
            svg.short,
            floor=facts.floor(run, name),
            may_be_log=facts.family(name) == "fid",
        )
        for name in facts.measured(run)
    ]
    keys = run.keys
    for each in STATISTICS:
        if each.key in keys and each.unless not in keys:
            series = [(index, worker.series(each.key)) for index, worker in run.workers.items() if worker.lines]
            figures.append(figure(each.title, series, each.text, from_zero=each.from_zero, smooth=each.smooth))
    return {"figures": [each for each in figures if each is not None]}


SECTION = Section("curves", content)
