"""The report's figures against sums by hand: no two workers, and no two columns, have the same number."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest

import config
from degan import report
from degan.artifacts.pictures import save_png
from degan.reports import svg as report_svg
from degan.reports.figures import figure
from degan.reports.text import many, time_unit, whole_or_short
from degan.runs import facts
from degan.runs.facts import behind
from degan.runs.folder import read_run
from degan.runs.records import Worker, number
from tests.run_folders import Page, write_lines

STEPS = (10, 20, 30, 40)
FID = "fid256_classifier"


def line_of(worker: int, step: int, **changes) -> dict:
    """A line of stats: worker 0 takes 0.2 s a step and waits a quarter of it, worker 1 0.4 s and three quarters."""
    line = {"step": step, "time_s": (0.2, 0.4)[worker] * step, "images": (16, 48)[worker] * step}
    line |= {"d_loss": (0.4, 0.8)[worker], "g_loss": (1.5, 2.5)[worker], "live_peers": 1, "dropped": {}}
    line |= {"step_s": (0.2, 0.4)[worker], "wait_s": (0.05, 0.3)[worker]}
    line |= {"sent_bytes": (1000, 3000)[worker] * step, "received_bytes": (500, 250)[worker] * step}
    line |= {"staleness_mean": (0.5, 1.5)[worker], "staleness_max": (2, 3)[worker]}
    return line | changes


def metric(step: int, worker: int, name: str, value: float | None) -> dict:
    return {"step": step, "worker": worker, "images": 7, "metric": name, "value": value, "seconds": 1.0}


METRICS = [
    *(metric(0, 0, FID, 90.0), metric(0, 1, FID, 80.0), metric(40, 0, FID, 30.0), metric(40, 1, FID, 50.0)),
    *(metric(40, 0, f"{FID}_floor", 3.25), metric(20, 1, f"{FID}_floor", 4.5)),
    *(metric(40, 0, "coverage256_classes", 9.0), metric(40, 1, "coverage256_classes", 6.0)),
    *(metric(40, 0, "tv256_labels", 0.125), metric(40, 1, "tv256_labels", 0.25), metric(40, 0, "classes", 10.0)),
]


@functools.cache
def settings_text(*words: str) -> str:
    return config.dump(config.load("smoke", words))


def write_run(folder, *words: str, lines: dict | None = None, metrics=METRICS, steps: int = 40):
    """A run folder of two workers; `lines` replaces a worker's."""
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(settings_text("peers=2", f"run.steps={steps}", *words))
    for worker in (0, 1):
        own = (lines or {}).get(worker, [line_of(worker, step) for step in STEPS])
        write_lines(folder / f"w{worker}" / "stats.jsonl", own)
    write_lines(folder / "metrics.jsonl", metrics)
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def html_of(folder) -> str:
    return report.write_report(folder).read_text(encoding="utf-8")


def text_of(folder) -> str:
    return Page(html_of(folder)).text


def figures_of(html: str) -> dict[str, str]:
    """The charts of a page by their titles."""
    found = re.findall(r'(?s)<figure class="card chart">.*?</figure>', html)
    return {re.search(r"<h3>(.*?)</h3>", one)[1]: one for one in found}


def charts_of(figure) -> str:
    return "".join(chart for _, chart in figure.views)


def paths(chart: str) -> list[str]:
    """The curves of a chart: over steps, then over time."""
    inside = re.sub(r'(?s)<div class="legend">.*?</div>', "", chart)
    return re.findall(r'<path class="line c\d d\d" d="([^"]*)"', inside)


# --- the head and the table of workers -----------------------------------------------------------


def test_the_head_of_the_page(run):
    text = text_of(run)
    assert (
        "40 steps 16 s training time 30 lowest FID (classifier, 256 samples) at the end "
        "3.25 floor of FID (classifier, 256 samples) 160 kB sent by all workers Workers worker steps"
    ) in text
    assert "partial_exchange · mlp · digits · non_saturating · 2 workers · seed 1" in text


