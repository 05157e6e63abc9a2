"""Learning on real data, in minutes: workers that each hold a part of the classes learn all of them together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from degan.runs.lines import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parent.parent.parent


def train(out: Path, name: str, *settings: str) -> dict[str, dict[int, dict[int, float]]]:
    """Run an experiment by the launcher; returns values by metric (without its sample count), step and worker."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "launch", "local", name, "--out", str(out), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report.html").is_file()
    found: dict[str, dict[int, dict[int, float]]] = {}
    for line in read_lines(out / "metrics.jsonl"):
        name = "".join(character for character in line["metric"] if not character.isdigit())
        found.setdefault(name, {}).setdefault(line["step"], {})[line["worker"]] = line["value"]
    return found


def test_together_they_learn_the_digits_that_each_has_only_some_of(tmp_path):
    together = train(tmp_path / "together", "demo", "run.steps=1500")
    alone = train(tmp_path / "alone", "demo", "run.steps=1500", "mode.name=local")
    fid, coverage = together["fid_classifier"], together["coverage_classes"]
    assert max(fid[1500].values()) < min(fid[0].values()) / 4
    assert set(coverage[1500].values()) == {10}
    assert max(alone["coverage_classes"][1500].values()) < 10
    assert max(fid[1500].values()) < min(alone["fid_classifier"][1500].values())


@pytest.mark.skipif("DEGAN_TEST_DATA" not in os.environ, reason="DEGAN_TEST_DATA names no folder with MNIST")
def test_even_and_odd_digits_of_mnist(tmp_path):
    small = (f"data.root={os.environ['DEGAN_TEST_DATA']}", "run.steps=2000", "model.name=dcgan", "model.width=16")
    together = train(tmp_path / "together", "mnist-degan", *small)
    alone = train(tmp_path / "alone", "mnist-degan", *small, "mode.name=local")
    fid = together["fid_classifier"]
    for worker, value in fid[2000].items():
        assert value < fid[200][worker] / 3
    assert set(together["coverage_classes"][2000].values()) == {10}
    assert max(alone["coverage_classes"][2000].values()) < 10


@pytest.mark.skipif("DEGAN_TEST_DATA" not in os.environ, reason="DEGAN_TEST_DATA names no folder with MNIST")
def test_classifiers_of_even_and_of_odd_digits_know_all_of_them_together(tmp_path):
    root = f"data.root={os.environ['DEGAN_TEST_DATA']}"
    together = train(tmp_path / "together", "mnist-classifier", root)["accuracy"]
    alone = train(tmp_path / "alone", "mnist-classifier", root, "mode.name=local")["accuracy"]
    last = max(together)
    assert len(together[last]) == 4 and min(together[last].values()) > 0.97
    assert max(alone[last].values()) < 0.55


@pytest.mark.skipif("DEGAN_TEST_DATA" not in os.environ, reason="DEGAN_TEST_DATA names no folder with MNIST")
def test_federated_averaging_learns_the_digits_of_eight_uneven_shards(tmp_path):
    found = train(tmp_path / "fedavg", "mnist-fedavg", f"data.root={os.environ['DEGAN_TEST_DATA']}")["accuracy"]
    assert min(found[max(found)].values()) > 0.96
