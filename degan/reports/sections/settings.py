"""The resolved settings of a run, and the versions of its software."""

from __future__ import annotations

import json
from typing import Any

from degan.reports.sections.section import Section
from degan.runs.folder import Run


def content(run: Run) -> dict[str, Any]:
    """The settings' text and the rows of the environment."""
    environment = [
        (str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in run.environment.items()
    ]
    return {"text": run.settings, "environment": environment}


SECTION = Section("settings", content, needs=("settings", "environment"))