def test_the_row_of_each_worker(run):
    text = text_of(run)
    assert "FID (classifier, 256 samples) first → last floor" in text
    assert "worker 0 40 90 → 30 3.25 9 of 10 0.125 40 kB 20 kB 5 25%" in text
    assert "worker 1 40 80 → 50 3.25 6 of 10 0.25 120 kB 10 kB 2.5 75% FID is" in text


def test_waiting_is_over_the_whole_run(tmp_path):
    lines = [line_of(0, step, wait_s=wait) for step, wait in zip(STEPS, (0.2, 0.0, 0.0, 0.04), strict=True)]
    assert "20 kB 5 30%" in text_of(write_run(tmp_path / "run", lines={0: lines}))


def test_a_floor_is_the_newest_of_any_worker(run):
    write_lines(run / "metrics.jsonl", [*METRICS, metric(40, 1, f"{FID}_floor", None)])
    assert facts.floor(read_run(run), FID) == 3.25
    write_lines(run / "metrics.jsonl", [*METRICS, metric(50, 1, f"{FID}_floor", 1.0)])
    assert facts.floor(read_run(run), FID) == 1.0


# --- curves --------------------------------------------------------------------------------------


def test_the_legend_of_each_curve(run):
    legends = {title: Page(chart).text.partition("×")[0] for title, chart in figures_of(html_of(run)).items()}
    for title, text in (
        ("FID (classifier, 256 samples), log scale", "w0 30 w1 50 floor 3.25"),
        ("Coverage (classes, 256 samples)", "w0 9 w1 6"),
        ("TV (labels, 256 samples)", "w0 0.125 w1 0.25"),
        ("Discriminator loss", "w0 0.4 w1 0.8"),
        ("Generator loss", "w0 1.5 w1 2.5"),
        ("Time of a step", "w0 200 ms w1 400 ms"),
        ("Waiting in a step", "w0 50 ms w1 300 ms"),
        ("Sent so far", "w0 40 kB w1 120 kB"),
        ("Received so far", "w0 20 kB w1 10 kB"),
        ("Staleness, mean (rounds)", "w0 0.5 w1 1.5"),
        ("Staleness, maximum (rounds)", "w0 2 w1 3"),
    ):
        assert f"{title} {text} " in f"{legends[title]} ", title
    assert len(legends) == 11


def test_a_curve_is_where_its_numbers_are(run):
    """The range of x is 50 to 390, that of y 198 up to 12; the ends of y have round values: 0 and 125 kB."""
    sent = figures_of(html_of(run))["Sent so far"]
    w0, w1, w0_by_time, w1_by_time = paths(sent)
    assert w0 == "M135.0 183.1L220.0 168.2L305.0 153.4L390.0 138.5"
    assert w1 == "M135.0 153.4L220.0 108.7L305.0 64.1L390.0 19.4"
    # Worker 1 needs 16 s for the 40 steps, worker 0 half of it.
    assert w0_by_time == "M92.5 183.1L135.0 168.2L177.5 153.4L220.0 138.5"
    assert w1_by_time == "M135.0 153.4L220.0 108.7L305.0 64.1L390.0 19.4"
    assert "time (s)" in sent and "<title>worker 1, step 20: 60 kB</title>" in sent


def test_axes_that_begin_at_zero(tmp_path):
    more = {"sent_bytes": 10**6, "received_bytes": 10**6, "staleness_mean": 2.5}
    lines = {w: [line_of(w, step) | {key: v + step for key, v in more.items()} for step in STEPS] for w in (0, 1)}
    figures = figures_of(html_of(write_run(tmp_path / "run", lines=lines)))
    from_zero = [title for title, chart in figures.items() if 'text-anchor="end">0</text>' in chart]
    assert from_zero == [
        *("Time of a step", "Waiting in a step", "Sent so far", "Received so far"),
        *("Staleness, mean (rounds)", "Staleness, maximum (rounds)"),
    ]


