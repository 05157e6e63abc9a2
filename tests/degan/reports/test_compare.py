"""Comparison of runs: curves over four axes, repeats, runs that died, and refusals in one line."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from degan import compare
from degan.reports import svg as report_svg
from degan.reports.compare_data import groups, labels, read
from degan.reports.compare_tables import as_markdown, runs_table, settings_table
from degan.runs import facts
from degan.runs.folder import read_run
from tests.run_folders import Page, make_leader_based_run, make_run, metric_lines, round_line, stats_line, write_lines


@pytest.fixture
def two(tmp_path):
    """Two runs that differ in their parts."""
    return [make_run(tmp_path / "a", "mode.parts=2"), make_run(tmp_path / "b", "mode.parts=8")]


@pytest.fixture
def call(capsys):
    """A function that runs the command; returns the exit code, standard output and standard error."""

    def with_words(*words):
        code = compare.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return with_words


def page_of(folders, out):
    assert compare.compare(folders, out) == [str(out)]
    return Page(out.read_text(encoding="utf-8"))


def row_of(folder, *others):
    """The run's row as {title: cell}; `others` are the runs beside it."""
    titles, rows = runs_table(read([folder, *others]))
    return dict(zip(titles, rows[0], strict=True))


# --- the numbers of one run -------------------------------------------------------------------------


def test_a_curve_is_the_worst_worker_over_four_axes(two):
    entry, _ = read(two)
    assert [point.step for point in entry.points] == [0, 250, 500, 750, 1000]
    for point in entry.points:
        # Worker 1 is worse by 1, and takes twice the time; both send 1,000 bytes and train on 32 images a step.
        assert point.value == pytest.approx(400 * math.exp(-point.step / 300) + 21)
        assert point.seconds == pytest.approx(point.step * 0.2)
        assert (point.sent_bytes, point.images) == (2 * point.step * 1000, 2 * point.step * 32)
    assert (entry.first, entry.last, entry.best) == (421.0, entry.points[-1].value, entry.points[-1].value)
    assert (entry.floor, facts.lowest_coverage(entry.run), facts.total(entry.run, "sent_bytes")) == (
        3.25,
        9.0,
        2_000_000,
    )
    assert facts.images_per_s(entry.run) == pytest.approx(2 * 32_000 / 200)


def test_the_lowest_coverage_counts(two):
    lines = [line for line in metric_lines(1, [1000]) if line["metric"] == "coverage5000_classes"]
    with open(two[0] / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**lines[0], "value": 4.0}) + "\n")
    assert row_of(*two)["coverage"] == "4 of 10"


def test_a_generator_that_diverged_is_worse_than_any(two):
    write_lines(two[0] / "metrics.jsonl", [*metric_lines(0, (0, 500)), *metric_lines(1, (0, 500), s500=None)])
    row = row_of(*two)
    assert (row["FID first"], row["FID last"], row["FID best"]) == ("421", "not finite", "421")
    data = json.loads(compare.compare(two, None, as_data=True)[0])
    assert data["runs"][0]["fid_last"] is None and data["runs"][0]["curves"]["fid5000_classifier"][1]["fid"] is None


def test_between_lines_counters_are_interpolated_and_never_beyond_the_last(two):
    (worker, other) = read_run(two[0]).workers.values()
    steps = (0, 5, 10, 15, 1000, 2000)
    assert [worker.count_at("sent_bytes", step) for step in steps] == [0, 5000, 10_000, 15_000, 10**6, 10**6]
    assert other.count_at("predicted_sent_bytes", 10) is None


def test_a_worker_that_joined_late_counts_from_where_it_came(tmp_path):
    run = make_leader_based_run(tmp_path / "run")
    write_lines(
        run / "w2" / "stats.jsonl", [round_line(2, step, cohort=(2,), images=step - 50) for step in (60, 70, 80)]
    )
    worker = read_run(run).workers[2]
    assert [worker.count_at("images", step) for step in (40, 50, 55, 60, 70, 90)] == [0, 0, 5, 10, 20, 30]


