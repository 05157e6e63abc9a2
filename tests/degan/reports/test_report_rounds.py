"""The report of runs with rounds and a leader, and of many workers and classes."""

import json
import re

import pytest

from degan import report
from degan.runs.folder import read_run
from tests.run_folders import Page, make_leader_based_run, make_run, round_line, write_lines

STEPS = range(10, 101, 10)


def page_of(folder):
    return Page(report.write_report(folder).read_text(encoding="utf-8"))


# --- modes with rounds ------------------------------------------------------------------------------


def test_a_run_with_rounds(tmp_path):
    folder = make_leader_based_run(tmp_path / "run")
    lines = [round_line(0, step, answered=1 + step % 20 // 10, late=step // 50, void_rounds=1) for step in STEPS]
    write_lines(folder / "w0" / "stats.jsonl", lines)
    page = page_of(folder)
    for shown in (
        *("Rounds", "Asked and answered in a round", "asked 2", "answered in time 1", "Late answers so far"),
        *("Worker 0 led all of them. 1 round void.", "1 round counted for nothing", "images", "128,000"),
        *("sent predicted ratio", "1.050", "420 kB 400 kB 1.050"),
    ):
        assert shown in page.text, shown
    # Rounds have no stale parts and this mode no swaps; a worker that was not asked has no loss, which is no fault.
    for absent in ("Staleness", "Discriminators exchanged", "not finite", "wrote no statistics", "alive at step"):
        assert absent not in page.text, absent
    assert "worker 1 100 – → – 3.25 – – " in page.text


def test_losses_of_the_rounds_in_which_a_worker_trained_are_one_line(tmp_path):
    folder = make_leader_based_run(tmp_path / "run")
    write_lines(folder / "w1" / "stats.jsonl", [round_line(1, s, cohort=(s // 10 % 2,)) for s in STEPS])
    worker = read_run(folder).workers[1]
    assert [step for step, _, _ in worker.series("d_loss")] == [10, 30, 50, 70, 90]
    assert "not finite or missing" not in page_of(folder).text


def test_discriminators_that_changed_hands(tmp_path):
    folder = make_leader_based_run(tmp_path / "run", mode="multi_discriminator")
    for worker in range(3):
        lines = [round_line(worker, step, cohort=(0, 1, 2), swaps=step // 40) for step in STEPS]
        write_lines(folder / f"w{worker}" / "stats.jsonl", lines)
    assert "Discriminators exchanged so far w0 2 w1 2 w2 2" in page_of(folder).text


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        ((1, 1, 2, 2, 2), ""),  # The others came late.
        ((2, 2, 1, 1, 2), "saw 1 of 2 peers alive at step 30, all of them again at step 50"),
        ((2, 2, 2, 2, 1), ""),  # The other merely finished first.
    ],
)
def test_peers_that_come_and_go_between_rounds(tmp_path, live, expected):
    folder = make_leader_based_run(tmp_path / "run", steps=50)
    lines = [round_line(0, 10 * (at + 1), live_peers=count) for at, count in enumerate(live)]
    write_lines(folder / "w0" / "stats.jsonl", lines)
    text = page_of(folder).text
    assert expected in text and ("alive at step" in text) == bool(expected)


def test_a_leader_that_dies_is_followed_by_the_next(tmp_path):
    folder = make_leader_based_run(tmp_path / "run")
    write_lines(folder / "w0" / "stats.jsonl", [round_line(0, step) for step in STEPS[:5]])
    for worker in (1, 2):
        lines = [round_line(worker, s, leader=int(s > 50), live_peers=2 - (s > 50)) for s in STEPS]
        write_lines(folder / f"w{worker}" / "stats.jsonl", lines)
    text = page_of(folder).text
    assert "Worker 0 led first, worker 1 from step 60 on." in text
    assert "worker 0 wrote its last line at step 50; another reached 100." in text
    assert "workers 1, 2 saw 1 of 2 peers alive at step 60." in text


# --- the shards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "classes"), [(8, 10), (32, 10), (3, 200)])
def test_the_classes_of_all_workers_fit_on_a_page(tmp_path, workers, classes):
    counts = [[(w + c) % 7 * 100 for c in range(classes)] for w in range(workers)]
    run = make_run(tmp_path / "run")
    (run / "shards.json").write_text(json.dumps({"classes": [f"n{c:07d}" for c in range(classes)], "counts": counts}))
    text = report.write_report(run).read_text()
    (drawn,) = re.findall(r'<svg class="bubbles".*?</svg>', text)
    width, height = map(float, re.search(r'width="(\d+)" height="(\d+)"', drawn).groups())
    assert width <= 1240 and height <= 1240
    assert drawn.count('class="bubble') - 1 == sum(count > 0 for row in counts for count in row)
    places = [
        (float(x), float(y)) for x, y in re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)" transf', drawn)
    ]
    # Slanted names need about a line's height between them.
    assert len(places) > 1 and all(b[0] - a[0] >= 17 for a, b in zip(places, places[1:], strict=False))
    assert "the area of a disc" in text if classes <= 40 else "the height of a bar" in text