def test_a_curve_over_a_logarithmic_axis(run):
    """The axis is 3.25 / 1.2 to 90 * 1.2: the floor is ln 1.2 / ln 39.88 of the height above it, 90 as far below."""
    chart = figures_of(html_of(run))["FID (classifier, 256 samples), log scale"]
    assert chart.count('<path class="floor" d="M50 188.8H390"/>') == 2
    # All workers were at step 0 at second 0.
    assert paths(chart)[0] == "M50.0 21.2L390.0 76.6" and paths(chart)[2] == "M50.0 21.2L220.0 76.6"
    assert paths(chart)[1] == "M50.0 27.1L390.0 50.9"


def test_an_axis_is_logarithmic_only_where_values_are_far_apart():
    def title(*values: float, floor: float | None = None, may_be_log: bool = True) -> str:
        return figure("F", [(0, [(1, 1.0, v) for v in values])], str, floor=floor, may_be_log=may_be_log).title

    assert title(1.0, 10.0) == "F" and title(1.0, 10.5) == "F, log scale"
    assert title(5.0, 9.0, floor=0.5) == "F, log scale" and title(5.0, 9.0, floor=2.0) == "F"
    assert title(0.0, 10.5) == title(1.0, 10.5, may_be_log=False) == "F"


def test_a_value_that_is_missing_breaks_the_line():
    drawn = figure("F", [(0, [(0, 0.0, 0.0), (1, 1.0, 10.0), (2, 2.0, None), (3, 3.0, 0.0), (4, 4.0, 10.0)])], str)
    assert paths(charts_of(drawn))[0] == "M50.0 198.0L135.0 12.0M305.0 198.0L390.0 12.0"
    assert drawn.aside == "1 value not finite or missing, left out."


def test_the_unit_of_a_time_axis():
    assert [time_unit(s) for s in (120, 121, 7200, 7201)] == [("s", 1), ("min", 60), ("min", 60), ("h", 3600)]
    assert [whole_or_short(v) for v in (1500, 2.5)] == ["1,500", "2.5"]
    drawn = charts_of(figure("F", [(0, [(1, 3600.0, 1.0), (2, 7200.0, 2.0)])], report_svg.short))
    assert paths(drawn)[1].startswith("M220.0") and ">time (min)<" in drawn and "time (min) 60: 1<" in drawn


def test_a_running_mean_over_what_is_logged():
    points = [(float(x), float(y)) for x, y in enumerate((0, 10, 20, 30, 40))]
    assert report_svg._mean(points) == [(0, 10.0), (1, 15.0), (2, 20.0), (3, 25.0), (4, 30.0)]
    points[1] = (1.0, None)
    assert report_svg._mean(points) == [(0, 10.0), (1, None), (2, 22.5), (3, 30.0), (4, 30.0)]
    # The mean is over a twentieth of the curve: two points to each side of 99, two of 119, three of 120.
    for count, half in ((99, 2), (119, 2), (120, 3)):
        impulse = [(float(x), float(x == 50)) for x in range(count)]
        assert [x for x, y in report_svg._mean(impulse) if y] == list(range(50 - half, 51 + half))


def test_round_values_on_an_axis():
    ticks = report_svg._ticks
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100] and ticks(0, 90, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 11, 5) == [0, 2.5, 5, 7.5, 10, 12.5] and ticks(-3, 4, 5) == [-4, -2, 0, 2, 4]
    assert ticks(8, 8, 5) == [8, 9, 10, 11, 12] and ticks(0, 0, 5)[0] == 0
    assert report_svg._log_ticks(1, 1000) == [1, 10, 100, 1000] and report_svg._log_ticks(2, 60) == [3, 10, 30]
    assert report_svg._log_ticks(1.5, 6) == [2, 5] and report_svg._log_ticks(1, 1e10) == [1, 100, 1e4, 1e6, 1e8, 1e10]


# --- the shards ----------------------------------------------------------------------------------


