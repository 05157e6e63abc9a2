"""The exchange of this checkout against that of another one, in turns: `against.py OTHER [options of exchange.py]`.

Each turn runs `tests/bench/exchange.py` in both checkouts, one after the other, and the next turn in the other order.
A ratio is the median over the turns of this checkout's figure to the other's in the same turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.table import finish, show

HERE = Path(__file__).resolve().parents[2]
FIGURES = {"ms a round": "ms", "CPU ms": "cpu_ms", "workers": "workers_cpu_ms"}
LIMIT = 1.03


def figures(checkout: Path, words: list[str]) -> dict[str, dict[str, float]]:
    """The figures of each method in one run of a checkout's benchmark."""
    done = subprocess.run(
        [sys.executable, "tests/bench/exchange.py", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        sys.exit(f"{checkout}: the benchmark printed no result (exit code {done.returncode})")
    return json.loads(lines[-1])["methods"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout with a tests/bench/exchange.py")
    parser.add_argument("--pairs", type=int, default=5, help="turns, each with a run of both checkouts")
    options, words = parser.parse_known_args(arguments)
    other = options.other.resolve()
    if not (other / "tests" / "bench" / "exchange.py").is_file():
        parser.error(f"{other} has no tests/bench/exchange.py")
    turns = []
    for turn in range(options.pairs):
        order = (HERE, other) if turn % 2 else (other, HERE)
        found = {checkout: figures(checkout, words) for checkout in order}
        turns.append((found[HERE], found[other]))
        print(f"turn {turn + 1} of {options.pairs}", flush=True)
    rows, bars = [], []
    for method in turns[0][0]:
        pairs = [(mine[method], theirs[method]) for mine, theirs in turns if method in theirs]
        if not method.startswith("degan") or not pairs:
            continue
        ratios = {
            label: [mine[key] / theirs[key] for mine, theirs in pairs if theirs[key]] for label, key in FIGURES.items()
        }
        row: dict[str, object] = {"method": method}
        for label, values in ratios.items():
            row[label] = statistics.median(values)
        row["lowest"], row["highest"] = min(ratios["ms a round"]), max(ratios["ms a round"])
        rows.append(row)
        value = round(statistics.median(ratios["ms a round"]), 3)
        bars.append((f"{method}, this / other", value, LIMIT, value <= LIMIT))
    show(f"This checkout / {other.name}", rows)
    return finish("against", bars, {"pairs": options.pairs, "ratios": rows})


if __name__ == "__main__":
    sys.exit(main())
