"""The benchmarks run to their end; their figures are not tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("memory", ["--steps", "300", "--every", "0.1"]),
        ("scaling", ["--workers", "2", "3", "--rounds", "40", "--repeats", "1", "--values", "1000"]),
        ("rules", ["--values", "10000", "--workers", "3", "--rounds", "3"]),
        ("exchange", ["--turns", "1", "--rounds", "2", "--values", "1000", "--only", "degan", "bare", "gloo"]),
    ],
)
def test_a_benchmark_runs_to_its_end_and_reports_it_in_json(name, words, tmp_path):
    out = ["--out", str(tmp_path / "picture.svg")] if name == "memory" else []
    command = [sys.executable, str(ROOT / "tests" / "bench" / f"{name}.py"), *words, *out]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    # The code 1 means a missed bar, which is possible in so short a run.
    assert ended.returncode in (0, 1), ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr, ended.stderr[-2000:]
    assert json.loads(ended.stdout.splitlines()[-1])["bench"] == name
