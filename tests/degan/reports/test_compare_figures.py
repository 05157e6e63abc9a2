"""The comparison's and the rounds' figures against sums by hand, over records in which no two numbers agree."""

from __future__ import annotations

import json
import re

import pytest

from degan import compare, report
from degan.reports.compare_data import groups, read
from degan.reports.compare_tables import as_json, as_markdown, runs_table
from degan.runs import facts
from degan.runs.facts import of_the_leader
from degan.runs.folder import read_run
from degan.runs.records import Worker
from tests.degan.reports.test_report_figures import (
    FID,
    METRICS,
    STEPS,
    figures_of,
    line_of,
    metric,
    paths,
    text_of,
    write_run,
)
from tests.run_folders import Page, make_leader_based_run, round_line, write_lines


@pytest.fixture
def base(tmp_path):
    """The run of `test_report_figures`: worker 1 takes twice the time, sends three times the bytes, and ends at 50."""
    return write_run(tmp_path / "base")


@pytest.fixture
def other(tmp_path):
    """A run with half of the bytes, another seed, and a distance of 45."""
    lines = {w: [line_of(w, step, sent_bytes=500 * step) for step in STEPS] for w in (0, 1)}
    metrics = [metric(0, 0, FID, 70.0), metric(40, 0, FID, 45.0), metric(40, 0, f"{FID}_floor", 3.0)]
    return write_run(tmp_path / "other", "seed=2", lines=lines, metrics=metrics)


def row_of(*folders) -> dict[str, str]:
    titles, rows = runs_table(read(folders))
    return dict(zip(titles, rows[0], strict=True))


def data_of(*folders) -> dict:
    entries = read(folders)
    return json.loads(as_json(entries, groups(entries)))


# --- a row and a curve ------------------------------------------------------------------------------


def test_the_row_of_a_run(base, other):
    assert row_of(base, other) == {
        "run": "base",
        "mode": "partial_exchange",
        "split": "iid",
        "seed": "1",
        "workers": "2",
        "steps": "40",
        "FID first": "90",
        "FID last": "50",
        "FID best": "50",
        "floor": "3.25",
        "coverage": "6 of 10",
        "sent by all": "160 kB",
        # There are 16 * 40 and 48 * 40 images in the 16 s of the slower worker.
        "images/s": "160",
        "time": "16 s",
        "deaths, drops": "none",
    }


def test_the_same_as_data(base, other):
    data = data_of(base, other)
    curve = data["runs"][0].pop("curves")[FID]
    assert curve == [
        {"step": 0, "seconds": 0.0, "sent_bytes": 0.0, "images": 0.0, "fid": 90.0},
        {"step": 40, "seconds": 16.0, "sent_bytes": 160_000.0, "images": 2560.0, "fid": 50.0},
    ]
    folder = data["runs"][0].pop("folder")
    assert folder == str(base) and data["runs"][0] == {
        **dict(run="base", mode="partial_exchange", split="iid", seed=1, workers=2, steps=40, is_whole=True),
        **dict(metric=FID, fid_first=90.0, fid_last=50.0, fid_best=50.0, fid_floor=3.25, coverage=6.0, classes=10.0),
        **dict(sent_bytes=160_000.0, predicted_sent_bytes=None, images=2560.0, images_per_s=160.0, seconds=16.0),
        **dict(void_rounds=None, late=None, dead=0, restarts=0, dropped=0),
    }
    assert data["settings"] == {} and data["groups"] == [
        {
            **dict(setting="partial_exchange", runs=["base", "other"], counted=["base", "other"]),
            **dict(last=dict(median=47.5, low=45.0, high=50.0), coverage=dict(median=6.0, low=6.0, high=6.0)),
            **dict(sent_bytes=dict(median=100_000.0, low=40_000.0, high=160_000.0)),
            **dict(images_per_s=dict(median=160.0, low=160.0, high=160.0)),
        }
    ]


def test_the_best_is_no_end_of_the_curve(tmp_path, other):
    values = (metric(0, 0, FID, 60.0), metric(20, 0, FID, 20.0), metric(30, 1, FID, 25.0), metric(40, 0, FID, 30.0))
    row = row_of(write_run(tmp_path / "run", metrics=values), other)
    assert (row["FID first"], row["FID last"], row["FID best"]) == ("60", "30", "20")
    # Steps at which one of the workers measured are points of the curve too.
    entry = read([tmp_path / "run", other])[0]
    assert [(p.step, p.seconds, p.sent_bytes, p.images) for p in entry.points] == [
        *((0, 0.0, 0.0, 0.0), (20, 8.0, 80_000.0, 1280.0), (30, 12.0, 120_000.0, 1920.0), (40, 16.0, 160_000.0, 2560.0))
    ]


