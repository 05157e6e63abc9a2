"""A run folder as one HTML page: `python -m degan.report RUN` writes RUN/report.html. The command loads no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config import UsageError
from degan.reports.page import write_page
from degan.reports.run_page import run_page
from degan.runs.folder import read_run


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
    """Write `run`/report.html from the files of the folder, and return its path.

    The run may still be in progress or have died; missing parts are left out.

    Raises:
        UsageError: `run` is not a run folder, or cannot be written to.
    """
    path = Path(run) / "report.html"
    write_page(path, run_page(read_run(Path(run))))
    return path


if __name__ == "__main__":
    sys.exit(main())
