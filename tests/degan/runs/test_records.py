"""Records: the words of older folders, lists as values, and equal records of a followed and a read run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degan.runs import facts, words
from degan.runs.folder import read_run
from degan.runs.lines import Tail
from degan.runs.records import Records, Worker
from launch.board import Board
from launch.folder import RunFolder


def test_old_keys_are_read_as_todays():
    line = {"step": 1, "strikes": {"2": 3}, "muted": [2], "dropped": {"muted": 4, "stale": 1}}
    before = json.dumps(line)
    assert words.in_todays_words(line) == {
        "step": 1,
        "offences": {"2": 3},
        "banned": [2],
        "dropped": {"banned": 4, "stale": 1},
    }
    assert json.dumps(line) == before, "the line itself stays"
    # In a line with both words today's word counts.
    assert words.in_todays_words({"strikes": 1, "offences": 2}) == {"offences": 2}


def test_a_record_knows_only_todays_words():
    worker = Worker(0)
    for step, gone in ((1, []), (2, [2])):
        assert worker.add({"step": step, "strikes": {"2": 5 * step, "3": 0}, "muted": gone, "dropped": {"muted": step}})
    assert facts.offences(worker) == {"2": 10} and facts.banned(worker) == ["2"] and worker.dropped == {"banned": 2}
    assert Records({0: worker}).keys == {"step", "time_s", "offences", "banned", "dropped"}


@pytest.mark.parametrize("line", [{}, {"step": None}, {"step": -1}, {"step": 1.5}, {"step": "1"}, {"step": True}])
def test_a_line_without_a_step_is_refused(line):
    records = Records({0: Worker(0)})
    assert not records.workers[0].add(line) and not records.add_metric({**line, "worker": 0, "metric": "accuracy"})
    assert records == Records({0: Worker(0)})


def test_a_list_is_a_value_too():
    records = Records()
    for step, values in ((2, [0.5, None, "x"]), (1, [1.0])):
        line = {"step": step, "worker": 3, "metric": "accuracy_by_class", "value": values}
        assert records.add_metric(line)
    assert facts.by_class(records) == {3: (2, [0.5, None, None])} and records.measures == {}
    assert facts.measured(records) == []


def test_dropped_messages_without_late_answers_that_are_counted_apart():
    worker = Worker(0)
    worker.add({"step": 1, "dropped": {"late": 2, "stale": 3}})
    assert facts.dropped(worker) == 5
    worker.add({"step": 2, "dropped": {"late": 2, "stale": 3}, "late": 2})
    assert facts.dropped(worker) == 3


LINE = st.fixed_dictionaries(
    {"step": st.integers(1, 20), "time_s": st.floats(0, 50), "sent_bytes": st.integers(0, 99) | st.none()},
    optional={"strikes": st.just({"1": 2}), "dropped": st.dictionaries(st.sampled_from("ab"), st.integers(0, 9))},
)


@given(lines=st.lists(LINE, max_size=12), at=st.integers(0, 12))
def test_a_run_that_is_followed_has_the_records_of_one_that_is_read_whole(lines, at, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    (path / "w0").mkdir()
    (path / "w0" / "stats.jsonl").touch()
    worker = SimpleNamespace(number=0, stats=Tail(path / "w0" / "stats.jsonl"), state=lambda seen: str(seen))
    board = Board(RunFolder(path), [worker], 20)
    for some in (lines[:at], lines[at:]):
        for file, rows in (
            (path / "w0" / "stats.jsonl", some),
            (path / "metrics.jsonl", [{"worker": 0, "metric": "fid5_x", "value": 1.0, **line} for line in some]),
        ):
            with open(file, "a") as more:
                more.writelines(json.dumps(row) + "\n" for row in rows)
        board.update()
    whole = read_run(path)
    assert whole.workers == board.records.workers and whole.measures == board.records.measures
    assert board.rows[0].state == str(bool(lines)) and whole.unreadable == {}
