"""The report of whole, half-written, malicious and missing run folders: a page, or one line and code 2."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from degan import report
from degan.artifacts.pictures import save_png
from degan.reports import page as report_page
from degan.reports import svg as report_svg
from degan.runs import facts
from degan.runs.folder import read_run
from degan.runs.records import Worker
from tests.run_folders import Page, metric_lines, stats_line, write_lines

STEPS = range(10, 1001, 10)


@pytest.fixture
def run(tmp_path):
    """A finished run of two workers."""
    folder = tmp_path / "run"
    folder.mkdir()
    experiment = config.load("mnist-degan", ["peers=2", "run.steps=1000", "name=two-of-us"])
    (folder / "experiment.yaml").write_text(config.dump(experiment))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.15.0", "devices": ["cpu", "cpu"]}))
    (folder / "shards.json").write_text(json.dumps({"classes": ["cat", "dog"], "counts": [[1234, 0], [0, 77]]}))
    write_lines(folder / "metrics.jsonl", [line for w in (0, 1) for line in metric_lines(w, range(0, 1001, 250))])
    for worker in (0, 1):
        write_lines(folder / f"w{worker}" / "stats.jsonl", [stats_line(worker, step) for step in STEPS])
    for name in ("reals", "fakes-000500", "fakes-001000", "fakes-000000"):
        save_png(folder / f"{name}.png", np.zeros((8, 8, 3), dtype=np.uint8))
    return folder


def page_of(folder):
    path = report.write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_run(run):
    page = page_of(run)
    for shown in (
        *(
            "two-of-us",
            "1,000",
            "worker 0",
            "worker 1",
            "420 →",
            "34.3",
            "3.25",
            "9 of 10",
            "0.125",
            "1 MB",
            "10",
            "20%",
        ),
        *("FID (classifier, 5,000 samples), log scale", "Discriminator loss", "Generator loss", "Time of a step"),
        *("Waiting in a step", "Sent so far", "Received so far", "Staleness, mean", "Staleness, maximum"),
        *("Real samples", "1,234", "cat", "name: two-of-us", "2.15.0", '["cpu", "cpu"]', "time (min)", "step"),
        "None: no message dropped",
    ):
        assert shown in page.text, shown
    steps = [text for text in page.texts if re.fullmatch(r"Step [\d,]+", text)]
    assert steps == ["Step 0", "Step 500", "Step 1,000"]
    assert page.tags.count("img") == 4


def test_one_file_with_nothing_from_outside(run):
    text = report.write_report(run).read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in ("href", "srcset")
        if name == "src":
            assert value.startswith("data:image/png;base64,")
    assert ("content", report_page.POLICY) in page.attributes and "default-src 'none'" in report_page.POLICY


def test_every_curve_is_drawn_over_steps_and_over_time(run):
    text = report.write_report(run).read_text()
    figures = re.findall(r'(?s)<figure class="card chart">.*?</figure>', text)
    assert len(figures) == 3 + 8
    for figure in figures:
        by_steps, by_time = figure.split('<div class="by-time">')
        assert by_steps.count('<path class="line') >= 2 + 2 and by_time.count('<path class="line') >= 2
    assert figures[0].count('class="floor"') == 2 + 1  # Both charts and the legend.


def test_a_metric_that_a_person_added_is_shown_after_the_known_ones(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1000, "worker": 0, "metric": "a_recall", "value": 1.0}) + "\n")
        file.write(json.dumps({"step": 1000, "worker": 0, "metric": "recall500_knn", "value": 0.625}) + "\n")
    families = [name.rstrip("_abcdefghijklmnopqrstuvwxyz") for name in facts.measured(read_run(run))]
    assert families == ["fid5000", "coverage5000", "tv5000", "recall500"]
    page = page_of(run)
    assert "Recall (knn, 500 samples)" in page.text and "0.625" in page.text


def test_only_the_run_folder_is_written(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report.write_report(run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {run / "report.html"}
    assert all(after[path] == before[path] for path in before)


@pytest.mark.parametrize(
    "lost",
    [
        "experiment.yaml",
        "environment.json",
        "shards.json",
        "metrics.jsonl",
        "w0/stats.jsonl",
        "w1/stats.jsonl",
        "reals.png",
    ],
)
def test_each_file_may_be_missing_or_nonsense(run, lost):
    for content in (b"", b"\xff\xfe\x00 {[", b"[" * 100_000, b'{"step": []}', b"null\n1\n", None):
        (run / lost).unlink() if content is None else (run / lost).write_bytes(content)
        assert "worker 1" in page_of(run).text


def test_a_folder_with_only_its_settings_or_only_its_metrics(run, tmp_path):
    for name in ("experiment.yaml", "metrics.jsonl"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes((run / name).read_bytes())
        assert "worker 1" in page_of(folder).text


def test_a_half_written_line_is_skipped_and_reported(run):
    with open(run / "w1" / "stats.jsonl", "a") as file:
        file.write('{"step": 1010, "time_s": 10')
    page = page_of(run)
    assert "w1/stats.jsonl: 1 line could not be read." in page.text
    assert read_run(run).workers[1].lines[-1]["step"] == 1000


def test_a_worker_without_lines_and_one_that_died(run):
    (run / "w0" / "stats.jsonl").write_text("")
    write_lines(run / "w1" / "stats.jsonl", [stats_line(1, step) for step in range(10, 301, 10)])
    page = page_of(run)
    assert "The run has 300 of its 1,000 steps." in page.text
    assert "worker 0 wrote no statistics in this folder." in page.text


def test_a_death_as_the_others_saw_it(run):
    dead = [stats_line(0, step) for step in STEPS if step <= 600]
    alive = [stats_line(1, step, live_peers=int(step < 630), dropped={"stale": step // 500}) for step in STEPS]
    write_lines(run / "w0" / "stats.jsonl", dead)
    write_lines(run / "w1" / "stats.jsonl", alive)
    page = page_of(run)
    assert "worker 0 wrote its last line at step 600; another reached 1,000." in page.text
    assert "worker 1 saw 0 of 1 peers alive at step 630." in page.text
    assert "worker 1 dropped 2 messages: stale." in page.text


@pytest.mark.parametrize(("offences", "banned"), [("offences", "banned"), ("strikes", "muted")], ids=["now", "before"])
def test_offences_and_bans(run, offences, banned):
    """A run folder of an older release has other words; the page has today's."""

    def write(counts, gone):
        changes = {offences: counts, banned: gone, "dropped": {banned: 2}}
        write_lines(run / "w0" / "stats.jsonl", [stats_line(0, step) | changes for step in STEPS])
        return page_of(run).text

    text = write({"1": 10, "2": 0}, [1])
    assert "worker 0 counted offences (too large, not finite or malformed) against worker 1 10." in text
    assert "worker 0 banned worker 1: nothing that it sent was used any more." in text
    assert "worker 0 dropped 2 messages: banned." in text
    assert not re.search("strike|mute", text.partition("Settings and versions")[0])
    text = write({"1": "many"}, "all")
    assert "counted offences" not in text and "worker 0 banned" not in text


