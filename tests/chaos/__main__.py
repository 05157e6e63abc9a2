"""`python -m tests.chaos`: every fault that degan should survive, in real workers; a table and chaos.json.

python -m tests.chaos [--only 1,7] [--name TEXT] [--quick] [--seed N] [--out DIR]
python -m tests.chaos --schedule --seed 7        the faults of a run, without the run
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

from tests.bench.table import show
from tests.chaos import soak
from tests.chaos.table import scenarios
from tests.chaos.trial import Row, attempt


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    found.add_argument("--only", default="", metavar="1,7", help="only the faults with these numbers")
    found.add_argument("--name", default="", metavar="TEXT", help="only those whose name or mode has this text")
    found.add_argument("--quick", action="store_true", help="only those that take seconds")
    found.add_argument("--seed", type=int, default=7, help="of what is drawn: steps, hooks, jitter")
    found.add_argument("--schedule", action="store_true", help="print what would be done, and do nothing")
    found.add_argument("--out", type=Path, default=Path("runs/chaos"), metavar="DIR")
    return found


def schedule(seed: int) -> list[str]:
    """The schedule of a seed, line by line: the faults of the scenarios, and those of the soak."""
    lines = [f"{one.number} {one.name} [{one.mode}]: {one.script(seed)}" for one in scenarios() if one.script(seed)]
    return [*lines, f"soak: {soak.script(seed, workers=4, minutes=60)}"]


def report(rows: list[Row]) -> None:
    shown = [
        {
            "fault": f"{row.fault} {row.name}",
            "mode": row.mode,
            "": "ok" if row.ok else "FAIL",
            "worst pause, s": "" if row.worst_pause_s is None else f"{row.worst_pause_s:.1f}",
            "took, s": f"{row.took_s:.0f}",
        }
        for row in rows
    ]
    show(f"{len(rows)} scenarios", shown)
    for row in rows:
        if not row.ok:
            print(f"  FAIL {row.fault} {row.name} [{row.mode}] {row.injected}: {row.cause}")


def main(argv: list[str]) -> int:
    words = parser().parse_args(argv)
    if words.schedule:
        print("\n".join(schedule(words.seed)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    numbers = {int(word) for word in words.only.split(",") if word}
    chosen = [
        one
        for one in scenarios()
        if (not numbers or one.number in numbers)
        and words.name in f"{one.name} {one.mode}"
        and (one.is_quick or not words.quick)
    ]
    rows, known, began = [], {}, time.monotonic()
    words.out.mkdir(parents=True, exist_ok=True)
    for one in chosen:
        row = attempt(one, words.seed, known)
        rows.append(row)
        print(f"{'ok  ' if row.ok else 'FAIL'} {row.took_s:6.1f} s  {row.fault} {row.name} [{row.mode}] {row.injected}")
        print(f"       {row.seen}" + (f"  CAUSE: {row.cause}" if row.cause else ""), flush=True)
        # The file is written after each scenario, so that an interrupted run leaves its rows.
        plain = {"seed": words.seed, "took_s": round(time.monotonic() - began, 1)}
        lines = [dataclasses.asdict(row) for row in rows]
        (words.out / "chaos.json").write_text(json.dumps(plain | {"rows": lines}, indent=1), encoding="utf-8")
    report(rows)
    failed = sum(not row.ok for row in rows)
    print(f"  {len(rows) - failed} of {len(rows)} in {(time.monotonic() - began) / 60:.1f} minutes, seed {words.seed}")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