def test_a_worker_that_came_back_goes_on_counting(tmp_path):
    run = make_leader_based_run(tmp_path / "run")
    lines = [round_line(1, step) for step in (10, 20)]
    lines += [round_line(1, step, images=(step - 50) * 640, late=1, sent_bytes=7, void_rounds=2) for step in (60, 70)]
    write_lines(run / "w1" / "stats.jsonl", lines)
    found = read_run(run)
    assert found.workers[1].last("images") == 20 * 640 + 20 * 640
    assert found.workers[1].last("sent_bytes") == 20 * 1050 + 7
    assert facts.void_rounds(found) == 2 and facts.total(found, "late") == 1


# --- a mode with rounds -----------------------------------------------------------------------------


def test_one_worker_measures_for_all_and_formulas_stand_beside(tmp_path, two):
    run = make_leader_based_run(tmp_path / "rounds", "data.split.kind=dirichlet")
    row = row_of(run, *two)
    assert (row["mode"], row["split"], row["workers"], row["void rounds"]) == ("federated", "dirichlet 0.5", "3", "0")
    assert (row["sent by all"], row["predicted"]) == ("420 kB", "400 kB")
    assert row["images/s"] == report_svg.short(2 * 640 * 100 / 10)
    points = read([run, *two])[0].points
    assert [(point.step, point.images) for point in points] == [(0, 0), (50, 2 * 640 * 50), (100, 2 * 640 * 100)]
    page = page_of([run, *two], tmp_path / "c.html")
    assert "FID over steps and rounds" in page.text and "Only federated has: " in page.text


def test_a_prediction_that_only_some_know_is_none(tmp_path, two):
    run = make_leader_based_run(tmp_path / "rounds")
    line = round_line(1, 100)
    del line["predicted_sent_bytes"]
    write_lines(run / "w1" / "stats.jsonl", [line])
    assert row_of(run, *two).get("predicted", "–") == "–"


def test_time_goes_on_when_the_one_that_measures_dies(tmp_path, two):
    run = make_leader_based_run(tmp_path / "rounds")
    write_lines(run / "w0" / "stats.jsonl", [round_line(0, step) for step in (10, 20, 30)])
    write_lines(run / "metrics.jsonl", [*metric_lines(0, [0]), *metric_lines(1, [50, 100])])
    entry = read([run, *two])[0]
    assert [point.seconds for point in entry.points] == pytest.approx([0.0, 5.0, 10.0])
    # The work of the dead worker up to its last line stays counted.
    assert entry.points[-1].images == 30 * 640 + 100 * 640
    assert row_of(run, *two)["deaths, drops"] == "1 died"


# --- repeats and differences ------------------------------------------------------------------------


def test_other_seeds_of_a_setting_are_one_group(tmp_path):
    runs = [make_run(tmp_path / f"s{seed}", "mode.parts=2", f"seed={seed}", f"name=n{seed}") for seed in (1, 2, 3)]
    runs.append(make_run(tmp_path / "other", "mode.parts=8"))
    write_lines(runs[1] / "metrics.jsonl", metric_lines(0, [0, 1000], s1000=7.5))
    write_lines(runs[2] / "metrics.jsonl", metric_lines(0, [0, 1000], s1000=90.0))
    text = (runs[2] / "experiment.yaml").read_text()
    (runs[2] / "experiment.yaml").write_text(text.replace("peers: 2", "peers: [redis://x:1, redis://y:1]"))
    entries = read(runs)
    found = groups(entries)
    assert [[entry.label for entry in group.entries] for group in found] == [["s1", "s2", "s3"], ["other"]]
    assert [group.label for group in found] == ["partial_exchange, parts 2", "partial_exchange, parts 8"]
    assert found[0].spread(lambda entry: entry.last) == (pytest.approx(400 * math.exp(-1000 / 300) + 21), 7.5, 90.0)
    (titles, rows), alone = settings_table(entries)
    assert (titles[1:], rows, alone) == (["s1", "s2", "s3", "other"], [["mode.parts", "2", "2", "2", "8"]], {})
    text = as_markdown(entries, found)
    assert "| partial_exchange, parts 2 | 3 | 35.3 (7.5 to 90) | 9 | " in text
    page = page_of(runs, tmp_path / "c.html")
    assert "Settings over their seeds" in page.text and "35.3 (7.5 to 90)" in page.text