def test_peers_that_merely_finished_first_are_no_deaths(run):
    write_lines(run / "w1" / "stats.jsonl", [stats_line(1, step, live_peers=int(step < 990)) for step in STEPS])
    assert "None: no message dropped" in page_of(run).text


def test_a_restart_keeps_the_newest_lines_and_continues_the_counters(run):
    first = [stats_line(1, step, d_loss=1.0, dropped={"late": 2}) for step in range(10, 301, 10)]
    second = [
        stats_line(1, step, d_loss=2.0, time_s=step - 200.0, sent_bytes=(step - 200) * 1000, dropped={"late": 1})
        for step in range(210, 1001, 10)
    ]
    write_lines(run / "w1" / "stats.jsonl", first + second)
    worker = read_run(run).workers[1]
    assert [line["step"] for line in worker.lines] == list(STEPS)
    assert [line["d_loss"] for line in worker.lines] == [1.0] * 20 + [2.0] * 80
    assert worker.last("sent_bytes") == 1_000_000  # 200,000 kept, 800,000 since.
    assert worker.last("time_s") == pytest.approx(200 * 0.2 + 800)
    assert worker.dropped == {"late": 3} and worker.restarts == [(300, 210)]
    assert "worker 1 restarted: from step 300 back to 210." in page_of(run).text


def test_the_last_line_of_a_metric_wins(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1000, "worker": 0, "metric": "fid5000_classifier", "value": 17.5}) + "\n")
    line = read_run(run).measured("fid5000_classifier")[0]
    assert [step for step, _, _ in line] == [0, 250, 500, 750, 1000] and line[-1][2] == 17.5
    assert "17.5" in page_of(run).text


@pytest.mark.parametrize("value", ["null", "NaN", "-Infinity", "1e999", '"7"', "true", "[]", "1" + "0" * 400])
def test_losses_that_are_no_numbers_leave_a_gap(run, value):
    lines = [
        json.dumps(stats_line(0, step, d_loss="@" if step == 500 else 1.0)).replace('"@"', value) for step in STEPS
    ]
    (run / "w0" / "stats.jsonl").write_text("\n".join(lines))
    page = page_of(run)
    assert "1 value not finite or missing, left out." in page.text
    assert not re.search(
        r"\b(nan|inf)\b", page.text + " ".join(str(value) for _, value in page.attributes), re.IGNORECASE
    )


def test_all_losses_lost(run):
    write_lines(run / "w0" / "stats.jsonl", [stats_line(0, step, d_loss=None, g_loss=None) for step in STEPS])
    write_lines(run / "w1" / "stats.jsonl", [stats_line(1, step, d_loss=None, g_loss=None) for step in STEPS])
    page = page_of(run)
    assert "Generator loss" not in page.text and "Time of a step" in page.text


