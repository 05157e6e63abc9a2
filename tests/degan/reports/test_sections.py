"""Sections are shown where their keys are: a classifier's page, an unknown mode, and no mode's name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import config
import degan.reports
from degan import compare, report
from degan.reports import sections
from degan.reports.compare_data import groups, read
from degan.reports.compare_tables import as_json, as_markdown, runs_table
from degan.runs.folder import read_run
from launch import table
from tests.leaves import leaves
from tests.run_folders import Page, make_leader_based_run, make_run, stats_line, write_lines

STEPS = range(10, 101, 10)
BY_CLASS = {0: [0.5, 1.0, None], 1: [0.25, 0.0, 0.75]}


def measure(step, worker, name, value):
    return {"step": step, "worker": worker, "images": 0, "metric": name, "value": value, "seconds": 1.0}


def make_classifier_run(folder: Path, *words: str, last=(0.5, 0.75)) -> Path:
    """A run of two classifiers: `loss` in their statistics; accuracy, loss and accuracy by class in their metrics."""
    folder.mkdir(parents=True)
    settings = config.load("smoke", ["peers=2", "run.steps=100", "run.log_every=10", *words])
    (folder / "experiment.yaml").write_text(config.dump(settings))
    for worker in (0, 1):
        lines = [stats_line(worker, step, loss=2.0 / step) for step in STEPS]
        kept = [{k: v for k, v in line.items() if k not in ("d_loss", "g_loss")} for line in lines]
        write_lines(folder / f"w{worker}" / "stats.jsonl", kept)
    lines = [
        measure(step, w, "accuracy", (0.125, value)[step > 0]) for step in (0, 100) for w, value in enumerate(last)
    ]
    lines += [measure(step, w, "loss", 3.0 - w - step / 100) for step in (0, 100) for w in (0, 1)]
    lines += [measure(100, w, "accuracy_by_class", values) for w, values in BY_CLASS.items()]
    write_lines(folder / "metrics.jsonl", [*lines, measure(0, 0, "accuracy_by_class", [0.0, 0.0, 0.0])])
    return folder


def page_of(folder) -> tuple[str, str]:
    html = report.write_report(folder).read_text(encoding="utf-8")
    return html, Page(html).text


def titles(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


# --- a classifier -------------------------------------------------------------------------------------


def test_the_page_of_a_classifier(tmp_path):
    html, text = page_of(make_classifier_run(tmp_path / "run"))
    assert "0.75 highest Accuracy (evaluated) at the end" in text
    assert "worker steps Accuracy (evaluated) first → last Loss (evaluated) sent received steps/s waiting" in text
    assert "worker 0 100 0.125 → 0.5 2 100 kB 100 kB 10 20%" in text
    assert "worker 1 100 0.125 → 0.75 1 100 kB 100 kB 5 20%" in text
    assert "Accuracy is the share of held-out samples" in text and "Fréchet" not in text
    figures = re.findall(r'(?s)<figure class="card chart">.*?<h3>(.*?)</h3>', html)
    assert figures[:3] == ["Accuracy (evaluated)", "Loss (evaluated)", "Training loss"]
    assert not [title for title in figures if "iscriminator" in title] and 'class="floor"' not in html
    assert titles(html) == [
        *("Workers", "Drops and deaths", "Curves", "Accuracy by class", "Settings and versions"),
    ]


def test_each_class_of_each_worker(tmp_path):
    run = make_classifier_run(tmp_path / "run")
    html, text = page_of(run)
    assert "worker step 0 1 2 worker 0 100 50% 100% – worker 1 100 25% 0% 75%" in text
    # A whole bar is 42 high, for any largest value.
    bars = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"><title>(.*?)</title>', html)
    assert [(height, title) for _, height, title in bars] == [
        *(("21.0", "worker 0, 0: 50%"), ("42.0", "worker 0, 1: 100%")),
        *(("10.5", "worker 1, 0: 25%"), ("31.5", "worker 1, 2: 75%")),
    ]
    shares = html.partition("Accuracy by class")[2]
    assert re.findall(r"--share:([\d.]+)", shares) == ["0.50", "1.00", "0.00", "0.25", "0.00", "0.75"]
    (run / "shards.json").write_text(json.dumps({"classes": ["<i>", "dog", "cow"], "counts": [[1, 2, 3], [4, 5, 6]]}))
    html, text = page_of(run)
    assert "worker step <i> dog cow worker 0 100 50% 100% –" in text and "<i>" not in html
    (run / "shards.json").write_text(json.dumps({"classes": ["one", "two"], "counts": [[1, 2], [4, 5]]}))
    assert "worker step 0 1 2 worker 0" in page_of(run)[1], "names of a wrong number of classes are not used"


@pytest.mark.parametrize(("classes", "has_table"), [(40, True), (41, False)])
def test_many_classes_are_bars_only(tmp_path, classes, has_table):
    run = make_classifier_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [measure(9, 0, "accuracy_by_class", [0.5] * classes)])
    html, _ = page_of(run)
    section = html.partition("Accuracy by class")[2].partition("<h2>")[0]
    assert section.count("<title>worker 0") == classes and ("--share" in section) == has_table


@pytest.mark.parametrize("value", [[], None, 0.5, "all", [None, None], [[0.5], {}], [2.0, -1.0], [1e999, "x"]])
def test_accuracies_that_are_none_leave_a_page(tmp_path, value):
    run = make_classifier_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(measure(200, w, "accuracy_by_class", value)) + "\n" for w in (0, 1))
    html, text = page_of(run)
    assert "Accuracy (evaluated)" in text and not re.search(r"\b(nan|inf)\b", text)
    assert not re.search(r"--share:(-|[2-9])", html)


def test_classifiers_are_compared_by_their_accuracy(tmp_path):
    runs = [make_classifier_run(tmp_path / "a"), make_classifier_run(tmp_path / "b", "seed=2", last=(0.625, None))]
    entries = read(runs)
    named, rows = runs_table(entries)
    row = dict(zip(named, rows[0], strict=True))
    # The accuracy of a run is that of its worst worker, the lowest.
    assert (row["accuracy first"], row["accuracy last"], row["accuracy best"]) == ("0.125", "0.5", "0.5")
    assert "FID last" not in named and "floor" not in named
    assert dict(zip(named, rows[1], strict=True))["accuracy last"] == "not finite"
    data = json.loads(as_json(entries, groups(entries)))
    assert data["runs"][0]["accuracy_last"] == 0.5 and data["runs"][1]["accuracy_last"] is None
    assert [point["accuracy"] for point in data["runs"][0]["curves"]["accuracy"]] == [0.125, 0.5]
    assert "| setting | runs | accuracy last |" in as_markdown(entries, groups(entries))
    compare.compare(runs, tmp_path / "c.html")
    text = Page((tmp_path / "c.html").read_text()).text
    assert "Accuracy over steps" in text and "the lowest accuracy" in text and "Higher, and further to the left" in text
    assert "1 value not finite: the curve has a gap." in text and "FID" not in text


def test_runs_of_both_kinds_share_a_page(tmp_path):
    runs = [make_classifier_run(tmp_path / "a"), make_run(tmp_path / "b")]
    named, rows = runs_table(read(runs))
    assert {"FID last", "accuracy last"} <= set(named)
    found = [dict(zip(named, row, strict=True)) for row in rows]
    assert [(row["FID last"], row["accuracy last"]) for row in found] == [("–", "0.5"), ("35.3", "–")]
    compare.compare(runs, tmp_path / "c.html")
    text = Page((tmp_path / "c.html").read_text()).text
    assert "Values of different metrics" in text and "the largest FID" in text and "the lowest accuracy" in text


# --- by keys, not by names ----------------------------------------------------------------------------


def test_a_mode_that_nobody_knows_has_the_sections_of_its_keys(tmp_path):
    """The settings do not load; rounds are shown because the records have them."""
    run = make_leader_based_run(tmp_path / "run")
    text = (run / "experiment.yaml").read_text()
    (run / "experiment.yaml").write_text(text.replace("name: federated", "name: telepathy"))
    assert read_run(run).experiment is None and read_run(run).mode == "telepathy"
    html, text = page_of(run)
    assert "Rounds" in titles(html) and "Asked and answered in a round" in text and "Staleness" not in text


def test_without_its_keys_a_section_is_not_there(tmp_path):
    run = make_run(tmp_path / "run")
    names = [template for template, _ in sections.shown(read_run(run))]
    assert names == [f"sections/{n}.html" for n in ("headline", "workers", "faults", "curves", "samples", "settings")]
    for picture in run.glob("*.png"):
        picture.unlink()
    (run / "shards.json").write_text(json.dumps({"classes": ["a"], "counts": [[1], [2]]}))
    names = [template for template, _ in sections.shown(read_run(run))]
    assert "sections/samples.html" not in names and "sections/shards.html" in names


def test_no_page_and_no_table_knows_a_modes_name():
    here = Path(degan.reports.__file__).parent
    files = [*here.rglob("*.py"), *here.rglob("*.html"), *(here.parent / "runs").glob("*.py"), Path(table.__file__)]
    modes = {path.partition("[")[2].partition("]")[0] for path in leaves() if path.startswith("mode[")}
    assert len(modes) >= 4 and len(files) > 20
    named = [(file.name, mode) for file in files for mode in modes if re.search(rf"[\"']{mode}[\"']", file.read_text())]
    assert named == []
