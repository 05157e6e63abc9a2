"""A run as one HTML page."""

from __future__ import annotations

from degan.reports.page import render
from degan.reports.sections import shown
from degan.reports.text import many
from degan.runs.folder import Run


def run_page(run: Run) -> str:
    """The whole page as HTML text."""
    return render("report.html", title=run.name, command="degan report", subtitle=_subtitle(run), sections=shown(run))


def _subtitle(run: Run) -> str:
    settings = run.experiment
    if settings is None:
        return many(len(run.workers), "worker")
    facts = [run.mode, settings.model.__struct_config__.tag, settings.data.name, settings.loss]
    return " · ".join([*facts, many(settings.workers, "worker"), f"seed {settings.seed}"])