def test_text_from_a_file_is_escaped(run):
    evil = "</title></pre><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    (run / "experiment.yaml").write_text(evil)
    (run / "environment.json").write_text(json.dumps({evil: evil, "list": [evil]}))
    (run / "shards.json").write_text(json.dumps({"classes": [evil, "b"], "counts": [[1, 2], [3, 4]]}))
    write_lines(run / "metrics.jsonl", [{"step": 1, "worker": 0, "metric": f"fid1_{evil}", "value": 1.0}])
    write_lines(run / "w0" / "stats.jsonl", [stats_line(0, 10, dropped={evil: 3})])
    (run / "fakes-1 <b onload=x>.png").write_bytes((run / "reals.png").read_bytes())
    page = page_of(run)
    assert "script" not in page.tags and "alert(1)" in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_a_password_stays_at_home(run):
    peers = "[redis://user:s3cret@host0:6379, 'rediss://:pa/ss@host1:6379/0']"
    text = (run / "experiment.yaml").read_text().replace("peers: 2", f"peers: {peers}")
    (run / "experiment.yaml").write_text(text)
    page = page_of(run)
    assert "redis://user:***@host0:6379" in page.text and "rediss://:***@host1" in page.text
    assert "s3cret" not in page.text and "pa/ss" not in page.text


def test_many_pictures_are_thinned_evenly_and_broken_ones_left_out(run):
    for step in range(0, 10_000, 100):
        save_png(run / f"fakes-{step:06d}.png", np.zeros((8, 8, 3), dtype=np.uint8))
    whole = (run / "fakes-009900.png").read_bytes()
    (run / "reals.png").write_bytes(whole[:-20])
    found = read_run(run)
    steps = [int(stem[-6:]) for stem, _ in found.pictures]
    assert len(steps) == 24 and steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == 9900
    assert "76 pictures in between not shown" in page_of(run).text


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_folder_of_no_run_is_one_line_and_code_2(tmp_path, capsys, kind):
    path = tmp_path / "thing"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("x")
    assert report.main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err
    assert not (path / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_code_2(run, capsys):
    (run / "report.html").mkdir()
    assert report.main([str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []


def test_the_command_prints_the_path_and_needs_no_torch(run):
    code = "import sys\nfrom degan import report\ncode = report.main(sys.argv[1:])\n"
    code += "assert not {'torch', 'numpy', 'peers'} & set(sys.modules)\nsys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent.parent.parent,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(run / "report.html"), "")


def test_time_between_lines_is_interpolated():
    worker = Worker(0, lines=[{"step": 100, "time_s": 10.0}, {"step": 200, "time_s": 30.0}])
    assert [worker.seconds_at(step) for step in (0, 50, 100, 150, 200, 220)] == [0.0, 5.0, 10.0, 20.0, 30.0, 33.0]
    assert Worker(0).seconds_at(5) is None


NUMBERS = st.floats(-1e30, 1e30) | st.none()


@given(st.lists(st.tuples(st.integers(0, 10**7), NUMBERS), max_size=50), st.booleans(), st.booleans(), st.booleans())
def test_any_numbers_make_a_chart_inside_its_frame(points, log, from_zero, smooth):
    points.sort(key=lambda point: point[0])
    drawn = report_svg.chart(
        [(0, "worker 0", points)],
        x_label="step",
        x_text=report_svg.short,
        y_text=report_svg.seconds,
        describe="anything",
        log=log,
        from_zero=from_zero,
        smooth=smooth,
    )
    assert bool(drawn) == any(y is not None for _, y in points)
    assert "nan" not in drawn and "inf" not in drawn
    places = re.findall(r"[ML]([\d.e+-]+) ([\d.e+-]+)", "".join(re.findall(r'class="line[^"]*" d="([^"]*)"', drawn)))
    for x, y in places:
        assert -0.1 <= float(x) <= report_svg.WIDTH + 0.1 and -0.1 <= float(y) <= report_svg.HEIGHT + 0.1


def test_thinning_keeps_the_ends_and_the_extremes():
    points = [(float(x), math.sin(x / 50)) for x in range(100_000)]
    points[55_555] = (55_555.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    thin = report_svg._thin(points)
    assert len(thin) < 1.1 * report_svg.MAX_POINTS and thin == sorted(thin)
    assert {points[0], points[-1], points[55_555], points[77_777]} <= set(thin)


def test_numbers_as_text():
    values = (0, 0.01234, 1.5, 45.678, 120, 1234.5, 2e7, -0.5)
    assert [report_svg.short(v) for v in values] == ["0", "0.0123", "1.5", "45.7", "120", "1,234", "2e7", "-0.5"]


def test_sizes_and_durations_as_text():
    assert [report_svg.octets(v) for v in (0, 512, 1500, 2e7, 3e9, 4e12)] == [
        "0",
        "512 B",
        "1.5 kB",
        "20 MB",
        "3 GB",
        "4 TB",
    ]
    assert [report_svg.seconds(v) for v in (0, 5e-4, 0.012, 3.2, 300, 9000)] == [
        "0",
        "500 µs",
        "12 ms",
        "3.2 s",
        "5 min",
        "2.5 h",
    ]