def test_a_median_is_over_runs_that_reached_their_end(tmp_path):
    runs = [make_run(tmp_path / f"s{seed}", f"seed={seed}") for seed in (1, 2)]
    write_lines(runs[1] / "metrics.jsonl", metric_lines(0, [0, 250]))
    for worker in (0, 1):
        write_lines(runs[1] / f"w{worker}" / "stats.jsonl", [stats_line(worker, step) for step in range(10, 301, 10)])
    entries = read(runs)
    (group,) = groups(entries)
    assert group.counted == [entries[0]] and group.spread(lambda entry: entry.last)[0] == entries[0].last
    assert "| 1 of 2 |" in as_markdown(entries, [group]) and "| 300 of 1,000 |" in as_markdown(entries, [group])


def test_settings_that_could_not_be_read_repeat_nobody(tmp_path, two):
    for folder in two:
        (folder / "experiment.yaml").write_text("{[")
    assert [group.label for group in groups(read(two))] == ["a", "b"]


def test_settings_of_another_degan_are_taken_as_they_are(tmp_path, two):
    text = (two[0] / "experiment.yaml").read_text()
    (two[0] / "experiment.yaml").write_text(text.replace("name: partial_exchange", "name: telepathy, strength: 3"))
    entry = read(two)[0]
    assert entry.run.experiment is None and entry.settings["mode.strength"] == 3 and "peers" not in entry.settings
    assert (row_of(*two)["mode"], row_of(*two)["seed"]) == ("telepathy", "1")


def test_a_name_is_as_long_as_it_takes(tmp_path):
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert labels(paths) == ["x/run", "y/run", "z"]


# --- the page ---------------------------------------------------------------------------------------


