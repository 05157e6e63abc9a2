"""The output of a benchmark: tables for people, a last line of JSON, and an exit status for a missed bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print an aligned table; the columns are the keys of the rows, in the order in which they first come."""
    print(f"\n{title}")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([_text(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    for line in lines:
        # Names are aligned left, figures right.
        cells = [
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
    sys.stdout.flush()


def finish(name: str, bars: Sequence[tuple[str, float, float, bool]], result: dict[str, Any]) -> int:
    """Print the bars and the result, the latter as the last line and as JSON; returns the exit status.

    Args:
        name: the name of the benchmark.
        bars: (name of the figure, its value, the limit, whether the value keeps the limit).
        result: figures that JSON can write.
    """
    rows = [
        {"bar": label, "value": value, "limit": limit, "": "ok" if ok else "MISSED"} for label, value, limit, ok in bars
    ]
    if rows:
        show("bars", rows)
    is_kept = all(ok for *_, ok in bars)
    plain = [{"bar": label, "value": value, "limit": limit, "ok": bool(ok)} for label, value, limit, ok in bars]
    print(json.dumps({"bench": name, "ok": is_kept, "bars": plain, **result}), flush=True)
    return 0 if is_kept else 1


def _text(value: Any) -> str:
    if isinstance(value, float):
        # Four digits are more than a noisy machine gives.
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