def test_the_classes_of_each_worker(run):
    (run / "shards.json").write_text(json.dumps({"classes": ["cat", "dog"], "counts": [[1200, 300], [0, 75]]}))
    html = html_of(run)
    assert "worker cat dog all worker 0 1,200 300 1,500 worker 1 0 75 75" in Page(html).text
    assert re.findall(r"--share:([\d.]+)", html) == ["1.00", "0.25", "0.00", "0.06"]
    discs = re.findall(r'cx="(\d+)" cy="(\d+)" r="([\d.]+)"><title>(.*?)</title>', html.partition('"bubbles"')[2])
    # The area is the count: a quarter of the count has half the radius, a sixteenth a quarter.
    assert discs == [
        ("106", "28", "19.0", "worker 0, cat: 1,200"),
        ("150", "28", "9.5", "worker 0, dog: 300"),
        ("150", "72", "4.8", "worker 1, dog: 75"),
    ]


def test_many_classes_are_bars_and_few_numbers(run):
    counts = [[0] * 50, [0] * 50]
    counts[0][3], counts[0][4], counts[1][49] = 200, 50, 100
    (run / "shards.json").write_text(json.dumps({"classes": [f"c{n}" for n in range(50)], "counts": counts}))
    html = html_of(run)
    assert "fewest of one most of one all worker 0 2 50 200 250 worker 1 1 100 100 100" in Page(html).text
    bars = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"><title>(.*?)</title>', html)
    assert bars == [
        ("12.0", "42.0", "worker 0, c3: 200"),
        ("43.5", "10.5", "worker 0, c4: 50"),
        ("85.0", "21.0", "worker 1, c49: 100"),
    ]


@pytest.mark.parametrize(("classes", "shape"), [(40, "area of a disc"), (41, "height of a bar")])
def test_up_to_forty_classes_are_discs(run, classes, shape):
    names = [f"c{n}" for n in range(classes)]
    (run / "shards.json").write_text(json.dumps({"classes": names, "counts": [[1] * classes] * 2}))
    assert shape in text_of(run)


def test_own_shards_are_known_on_their_own_host(run):
    (run / "shards.json").write_text(json.dumps({"classes": ["cat", "dog"], "counts": [[5, 6], []]}))
    html = html_of(run)
    assert "worker cat dog all worker 0 5 6 11 worker 1 known on its own host" in Page(html).text
    assert re.findall(r"--share:([\d.]+)", html) == ["0.83", "1.00"]
    for counts in ([[], []], [[5, 6], [7]], [[5, 6, 7], []]):
        (run / "shards.json").write_text(json.dumps({"classes": ["cat", "dog"], "counts": counts}))
        assert "Who holds what" not in text_of(run)


# --- faults ---------------------------------------------------------------------------------------


def faults_of(folder) -> str:
    return text_of(folder).partition("Drops and deaths")[2].partition(" Curves")[0].strip()


def ends_at(tmp_path, ends: tuple[int, int], planned: int, **more):
    lines = {w: [line_of(w, step, **more) for step in range(10, end + 1, 10)] for w, end in enumerate(ends)}
    return write_run(tmp_path / f"{ends}-{planned}", lines=lines, steps=planned)


@pytest.mark.parametrize(
    ("ends", "planned", "late"),
    [
        ((100, 100), 100, set()),
        ((100, 90), 100, {1}),  # In a finished run all end together.
        ((90, 100), 105, {0}),  # There is no line between 100 and 105.
        ((70, 90), 100, set()),  # Workers of a run that goes on are a line or two apart.
        ((60, 90), 100, {0}),
    ],
)
def test_workers_that_are_behind(tmp_path, ends, planned, late):
    folder = ends_at(tmp_path, ends, planned)
    assert behind(read_run(folder)) == late
    is_unfinished = f"The run has {max(ends)} of its {planned} steps." in faults_of(folder)
    assert is_unfinished == (max(ends) + 10 <= planned)
    assert f"seed 1 {max(ends)} steps " in text_of(folder), "the furthest worker's"