def test_time_is_that_of_the_slowest_that_got_there(tmp_path, other):
    lines = {1: [line_of(1, step) for step in STEPS[:2]]}
    values = (metric(20, 0, FID, 60.0), metric(35, 0, FID, 40.0), metric(60, 0, FID, 30.0))
    folder = write_run(tmp_path / "run", lines=lines, metrics=values)
    points = read([folder, other])[0].points
    # At 20 worker 1 was the slower one; it never got to 35; the step 60 is only on the line of its measurement.
    assert [point.seconds for point in points] == pytest.approx([8.0, 7.0, 12.0])
    assert [point.sent_bytes for point in points] == [80_000, 35_000 + 60_000, 40_000 + 60_000]


def test_coverage_is_the_lowest_at_the_newest_step(tmp_path, other):
    values = [metric(20, 1, "coverage256_classes", 2.0), metric(40, 0, "coverage256_classes", 9.0)]
    values += [metric(40, 1, "coverage256_classes", 7.0), metric(0, 0, FID, 9.0)]
    assert row_of(write_run(tmp_path / "run", metrics=values), other)["coverage"] == "7"


def test_the_distance_that_most_runs_have_is_the_rows(tmp_path, other):
    values = [*METRICS, metric(40, 0, "fid99_inception", 7.0), metric(40, 0, "fid99_classifier", 8.0)]
    entries = read([write_run(tmp_path / "a", metrics=values), other])
    assert [entry.metric for entry in entries] == [FID, FID]
    assert sorted(entries[0].curves) == ["fid256_classifier", "fid99_classifier", "fid99_inception"]
    both = [metric(40, 0, "fid9_inception", 7.0), metric(40, 0, "fid9_classifier", 8.0)]
    b, c = write_run(tmp_path / "b", metrics=both), write_run(tmp_path / "c", metrics=both[:1])
    assert read([b, other])[0].metric == "fid9_classifier" and read([b, c])[0].metric == "fid9_inception"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data.split={kind: dirichlet, alpha: 0.25}",), "dirichlet 0.25"),
        (("data.split={kind: iid}",), "iid"),
    ],
)
def test_the_split_of_the_data(tmp_path, other, words, told):
    assert row_of(write_run(tmp_path / "run", *words), other)["split"] == told


def test_a_worker_that_came_in_the_middle_counts_from_a_lines_distance_before():
    def worker(*steps: int) -> Worker:
        return Worker(0, [{"step": step, "time_s": step / 10, "images": step - 50} for step in steps])

    # The last line of all may stand closer than the others: the distance is 10.
    late = worker(60, 70, 75)
    assert [late.count_at("images", step) for step in (40, 50, 52, 60, 65, 75, 99)] == [0, 0, 2, 10, 15, 25, 25]
    # Two lines do not determine the distance; a worker that began at the beginning counts from there.
    assert worker(60, 70).count_at("images", 30) == 5 and worker(10, 20).count_at("images", 5) == -20


# --- mishaps and medians ------------------------------------------------------------------------------


def test_mishaps_of_a_run(tmp_path, other):
    first = [line_of(0, step, dropped={"stale": 4}) for step in (10, 20)]
    again = [line_of(0, step, dropped={"stale": 1, "late": 2}) for step in (20, 30, 40)]
    lines = {0: first + again, 1: [line_of(1, 10, dropped={"invalid": 5})]}
    folder = write_run(tmp_path / "run", lines=lines)
    row = row_of(folder, other)
    assert row["deaths, drops"] == "1 died, 12 dropped" and row["steps"] == "40", "the furthest worker's"
    lines[0] = first + [line_of(0, step) for step in (10, 20, 30, 40)]
    folder = write_run(tmp_path / "run2", lines=lines)
    assert row_of(folder, other)["deaths, drops"] == "1 died, 1 restart, 9 dropped"
    folder = write_run(tmp_path / "run4", lines={0: [line_of(0, 10)]})
    assert row_of(folder, other)["deaths, drops"] == "1 died"
    # Late answers with a column of their own are no drops; each worker's restarts count.
    lines = {w: [line_of(w, step, late=2, dropped={"late": 2, "stale": 1}) for step in (20, 10, 40)] for w in (0, 1)}
    folder = write_run(tmp_path / "run3", lines=lines)
    row = row_of(folder, other)
    assert row["deaths, drops"] == "2 restarts, 2 dropped" and row["late"] == "4"


