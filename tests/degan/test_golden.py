"""Golden files: each mode's smoke run keeps the bits of its weights, and today's run folders stay readable."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import config
from degan import evaluate, report
from degan.metrics import classifier
from tests.golden import cases, runs, weights
from tests.golden.__main__ import COMPARED, FOLDERS
from tests.run_folders import Page

KEPT = weights.kept()


@pytest.fixture(scope="module")
def is_exact():
    """Whether this machine computes the same bits as the machine of the kept weights."""
    torch.set_num_threads(1)
    return weights.probe() == KEPT["probe"]["sha256"]


def assert_as_kept(found, expected, is_exact):
    assert found.keys() == expected.keys()
    wrong = {worker: weights.differences(found[worker], expected[worker], is_exact) for worker in expected}
    assert not any(wrong.values()), f"{wrong}; if that is wanted, say why and run python -m tests.golden"


@pytest.mark.parametrize("name", cases.CASES)
def test_the_smoke_run_ends_with_the_kept_weights(name, tmp_path, is_exact):
    assert_as_kept(cases.train(name, tmp_path), KEPT["runs"][name], is_exact)


def test_other_weights_are_seen():
    """The comparison of the test above can fail, exactly and within the tolerance."""
    expected = KEPT["runs"]["local"]["0"]
    moved = {n: facts | {"values": [v + facts["moved"] / 10 for v in facts["values"]]} for n, facts in expected.items()}
    changed = {n: facts | {"sha256": "0" * 64} for n, facts in expected.items()}
    assert weights.differences(expected, expected, True) == weights.differences(expected, expected, False) == []
    assert len(weights.differences(moved, expected, False)) == len(weights.NETWORKS)
    assert len(weights.differences(changed, expected, True)) == len(weights.NETWORKS)
    lost = {n: facts | {"values": [float("nan")] * weights.SAMPLES} for n, facts in expected.items()}
    assert len(weights.differences(lost, expected, False)) == len(weights.NETWORKS)


@pytest.fixture(params=cases.FOLDERS)
def folder(request, tmp_path):
    """A copy of a kept run folder."""
    return shutil.copytree(FOLDERS / request.param, tmp_path / request.param)


def test_a_kept_run_goes_on_to_the_weights_of_the_undisturbed_one(folder, is_exact):
    settings = cases.folder_settings(folder)
    expected = cases.found_in(settings, folder)
    stats = {w: (folder / f"w{w}" / "stats.jsonl").read_text().splitlines() for w in range(settings.workers)}
    for worker in stats:
        shutil.rmtree(folder / f"w{worker}" / "checkpoints" / f"{settings.run.steps:06d}")
    runs.live(settings, folder, resumes=True)
    assert_as_kept(cases.found_in(settings, folder), expected, is_exact)
    for worker, before in stats.items():
        lines = (folder / f"w{worker}" / "stats.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]
        assert lines[:2] == before[:2], "the lines before the checkpoint stay"


def test_a_kept_run_generates_the_kept_pictures(folder, tmp_path, is_exact):
    found = weights.picture_facts(cases.generated(folder, tmp_path))
    assert weights.are_same_pictures(found, KEPT["generated"][folder.name], is_exact), found


def test_kept_runs_compare_as_they_did(tmp_path):
    copies = [shutil.copytree(FOLDERS / name, tmp_path / name) for name in cases.FOLDERS]
    assert json.loads(cases.compared(copies)) == json.loads(COMPARED.read_text(encoding="utf-8"))


def test_a_kept_run_is_evaluated(folder, capsys, monkeypatch):
    # An untrained classifier will do, because only the names of the metrics are compared.
    monkeypatch.setattr(classifier, "obtain", lambda source: classifier.Classifier(source.sample_shape, 10).eval())
    assert evaluate.main([str(folder), "--samples", "64", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    workers = config.load(folder / "experiment.yaml").workers
    assert [(line["worker"], line["step"]) for line in lines] == [(w, 8) for w in range(workers) for _ in range(5)]
    assert {line["metric"] for line in lines} >= {"fid64_classifier", "coverage64_classes", "tv64_labels"}


# Texts of the page of each run, copied from it when the folders were made.
REPORTED = {
    "local": ("8 steps 312 ms training time", "worker 1 8 78 → 78.1 2.98 1 of 10 0.931 0 0 31.4 0%"),
    "partial_exchange": ("11.2 kB sent by all", "worker 1 8 78 → 78.1 2.98 1 of 10 0.931 5.6 kB 5.6 kB 10.9 60%"),
    "federated": ("108 kB sent by all workers", "worker 2 8 – → – 2.98 – – 33 kB 39.9 kB 7.51 79%"),
    "multi_discriminator": ("54.9 kB sent by all workers", "worker 1 8 – → – 2.98 – – 18.7 kB 36.3 kB 6.74 89%"),
}


def test_a_kept_run_has_its_report(folder):
    assert report.main([str(folder)]) == 0
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    for fact in REPORTED[folder.name]:
        assert fact in page.text, f"{fact!r} is not in:\n{page.text}"