def test_the_worker_that_dies_first_has_lost_nobody(tmp_path):
    """The others, which the dead worker did not see any more, are not lost."""
    lines = {0: [line_of(0, 10), line_of(0, 20, live_peers=0)]}
    text = faults_of(write_run(tmp_path / "run", lines=lines))
    assert text == "worker 0 wrote its last line at step 20; another reached 40."


def test_the_counters_of_each_worker(tmp_path):
    lines = [line_of(0, 10, dropped={"stale": 2}), line_of(0, 20, dropped={"stale": 3, "late": 1})]
    again = [line_of(0, 15, dropped={"stale": 1}), *(line_of(0, step, dropped={"stale": 4}) for step in (20, 30, 40))]
    folder = write_run(tmp_path / "run", lines={0: [*lines, *again]})
    worker = read_run(folder).workers[0]
    assert worker.restarts == [(20, 15)] and worker.dropped == {"stale": 7, "late": 1}
    assert faults_of(folder) == (
        "worker 0 restarted: from step 20 back to 15. worker 0 dropped 7 messages: stale. "
        "worker 0 dropped 1 message: late."
    )
    # The counts before the restart stay; the counts after it are added.
    assert [line["step"] for line in worker.lines] == [10, 15, 20, 30, 40]
    assert [line["sent_bytes"] for line in worker.lines] == [10_000, 15_000, 20_000, 30_000, 40_000]


def test_counters_that_began_again_twice(tmp_path):
    sent = ((10, 500), (20, 900), (30, 100), (40, 300), (50, 20), (60, 30))
    lines = [line_of(0, step, sent_bytes=value) for step, value in sent]
    worker = read_run(write_run(tmp_path / "run", lines={0: lines})).workers[0]
    assert [line["sent_bytes"] for line in worker.lines] == [500, 900, 1000, 1200, 1220, 1230]


@pytest.mark.parametrize(
    ("live", "text"),
    [
        ((1, 0, 0, 1), "worker 0 saw 0 of 1 peers alive at step 20, all of them again at step 40."),
        ((0, 0, 1, 1), "worker 0 saw 0 of 1 peers alive at step 10, all of them again at step 30."),
        ((1, 1, 1, 0), "None: no message dropped, no worker lost, no restart."),
    ],
)
def test_workers_that_were_missed(tmp_path, live, text):
    lines = [line_of(0, step, live_peers=count) for step, count in zip(STEPS, live, strict=True)]
    assert faults_of(write_run(tmp_path / "run", lines={0: lines})) == text


# --- small things ---------------------------------------------------------------------------------


def test_one_and_many():
    assert [many(count, "line") for count in (0, 1, 2000)] == ["0 lines", "1 line", "2,000 lines"]


def test_values_that_are_numbers():
    assert [number(v) for v in (3, -2.5, 1e30, True, "3", None, float("nan"), 1.1e30, 10**400)] == [
        *(3.0, -2.5, 1e30, None, None, None, None, None, None)
    ]


def test_the_newest_finite_value():
    worker = Worker(0, [{"step": 1, "time_s": 1.0, "x": 5}, {"step": 2, "time_s": 2.0, "x": 6}, {"step": 3, "x": None}])
    assert worker.last("x") == 6.0 and worker.last("y") is None
    assert worker.count_at("x", 1.5) == 5.5 and worker.count_at("x", 9) == 6.0


def test_pictures_are_thinned_and_in_the_order_of_their_steps(run, monkeypatch):
    monkeypatch.setattr("degan.runs.folder.MAX_PICTURES", 3)
    for step in (1_000_000, 5, 40, 999_999, 2):
        save_png(run / f"fakes-{step:06d}.png", np.zeros((4, 4, 3), dtype=np.uint8))
    save_png(run / "reals.png", np.zeros((4, 4, 3), dtype=np.uint8))
    found = read_run(run)
    assert [stem for stem, _ in found.pictures] == ["reals", "fakes-000002", "fakes-000040", "fakes-1000000"]
    assert found.pictures_left_out == 2
