"""The loop of one worker, with every line and file of a run written down by hand: due tasks, and their writers."""

from __future__ import annotations

import errno
import json
import os

import pytest
from PIL import Image

import config
from config import UsageError
from degan.worker import loop
from tests.loops import Live

# Time, losses and waiting are means over the steps since the line before; all else is the value at the step.
STATS = [
    {"step": 3, "time_s": 3.0, "images": 24, "d_loss": 2.0, "g_loss": 20.0, "step_s": 1.0, "sent_bytes": 300},
    {"step": 6, "time_s": 10.5, "images": 48, "d_loss": 5.0, "g_loss": 50.0, "step_s": 2.5, "sent_bytes": 621},
    {"step": 9, "time_s": 22.5, "images": 72, "d_loss": 8.0, "g_loss": 80.0, "step_s": 4.0, "sent_bytes": 928},
    {"step": 10, "time_s": 27.5, "images": 80, "d_loss": 10.0, "g_loss": 100.0, "step_s": 5.0, "sent_bytes": 1035},
]
WAITED = {3: (0.5, 0.25), 6: (1.25, 0.625), 9: (2.0, 1.0), 10: (2.5, 1.25)}


def stats_by_hand(*steps: int) -> list[dict]:
    return [
        {**line, "staleness_max": 3, "wait_s": WAITED[line["step"]][0], "exchange_s": WAITED[line["step"]][1]}
        for line in STATS
        if line["step"] in steps
    ]


def metrics_by_hand(worker: int, measured: dict[int, tuple[int, float]]) -> list[dict]:
    """`measured` maps a step to the images drawn by then and the distance."""
    return [
        {"step": step, "worker": worker, "images": images, "metric": name, "value": value, "seconds": seconds}
        for step, (images, fid) in measured.items()
        for name, value, seconds in (
            ("fid64_classifier", fid, 1.235),
            ("fid64_classifier_floor", 3.25, 0.0),
            ("coverage64_classes", 9.0, 0.5),
        )
    ]


@pytest.fixture
def live(tmp_path, monkeypatch):
    def make(**words) -> Live:
        return Live(tmp_path / "run", monkeypatch, **words)

    return make


def values_of(one: Live, step: int) -> dict:
    return one.checkpoints.load(step).values


def fifth_step(action):
    """An action at the begin of step 5."""
    return {5: action}


# --- a whole run --------------------------------------------------------------------------------


def test_every_line_of_a_run(live):
    one = live()
    assert one.run() == 10
    assert one.stats == stats_by_hand(3, 6, 9, 10)
    # After a sync point the shade is 10 k + 1; at the end the remainder has been exchanged, which adds 2.
    assert one.metrics == metrics_by_hand(0, {0: (0, 200.0), 4: (32, 159.0), 8: (64, 119.0), 10: (80, 97.0)})
    assert one.logged == ["finished after 10 steps and 27.5 s"] and one.begun_steps == list(range(1, 11))


def test_the_mode_is_called_in_this_order(live):
    one = live()
    one.run()
    assert one.mode.calls == [
        *(
            "step 1",
            "step 2",
            "step 3",
            "step 4 sync",
            "synchronise 4",
            "step 5 sync",
            "synchronise 5",
            "step 6 sync",
            "synchronise 6",
        ),
        *(
            "state",
            "step 7",
            "step 8 sync",
            "synchronise 8",
            "step 9",
            "step 10 sync",
            "synchronise 10",
            "finish",
            "state",
        ),
    ]
    assert one.mode.begun == ([], {}) and one.signals.has_begun


def test_the_files_of_a_run_and_what_they_show(live):
    one = live()
    one.run()
    drawn = {"fakes-000000.png": 0, "fakes-000005.png": 51, "fakes-000010.png": 103}
    assert one.shades(one.home) == drawn
    assert one.shades(one.folder) == drawn | {"reals.png": 255}
    with Image.open(one.folder / "reals.png") as reals, Image.open(one.folder / "fakes-000005.png") as fakes:
        assert reals.size == fakes.size == (2 * 56 + 1, 2 * 56 + 1), "as many columns as rows, grey between them"
    assert json.loads((one.folder / "shards.json").read_text()) == {
        "classes": ["cat", "dog"],
        "counts": [[3, 4], [5, 6]],
    }
    assert config.load(one.folder / "experiment.yaml") == one.settings
    assert sorted(path.name for path in one.folder.iterdir() if path.suffix != ".png") == [
        *("experiment.yaml", "metrics.jsonl", "shards.json", "w0")
    ]


