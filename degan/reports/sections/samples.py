"""The pictures of a run: real samples, and generated ones by rising step."""

from __future__ import annotations

from typing import Any

from degan.reports.sections.section import Section
from degan.runs.folder import Run


def content(run: Run) -> dict[str, Any]:
    """The pictures, and the number of pictures that are left out."""
    return {"pictures": run.pictures, "left_out": run.pictures_left_out}


SECTION = Section("samples", content, needs=("pictures",))