def test_a_median_and_its_spread(tmp_path):
    runs = []
    for seed, last, sent in ((1, 10.0, 100), (2, 40.0, 300), (3, 20.0, 200), (4, 90.0, 900)):
        values = [metric(0, 0, FID, 100.0), metric(40, 0, FID, last)]
        lines = {w: [line_of(w, step, sent_bytes=sent * step) for step in STEPS] for w in (0, 1)}
        if seed == 4:
            lines = {w: lines[w][:2] for w in lines}
        runs.append(write_run(tmp_path / f"s{seed}", f"seed={seed}", lines=lines, metrics=values))
    entries = read(runs)
    (group,) = groups(entries)
    # The run that did not reach its last step does not count.
    assert [entry.label for entry in group.counted] == ["s1", "s2", "s3"]
    assert group.spread(lambda entry: entry.last) == (20.0, 10.0, 40.0) and group.spread(
        lambda entry: facts.total(entry.run, "sent_bytes")
    ) == (16_000, 8_000, 24_000)
    assert "| 3 of 4 | 20 (10 to 40) | – | 16 kB (8 kB to 24 kB) | 160 |" in as_markdown(entries, [group])


def test_runs_of_which_none_is_whole_all_count(tmp_path):
    lines = {w: [line_of(w, step) for step in (10, 20)] for w in (0, 1)}
    runs = [write_run(tmp_path / f"s{seed}", f"seed={seed}", lines=lines) for seed in (1, 2)]
    (group,) = groups(read(runs))
    assert len(group.counted) == 2 and not facts.is_whole(group.entries[0].run)


# --- the page ----------------------------------------------------------------------------------------


def test_four_axes(base, other, tmp_path):
    html = (compare.compare([base, other], tmp_path / "c.html"), (tmp_path / "c.html").read_text())[1]
    figures = figures_of(html)
    assert list(figures) == [f"FID over {over}, log scale" for over in ("steps", "bytes", "time", "images")]
    # The range of x is 50 to 390; y is the same on all four: from 3 / 1.2 to 90 * 1.2 = 108.
    for title, ends in (("steps", (390, 390)), ("bytes", (390, 135)), ("time", (390, 390)), ("images", (390, 390))):
        drawn = paths(figures[f"FID over {title}, log scale"])
        assert [re.findall(r"([\d.]+) [\d.]+$", path)[0] for path in drawn] == [f"{end:.1f}" for end in ends], title
        assert [re.findall(r"L[\d.]+ ([\d.]+)$", path)[0] for path in drawn] == ["50.0", "55.2"], title
    text = Page(html).text
    assert "The floors are from 3 to 3.25; the lowest is drawn." in text and "floor 3 " in text
    assert "sent by all workers so far" in text and "training time (s)" in text and "2 runs, 1 setting" in text
    assert "base 50 other 45 Curves" in text


