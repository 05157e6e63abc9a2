"""The pictures of runs with byzantine workers, by attack and rule: eight workers on scikit-learn's digits.

    python tests/bench/byzantine.py [--rules TEXT ...] [--attacks TEXT ...] [--byzantine 0,1,2] [--steps N]
                                    [--budget-s N]

The workers are real, each with a real Redis; DEGAN_FAULTS tells the last one or two to attack in every step. A cell is
the Frechet distance of the worst honest worker at the end; beside it stands the clean run of the same rule. The base
line is the mean without a gate and without a byzantine worker. Every finished cell is a line of the results file, and
a cell with a line is not run again.

The bar (only for finished cells): with a robust rule and the gate, one byzantine worker of eight costs at most a
quarter of the clean mean's distance more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

# One thread each: more threads only get into each other's way, and a process with a pool must not fork.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from config import UsageError  # noqa: E402
from peers.chaos.attacks import NAMES  # noqa: E402
from peers.vectors.reduce import RULES  # noqa: E402
from tests.bench.quality_runs import RunError, Setting, open_bench, prepare  # noqa: E402
from tests.bench.table import finish, show  # noqa: E402

WORKERS, SEED, BAR = 8, 1, 1.25
# The distance of a failed run, where JSON wants a number.
FAILED = 1e9
CLEAN = "clean"
# Names in the table, each with its settings.
KINDS = {
    "mean, no gate": ("mode.reduce=mean", "bus.norm_gate=0", "bus.offences=0"),
    "mean": ("mode.reduce=mean",),
    **{rule: (f"mode.reduce={rule}",) for rule in RULES},
}


def cells(kinds: list[str], attacks: list[str], byzantine: list[int]) -> list[tuple[str, str, int]]:
    """(rule, attack, number of byzantine workers) of each cell: the clean runs first, then by number."""
    found = [(kind, CLEAN, 0) for kind in kinds]
    return found + [(kind, attack, count) for count in byzantine for attack in attacks for kind in kinds]


def setting(kind: str, byzantine: int) -> Setting:
    """The experiment of a cell."""
    words = (*KINDS[kind], f"mode.byzantine={max(1, byzantine)}", "run.log_every=50", "run.evaluate_samples=5000")
    return Setting(kind, words, WORKERS, "smoke")


def faults(attack: str, byzantine: int) -> str:
    """The value of DEGAN_FAULTS: the last workers are the byzantine ones."""
    return ",".join(f"w{WORKERS - 1 - n}:attack:{attack}" for n in range(byzantine))


def worst(fids: list[float | None], byzantine: int) -> float:
    """The largest distance of the honest workers; infinite where one has none."""
    honest = fids[: WORKERS - byzantine]
    return max(math.inf if fid is None or not math.isfinite(fid) else fid for fid in honest)


def known(file: Path) -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """The results of earlier runs, by rule, attack, number of byzantine workers and steps."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {(line["rule"], line["attack"], line["byzantine"], line["steps"]): line for line in lines}


def run(file: Path, wanted: list[tuple[str, str, int]], steps: int, budget_s: float) -> None:
    """Run the cells without a result, as long as the budget lasts, and write each result down."""
    found, began = known(file), time.monotonic()
    missing = [cell for cell in wanted if (*cell, steps) not in found]
    if not missing:
        return
    prepare(setting(missing[0][0], 0).experiment((), SEED, steps))
    with open_bench(WORKERS) as bench:
        for index, (kind, attack, byzantine) in enumerate(missing):
            if time.monotonic() - began > budget_s:
                print(f"the budget is spent; {len(missing) - index} cells are left", flush=True)
                return
            os.environ["DEGAN_FAULTS"] = faults(attack, byzantine)
            line: dict[str, Any] = {"rule": kind, "attack": attack, "byzantine": byzantine, "steps": steps}
            try:
                figures = bench.run(setting(kind, byzantine), (), SEED, steps)
                line |= {"fid": worst(figures["fid"], byzantine), "seconds": figures["seconds"]}
                line["dropped"] = figures["dropped"]
            except RunError as error:
                line |= {"fid": math.inf, "failed": str(error)}
            finally:
                del os.environ["DEGAN_FAULTS"]
            # JSON has no infinity.
            line["fid"] = line["fid"] if math.isfinite(line["fid"]) else None
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def rows(found: dict, kinds: list[str], attacks: list[str], byzantine: list[int], steps: int) -> list[dict[str, Any]]:
    """One row an attack and number of byzantine workers, one column a rule."""
    table = []
    for attack, count in [(CLEAN, 0), *((attack, count) for count in byzantine for attack in attacks)]:
        row: dict[str, Any] = {"attack": f"{attack} x{count}" if count else CLEAN}
        for kind in kinds:
            line = found.get((kind, attack, count, steps))
            row[kind] = "" if line is None else "failed" if line["fid"] is None else round(line["fid"], 1)
        table.append(row)
    return table


def bars(found: dict, steps: int) -> list[tuple[str, float, float, bool]]:
    """The bars of the robust rules with one byzantine worker, against the clean mean."""
    clean = found.get(("mean, no gate", CLEAN, 0, steps))
    if clean is None or clean["fid"] is None:
        return []
    return [
        (f"{kind}, {attack}", fid := FAILED if line["fid"] is None else line["fid"], limit, fid <= limit)
        for (kind, attack, byzantine, at), line in sorted(found.items())
        if kind in RULES and byzantine == 1 and at == steps
        for limit in [BAR * clean["fid"]]
    ]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--attacks", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--byzantine", default="1,2", help="numbers of byzantine workers")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--budget-s", type=float, default=3600.0)
    parser.add_argument("--results", type=Path, default=Path("byzantine.jsonl"))
    arguments = parser.parse_args(words)
    byzantine = [int(count) for count in arguments.byzantine.split(",") if int(count)]
    try:
        run(
            arguments.results,
            cells(arguments.rules, arguments.attacks, byzantine),
            arguments.steps,
            arguments.budget_s,
        )
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    found = known(arguments.results)
    table = rows(found, arguments.rules, arguments.attacks, byzantine, arguments.steps)
    show(f"worst honest worker's FID after {arguments.steps} steps, {WORKERS} workers", table)
    return finish("byzantine", bars(found, arguments.steps), {"steps": arguments.steps, "table": table})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
