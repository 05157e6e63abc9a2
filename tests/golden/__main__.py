"""`python -m tests.golden`: write the kept weights and run folders again, after a change that is wanted."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.golden import cases, weights

FOLDERS = Path(__file__).parent / "folders"
COMPARED = Path(__file__).parent / "compared.json"
# Made again from the rest, by whoever reads a run folder.
NOT_KEPT = ("report.html", "pid", ".writable", "log.txt", "redis[0-9]*")


def write_weights() -> None:
    found = {"probe": {"sha256": weights.probe()}, "runs": {}, "generated": {}}
    for name in cases.CASES:
        with tempfile.TemporaryDirectory() as out:
            found["runs"][name] = cases.train(name, Path(out))
    for name in cases.FOLDERS:
        with tempfile.TemporaryDirectory() as out:
            found["generated"][name] = weights.picture_facts(cases.generated(FOLDERS / name, Path(out)))
    weights.write(found)
    COMPARED.write_text(cases.compared([FOLDERS / name for name in cases.FOLDERS]) + "\n", encoding="utf-8")


def write_folders() -> None:
    for name, (experiment, *changes) in cases.FOLDERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / name
            words = [word for change in [*changes, *cases.SMALL] for word in ("--set", change)]
            subprocess.run(
                [sys.executable, "-m", "launch", "local", experiment, "--out", out, "--bus", "redis", *words],
                check=True,
            )
            shutil.rmtree(FOLDERS / name, ignore_errors=True)
            shutil.copytree(out, FOLDERS / name, ignore=shutil.ignore_patterns(*NOT_KEPT))
            environment = FOLDERS / name / "environment.json"
            facts = json.loads(environment.read_text(encoding="utf-8"))
            # Which machine made it says nothing to later code.
            facts |= {"host": "host", "platform": "Linux", "command": ["python", "-m", "launch", "local", experiment]}
            environment.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", action="store_true", help="only the weights")
    parser.add_argument("--folders", action="store_true", help="only the run folders")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not arguments.weights:
        write_folders()
    if not arguments.folders:
        write_weights()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