def test_the_content_of_the_checkpoints(live):
    one = live()
    one.run()
    assert one.checkpoints.steps() == [6, 10]
    # Step 6 was not evaluated: the distance of step 4 is not its own.
    assert values_of(one, 6) == {"drawn": 48, "shade": 61, "mode": {"sent": 621}, "trained_s": 10.5}
    assert values_of(one, 10) == {
        "drawn": 80,
        "shade": 103,
        "mode": {"sent": 1035},
        "trained_s": 27.5,
        "score": 97.0,
    }


def test_all_tasks_are_due_at_the_last_step_too(live):
    one = live(steps=7)
    assert one.run() == 7
    assert [line["step"] for line in one.stats] == [3, 6, 7]
    assert [line["step"] for line in one.metrics] == [0] * 3 + [4] * 3 + [7] * 3
    assert sorted(one.shades(one.home)) == ["fakes-000000.png", "fakes-000005.png", "fakes-000007.png"]
    assert one.checkpoints.steps() == [6, 7] and values_of(one, 7)["score"] == 127.0


def test_a_task_that_is_switched_off_is_never_done(live):
    one = live(evaluate_every=0, snapshot_every=0, checkpoint_every=0)
    one.run()
    assert one.metrics == [] and one.shades(one.folder) == {"reals.png": 255} and one.shades(one.home) == {}
    # The end is always saved, and the only sync point.
    assert one.checkpoints.steps() == [10] and "score" not in values_of(one, 10)
    assert [call for call in one.mode.calls if "sync" in call or "synchronise" in call] == [
        "step 10 sync",
        "synchronise 10",
    ]
    assert not one.setup.learner.asked


def test_a_checkpoint_is_made_with_every_snapshot_unless_set_otherwise(live):
    one = live(checkpoint_every="null")
    one.run()
    assert one.checkpoints.steps() == [5, 10]


def test_the_best_and_the_newest_checkpoints_stay(live):
    one = live(steps=5, evaluate_every=1, checkpoint_every=1, snapshot_every=0)
    one.setup.fids = {21: 1.5}
    one.run()
    assert one.checkpoints.steps() == [2, 3, 4, 5]
    assert [values_of(one, step)["score"] for step in (2, 3, 4, 5)] == [1.5, 169.0, 159.0, 147.0]


def test_a_distance_that_is_none_is_no_score(live):
    one = live(steps=6)
    one.setup.fids = {63: float("nan")}
    one.run()
    assert one.metrics[-3]["step"] == 6 and one.metrics[-3]["value"] is None
    assert "score" not in values_of(one, 6)


# --- pictures -----------------------------------------------------------------------------------


def test_a_picture_is_of_as_many_samples_as_the_grid_has_places(live):
    one = live()
    one.run()
    assert one.setup.learner.asked.count(("show", 4)) == 3 and one.setup.learner.asked.count(("measure", 5)) == 4
    assert len(one.setup.learner.asked) == 7


def test_a_learner_without_a_picture_is_measured_all_the_same(live):
    one = live()
    one.setup.learner.is_shown = False
    one.run()
    assert one.shades(one.folder) == {"reals.png": 255} and one.shades(one.home) == {}
    assert len(one.metrics) == 12


# --- the writers --------------------------------------------------------------------------------


def test_a_worker_that_is_not_first_leaves_the_runs_pictures_alone(live):
    one = live(worker=1)
    one.mode.first = False
    one.run()
    assert one.shades(one.folder) == {}
    assert sorted(one.shades(one.home)) == ["fakes-000000.png", "fakes-000005.png", "fakes-000010.png"]
    # The worker measures its own model all the same.
    assert one.metrics == metrics_by_hand(1, {0: (0, 200.0), 4: (32, 159.0), 8: (64, 119.0), 10: (80, 97.0)})
    assert one.stats == stats_by_hand(3, 6, 9, 10)