def test_one_file_with_all_of_it_and_nothing_from_outside(two, tmp_path):
    page = page_of(two, tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    for shown in ("Runs compared", "FID over steps", "FID over bytes", "FID over time", "FID over images", "worst"):
        assert shown in page.text, shown
    figures = re.findall(r'(?s)<figure class="card chart">.*?</figure>', text)
    assert len(figures) == 4
    for figure in figures:
        assert figure.count('<path class="line') == 2 and figure.count('class="floor"') == 2
    assert page.tags.count("img") == 2 and "step 1,000" in page.text
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_text_from_a_file_is_escaped(two, tmp_path):
    evil = "<script>alert(1)</script>"
    strange = two[1].rename(tmp_path / "<b onload=x>|")
    write_lines(strange / "metrics.jsonl", [{"step": 1, "worker": 0, "metric": f"fid1_{evil}", "value": 1.0}])
    (strange / "experiment.yaml").write_text(f"mode: {{name: '{evil}'}}\nseed: '{evil}'\n")
    page = page_of([two[0], strange], tmp_path / "c.html")
    assert "script" not in page.tags and "alert(1)" in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = as_markdown(read([two[0], strange]), groups(read([two[0], strange])))
    assert "<" not in text and len({line.count(" | ") for line in text.split("\n\n")[1].splitlines()}) == 1


def test_a_password_stays_at_home(two, tmp_path):
    for folder in two:
        text = (
            (folder / "experiment.yaml")
            .read_text()
            .replace("peers: 2", "peers: ['redis://u:s3cret@h:1', 'redis://h:2']")
        )
        (folder / "experiment.yaml").write_text(text.replace("parts: 2", "parts: 2, unknown: 1"))
    printed = compare.compare(two, tmp_path / "c.html", markdown=True, as_data=True)
    assert "s3cret" not in (tmp_path / "c.html").read_text() + "".join(printed)


def test_runs_that_sent_nothing_or_very_much_share_a_chart(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("much", "little", "none")]
    for run, factor in zip(runs, (100, 1, 0), strict=True):
        for worker in (0, 1):
            lines = [stats_line(worker, step, sent_bytes=factor * step) for step in range(10, 1001, 10)]
            write_lines(run / f"w{worker}" / "stats.jsonl", lines)
    page = page_of(runs, tmp_path / "c.html")
    assert "sent by all workers so far, log scale" in page.text
    assert "Nothing was sent, so not in this chart: none." in page.text


# --- runs that died, or have hardly begun -----------------------------------------------------------


@pytest.mark.parametrize(
    "lost", ["experiment.yaml", "metrics.jsonl", "w0/stats.jsonl", "w1/stats.jsonl", "fakes-001000.png"]
)
def test_each_file_may_be_missing_or_nonsense(two, tmp_path, lost):
    for content in (b"", b"\xff\xfe\x00 {[", b'{"step": []}', None):
        (two[0] / lost).unlink() if content is None else (two[0] / lost).write_bytes(content)
        assert "Runs compared" in page_of(two, tmp_path / "c.html").text
        json.loads(compare.compare(two, None, markdown=True, as_data=True)[1])


def test_nothing_measured_yet(two, tmp_path):
    for folder in two:
        (folder / "metrics.jsonl").unlink()
        shutil.rmtree(folder / "w0")
        shutil.rmtree(folder / "w1")
    page = page_of(two, tmp_path / "c.html")
    assert "No run has measured an FID or an accuracy yet." in page.text


# --- the command ------------------------------------------------------------------------------------


def test_the_command_prints_the_page_or_the_tables_or_the_data(two, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*two) == (0, "compare.html\n", "") and Path("compare.html").is_file()
    Path("compare.html").unlink()
    code, out, _ = call(*two, "--markdown")
    assert code == 0 and out.startswith("| setting | runs |") and not Path("compare.html").exists()
    code, out, _ = call(*two, "--json", "--out", "other.html")
    data = json.loads(out)
    assert code == 0 and Path("other.html").is_file() and [run["run"] for run in data["runs"]] == ["a", "b"]
    assert data["settings"] == {"mode.parts": [2, 8]}
    assert data["runs"][0]["curves"]["fid5000_classifier"][-1]["sent_bytes"] == 2_000_000


@pytest.mark.parametrize("kind", ["missing", "empty", "only one", "twice the same", "a folder of runs", "unwritable"])
def test_refused_in_one_line(two, tmp_path, call, kind):
    (tmp_path / "empty").mkdir()
    words, message = {
        "missing": ([two[0], tmp_path / "nix"], "no run folder"),
        "empty": ([two[0], tmp_path / "empty"], "is no run folder"),
        "only one": ([two[0]], "only one run"),
        "twice the same": ([two[0], two[0]], "only one run"),
        "a folder of runs": ([tmp_path], f"holds 2; name them: {tmp_path}/*"),
        "unwritable": ([*two, "--out", tmp_path / "no such folder" / "c.html"], "cannot write"),
    }[kind]
    code, out, text = call(*words)
    assert (code, out) == (2, "") and text.count("\n") == 1 and text.startswith("degan compare: ") and message in text


def test_it_needs_no_torch(two, tmp_path):
    code = "import sys\nfrom degan import compare\ncode = compare.main(sys.argv[1:])\n"
    code += "assert not {'torch', 'numpy', 'peers'} & set(sys.modules)\nsys.exit(code)"
    out = tmp_path / "c.html"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, two), "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent.parent.parent,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(out), "")