def test_very_different_bytes_stand_on_a_logarithmic_axis(base, tmp_path):
    def over_bytes(factor: int) -> bool:
        lines = {w: [line_of(w, step, sent_bytes=160 * 500 // factor * step // 20) for step in STEPS] for w in (0, 1)}
        frugal = write_run(tmp_path / f"f{factor}", "seed=2", lines=lines)
        compare.compare([base, frugal], tmp_path / "c.html")
        return "sent by all workers so far, log scale" in (tmp_path / "c.html").read_text()

    # The bytes are 160 kB against 160 kB / 20, and / 25.
    assert not over_bytes(40) and over_bytes(50)
    # The axis goes from 6.4 kB / 1.1 to 160 kB: ln 1.1 / ln 27.5 of the width; zero bytes have no place.
    drawn = paths(figures_of((tmp_path / "c.html").read_text())["FID over bytes, log scale"])
    assert [path.partition(" ")[0] for path in drawn] == ["M390.0", "M59.8"]


def test_long_runs_are_drawn_over_minutes_and_gaps_are_named(other, tmp_path):
    lines = {w: [line_of(w, step, time_s=15.0 * step) for step in STEPS] for w in (0, 1)}
    values = [metric(0, 0, FID, 90.0), metric(20, 0, FID, None), metric(40, 0, FID, 30.0)]
    compare.compare([write_run(tmp_path / "long", lines=lines, metrics=values), other], tmp_path / "c.html")
    html = (tmp_path / "c.html").read_text()
    assert "<title>long, training time (min) 10: 30</title>" in html
    assert "1 value not finite: the curve has a gap." in html


# --- rounds -------------------------------------------------------------------------------------------


def test_a_round_in_the_leaders_words(tmp_path):
    """Worker 1 leads from step 60; the lines of others count only for rounds without a line of the leader."""
    run = make_leader_based_run(tmp_path / "run")
    for worker in (0, 1, 2):
        lines = []
        for step in range(10, 101, 10):
            leader = int(step > 50)
            is_leader = worker == leader
            answered = step if is_leader else None
            lines.append(round_line(worker, step, leader=leader) | {"cohort": 10 * worker + 1, "answered": answered})
        write_lines(run / f"w{worker}" / "stats.jsonl", lines)
    found = read_run(run)
    assert [(step, value) for step, _, value in of_the_leader(found, "cohort")] == [
        (step, 1.0 if step <= 50 else 11.0) for step in range(10, 101, 10)
    ]
    answered = of_the_leader(found, "answered", by_others=False)
    assert [(step, value) for step, _, value in answered] == [(step, float(step)) for step in range(10, 101, 10)]
    lines = [line for line in found.workers[1].lines if line["step"] != 80]
    write_lines(run / "w1" / "stats.jsonl", lines)
    cohort = {step: value for step, _, value in of_the_leader(read_run(run), "cohort")}
    assert cohort[80] == 1.0 and cohort[90] == 11.0
    assert 80 not in {step for step, _, _ in of_the_leader(read_run(run), "answered", by_others=False)}


def test_bytes_beside_the_formula(tmp_path):
    run = make_leader_based_run(tmp_path / "run")
    for worker, images in ((0, 0), (1, 300), (2, 5000)):
        changes = {"sent_bytes": 1100 * (worker + 1), "predicted_sent_bytes": 1000 * (worker + 1)}
        changes |= {
            "received_bytes": 450,
            "predicted_received_bytes": 500,
            "late": 2 * worker,
            "void_rounds": 3 - worker,
        }
        write_lines(run / f"w{worker}" / "stats.jsonl", [round_line(worker, 100, images=images) | changes])
    text = text_of(run)
    assert "worker images sent predicted ratio received predicted ratio void rounds late answers" in text
    assert "worker 0 0 1.1 kB 1 kB 1.100 450 B 500 B 0.900 3 0" in text
    assert "worker 2 5,000 3.3 kB 3 kB 1.100 450 B 500 B 0.900 1 4" in text
    assert "all 5,300 6.6 kB 6 kB 1.100 1.35 kB 1.5 kB 0.900" in text
    # The run's void rounds are the largest count of any worker; late answers are each worker's own.
    assert facts.void_rounds(read_run(run)) == 3 and facts.total(read_run(run), "late") == 6
    assert "3 rounds void." in text and "3 rounds counted for nothing" in text
    row = row_of(run, write_run(tmp_path / "other"))
    assert (row["void rounds"], row["late"], row["sent by all"], row["predicted"]) == ("3", "6", "6.6 kB", "6 kB")
    line = round_line(1, 100)
    del line["predicted_sent_bytes"]
    write_lines(run / "w1" / "stats.jsonl", [line])
    # A sum without one of the predictions would not compare.
    assert "all 69,000 109 kB – – " in text_of(run)


def test_leader_based_modes_have_rounds(tmp_path):
    run = read_run(make_leader_based_run(tmp_path / "rounds", mode="multi_discriminator"))
    assert (
        facts.has_rounds(run) and run.mode == "multi_discriminator" and run.planned_steps == 100 and run.log_every == 10
    )
    write_lines(tmp_path / "bare" / "w0" / "stats.jsonl", [round_line(0, 10)])
    bare = read_run(tmp_path / "bare")
    assert facts.has_rounds(bare) and bare.mode == "" and bare.planned_steps is None and bare.log_every == 0
    assert "Asked and answered in a round" in report.write_report(tmp_path / "bare").read_text()
