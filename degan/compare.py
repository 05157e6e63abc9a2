"""Run folders side by side: `python -m degan.compare RUN RUN ... --out compare.html`.

The output is one page that needs no other file, the tables as Markdown, or everything as JSON.
`degan.reports.compare_data` documents the comparison. The command imports no torch, so its start is fast.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config import UsageError
from degan.reports.compare_data import groups, read
from degan.reports.compare_page import compare_page
from degan.reports.compare_tables import as_json, as_markdown
from degan.reports.page import write_page

DEFAULT_OUT = Path("compare.html")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m degan.compare RUN RUN ...`; returns the exit code: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="degan compare", description="Hold runs against each other.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder, finished or not")
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"the page; default: {DEFAULT_OUT}")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown (a page only with --out)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON (a page only with --out)")
    words = parser.parse_args(argv)
    try:
        print(*compare(words.runs, words.out, words.markdown, words.json), sep="\n\n")
    except UsageError as error:
        print(f"degan compare: {error}", file=sys.stderr)
        return 2
    return 0


def compare(runs: Sequence[Path], out: Path | None, markdown: bool = False, as_data: bool = False) -> list[str]:
    """Read the runs, write the page where one is wanted, and return the text to print.

    Args:
        out: the page; None means `DEFAULT_OUT`, or no page where the tables or the data are printed.

    Raises:
        UsageError: fewer than two run folders are given, or the page cannot be written.
    """
    entries = read(runs)
    together = groups(entries)
    said = [as_markdown(entries, together)] if markdown else []
    said += [as_json(entries, together)] if as_data else []
    if out is not None or not said:
        write_page(out or DEFAULT_OUT, compare_page(entries, together))
    # Standard output holds one thing that a program can read: the page's name only where nothing else is printed.
    return said or [str(out or DEFAULT_OUT)]


if __name__ == "__main__":
    sys.exit(main())