def test_of_a_shared_model_only_the_first_measures_and_draws(live):
    one = live(worker=1)
    one.mode.is_shared, one.mode.first = True, False
    one.run()
    assert one.metrics == [] and one.shades(one.folder) == {} and one.shades(one.home) == {}
    assert one.stats == stats_by_hand(3, 6, 9, 10) and one.checkpoints.steps() == [6, 10]
    assert not one.setup.learner.asked


def test_the_first_measures_a_shared_model(live):
    one = live()
    one.mode.is_shared = True
    one.run()
    assert len(one.metrics) == 12 and len(one.shades(one.folder)) == 4


def test_the_first_is_determined_at_every_sync_point(live):
    """The first worker of a run may change: the next one goes on with the run's pictures."""
    one = live(worker=1)
    one.mode.is_shared, one.mode.first = True, False
    one.at = fifth_step(lambda: setattr(one.mode, "first", True))
    one.run()
    assert [line["step"] for line in one.metrics] == [8] * 3 + [10] * 3
    assert sorted(one.shades(one.folder)) == ["fakes-000005.png", "fakes-000010.png"]


@pytest.mark.parametrize("is_first", [True, False])
def test_the_shards_are_written_by_the_first_or_where_they_are_missing(live, is_first):
    one = live(worker=1)
    one.mode.first = is_first
    (one.folder / "shards.json").write_text("theirs")
    one.run()
    assert ((one.folder / "shards.json").read_text() == "theirs") is not is_first
    (one.folder / "shards.json").unlink()
    one = live(worker=1, steps=11, resume_from=(10,))
    one.mode.first = is_first
    one.run()
    assert "cat" in (one.folder / "shards.json").read_text()


def test_the_real_samples_are_drawn_once(live):
    one = live()
    (one.folder / "reals.png").write_bytes(b"earlier")
    one.run()
    assert (one.folder / "reals.png").read_bytes() == b"earlier"


# --- missing models and losses ------------------------------------------------------------------


def test_without_the_rounds_model_nothing_is_shown_or_saved(live):
    one = live()
    one.mode.has_state = False
    one.at = {8: lambda: setattr(one.mode, "has_state", True)}
    one.run()
    assert [line["step"] for line in one.metrics] == [0] * 3 + [8] * 3 + [10] * 3
    assert "fakes-000005.png" not in one.shades(one.home) and one.checkpoints.steps() == [10]
    assert one.stats == stats_by_hand(3, 6, 9, 10)


def test_steps_in_which_a_worker_had_no_part_have_no_losses(live):
    one = live()
    one.mode.silent_steps = (1, 3, 4, 5, 6, 10)
    one.run()
    assert [line.get("d_loss") for line in one.stats] == [2.0, None, 8.0, None]
    assert [line.get("g_loss") for line in one.stats] == [20.0, None, 80.0, None]
    assert "d_loss" not in one.stats[1] and [line["images"] for line in one.stats] == [24, 48, 72, 80]


# --- failed writes ------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_saved_is_logged_and_the_other_one_is_saved(live, monkeypatch):
    one, save = live(), loop.save_png

    def full(path, picture):
        if path.parent == one.home:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, picture)

    monkeypatch.setattr(loop, "save_png", full)
    assert one.run() == 10
    line = f"cannot save a picture in {one.home}: No space left on device; going on without it"
    assert one.logged == [line] * 3 + ["finished after 10 steps and 27.5 s"]
    assert len(one.shades(one.folder)) == 4 and len(one.metrics) == 12


def test_lines_that_cannot_be_written_are_logged_once(live, capsys):
    one = live()
    one.at = {1: (one.home / "stats.jsonl").mkdir}
    assert one.run() == 10
    line = f"cannot write to {one.home}/stats.jsonl: Is a directory; going on without what belongs there\n"
    assert capsys.readouterr().err.partition(" ")[2] == line and len(one.metrics) == 12


def test_a_checkpoint_that_cannot_be_saved_is_logged_and_the_last_one_must_be(live):
    one = live()
    (one.home / "checkpoints").write_text("in the way")
    with pytest.raises(UsageError, match="cannot save the checkpoint of step 10"):
        one.run()
    assert len(one.logged) == 1 and one.logged[0].endswith("; going on without it") and "step 6" in one.logged[0]
    assert one.stats == stats_by_hand(3, 6, 9, 10)
