"""The sections of a run's page, in their order; a section shows itself where its keys are in the records.

A new mode or metric brings its keys, and with them its section: no page asks for a mode's name.
"""

from __future__ import annotations

from typing import Any

from degan.reports.sections import classes, curves, faults, headline, rounds, samples, settings, shards, workers
from degan.runs.folder import Run

SECTIONS = (
    headline.SECTION,
    workers.SECTION,
    faults.SECTION,
    curves.SECTION,
    classes.SECTION,
    rounds.SECTION,
    samples.SECTION,
    shards.SECTION,
    settings.SECTION,
)


def shown(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """(template, content) of the sections with content."""
    keys = run.keys
    found = [(section, section.content(run)) for section in SECTIONS if section.is_for(keys)]
    return [(section.template, content) for section, content in found if content is not None]
