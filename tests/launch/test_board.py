"""The launcher's table against figures by hand: the columns from the files, and the lines behind each rate."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from degan.runs import facts
from degan.runs.lines import Tail
from degan.runs.records import Records
from degan.runs.records import Worker as Record
from launch import table
from launch.board import Board, Row
from launch.fleet import Worker
from launch.folder import RunFolder

STATS = {"step": 12, "time_s": 9.0, "images": 99, "d_loss": 0.25, "g_loss": 1.5, "step_s": 0.5, "wait_s": 0.125}
STATS |= {"sent_bytes": 3 << 20, "received_bytes": 1536, "predicted_sent_bytes": 2 << 20}
STATS |= {"predicted_received_bytes": 1 << 10, "staleness_mean": 1.25, "staleness_max": 4, "live_peers": 6}
STATS |= {"dropped": {"late": 2, "invalid": 3}, "round": 11, "leader": 0, "cohort": 8, "answered": 7, "late": 2}
STATS |= {"void_rounds": 9, "swaps": 10, "offences": {}, "banned": []}


class StandInWorker:
    def __init__(self, number: int, folder: Path):
        self.number, self.folder = number, folder
        folder.mkdir(parents=True)
        self.stats, self.asked = Tail(folder / "stats.jsonl"), []

    def state(self, seen: bool) -> str:
        self.asked.append(seen)
        return "training" if seen else "starting"

    def write(self, **line) -> None:
        with open(self.folder / "stats.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def run(tmp_path):
    workers = [StandInWorker(number, tmp_path / f"w{number}") for number in (0, 1)]
    return SimpleNamespace(workers=workers, board=Board(RunFolder(tmp_path), workers, 60), path=tmp_path)


def measure(run, worker: int, name: str, value: float | None, step: int = 1) -> None:
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "worker": worker, "metric": name, "value": value}) + "\n")


# --- read values ----------------------------------------------------------------------------------


def rates(row: Row) -> tuple[float | None, float | None]:
    return facts.rate(row.record, facts.RECENT), facts.rate(row.record)


def distances(row: Row) -> list[str]:
    return [column.show(row) for column in table.FINAL if column.title.startswith("FID")]


def test_rates_are_over_the_last_lines_and_over_all(run):
    run.board.update()
    assert [(row.state, *rates(row), row.total) for row in run.board.rows] == [("starting", None, None, 60)] * 2
    run.workers[1].write(step=4, time_s=2.0)
    run.board.update()
    # A single line gives no rate.
    assert (run.board.rows[1].state, *rates(run.board.rows[1])) == ("training", None, None)
    for k in range(1, 13):
        run.workers[1].write(step=4 + k, time_s=2.0 + k * k)
    run.board.update()
    row = run.board.rows[1]
    # The rates are 9 steps in 144 - 9 s for lines 3 to 12 of the last ten, and 12 steps in 144 s from the first line
    # on.
    assert rates(row) == (9 / 135, 12 / 144) and row.record.step == 16
    assert run.board.rows[0].state == "starting" and run.workers[0].asked == [False] * 3


def test_rates_begin_anew_with_another_incarnation(run):
    for step, time_s in ((10, 5.0), (20, 10.0), (30, 15.0)):
        run.workers[0].write(step=step, time_s=time_s)
    run.board.update()
    assert rates(run.board.rows[0]) == (2.0, 2.0)
    # Another incarnation may begin at an earlier step, with a clock that goes on or with a clock of its own.
    for step, time_s in ((20, 16.0), (24, 17.0)):
        run.workers[0].write(step=step, time_s=time_s)
    run.board.update()
    assert rates(run.board.rows[0]) == (4.0, 4.0)
    for step, time_s in ((30, 1.0), (36, 3.0)):
        run.workers[0].write(step=step, time_s=time_s)
    run.board.update()
    assert rates(run.board.rows[0]) == (3.0, 3.0)


def test_distances_are_each_workers_own_and_the_floor_is_common(run):
    measure(run, 1, "fid64_classifier_floor", 3.5)
    measure(run, 1, "fid64_classifier", 90.0)
    run.board.update()
    first, second = run.board.rows
    assert distances(first) == ["-", "-", "3.5"]
    measure(run, 1, "fid64_classifier", 40.0, step=2)
    measure(run, 0, "fid64_classifier", 70.0, step=2)
    measure(run, 0, "fid64_classifier_floor", 4.5, step=3)
    measure(run, 1, "fid64_classifier_floor", 2.5, step=2)
    measure(run, 1, "fid64_inception", 1.0, step=2)
    measure(run, 0, "coverage64_classes", 9.0, step=2)
    measure(run, 0, "fid64_classifier", None, step=3)
    run.board.update()
    assert distances(first) == ["70", "70", "4.5"]
    # The newest floor is common to all workers, as in the report.
    assert distances(second) == ["90", "40", "4.5"]


def test_lines_of_an_earlier_incarnation_count_for_the_distance_only(tmp_path, monkeypatch):
    (tmp_path / "w0").mkdir()
    (tmp_path / "w0" / "stats.jsonl").write_text('{"step": 50, "time_s": 9.0}\n')
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "worker": 0, "metric": "fid64_classifier", "value": 8.0}\n')
    started = []
    process = SimpleNamespace(poll=lambda: None)
    monkeypatch.setattr("launch.processes.start", lambda *words, **more: started.append((words, more)) or process)
    plan = SimpleNamespace(resume=True, worker_command=lambda number, resume: ["run", str(number), str(resume)])
    (tmp_path / "w0" / "log.txt").write_text("the last incarnation\n")
    worker = Worker(plan, 0, tmp_path / "w0")
    board = Board(RunFolder(tmp_path), [worker], 60)
    board.update()
    (row,) = board.rows
    assert (row.state, row.record.lines, distances(row)) == ("starting", [], ["8", "8", "-"])
    ((command, log), more) = started[0]
    assert command == ["run", "0", "True"] and more == {"one_thread": True} and log.name.endswith("w0/log.txt")
    assert worker.by_hand == "run 0 True" and worker.last_lines() == []


@pytest.mark.parametrize(
    ("code", "pid", "states"),
    [
        (None, None, ("starting", "training")),
        (0, None, ("finished", "finished")),
        (0, 9, ("finished", "finished")),
        (1, None, ("died", "died")),
        (-9, 9, ("training", "training")),
    ],
)
def test_the_state_of_a_worker(tmp_path, monkeypatch, code, pid, states):
    started = []
    process = SimpleNamespace(poll=lambda: code)
    monkeypatch.setattr("launch.processes.start", lambda command, *rest, **more: started.append(command) or process)
    monkeypatch.setattr("launch.processes.live_pid", lambda path: pid if path == tmp_path / "pid" else None)
    plan = SimpleNamespace(resume=False, worker_command=lambda number, resume: ["run", str(resume)])
    worker = Worker(plan, 3, tmp_path)
    assert (worker.state(False), worker.state(True)) == states
    assert worker.adopted_pid == (None if code is None else pid) and worker.by_hand == "run True"
    assert started == [["run", "False"]]


# --- shown values ----------------------------------------------------------------------------------


FIDS = {"fid64_classifier": {0: {1: 90.0, 2: 40.0}}, "fid64_classifier_floor": {0: {1: 3.5}}}
ROUNDS = ("round", "leader", "cohort", "answered", "late", "void_rounds", "swaps")
PREDICTED = ("predicted_sent_bytes", "predicted_received_bytes")


def row_of(worker: int = 0, without: tuple[str, ...] = (), measures: dict | None = None, **changes) -> Row:
    """A row of eleven lines: 10 steps in 8 s over all, 9 steps in 3.6 s over the newest ten."""
    record = Record(worker)
    line = {key: value for key, value in (STATS | changes).items() if key not in without}
    for step, ago_s in ((2, 8.0), *((step, 0.4 * (12 - step)) for step in range(3, 12))):
        assert record.add({"step": step, "time_s": line["time_s"] - ago_s})
    assert record.add(line)
    return Row(record, 60, Records({worker: record}, FIDS if measures is None else measures), "training")


def cells(row: Row, columns) -> list[tuple[str, str]]:
    return [(column.title, column.show(row)) for column in table.shown([row], columns)]


def test_each_column_of_the_live_table():
    row = row_of(without=ROUNDS)
    assert cells(row, table.LIVE) == [
        *(("worker", "w0"), ("state", "training"), ("step", "12/60"), ("steps/s", "2.5"), ("d_loss", "0.25")),
        *(("g_loss", "1.5"), ("staleness", "1.2 (max 4)"), ("peers", "6"), ("sent", "3.0 MiB")),
        *(("received", "1.5 KiB"), ("FID", "40")),
    ]
    assert table.line(row) == (
        "w0 training  step 12/60  steps/s 2.5  d_loss 0.25  g_loss 1.5  staleness 1.2 (max 4)  peers 6  "
        "sent 3.0 MiB  received 1.5 KiB  FID 40"
    )


@pytest.mark.parametrize(("other", "counted"), [("swaps", "void 9"), ("void_rounds", "swaps 10")])
def test_each_column_where_somebody_leads(other, counted):
    row = row_of(without=(other,))
    assert table.line(row) == (
        f"w0 training  step 12/60  steps/s 2.5  round 11  leader w0  answered 7/8  {counted}  late 2  d_loss 0.25  "
        "g_loss 1.5  peers 6  sent 3.0 MiB  received 1.5 KiB  FID 40"
    )
    title, _, number = counted.partition(" ")
    assert cells(row, table.FINAL) == [
        *(("worker", "w0"), ("state", "training"), ("step", "12/60"), ("steps/s", "1.25"), (title, number)),
        *(("late", "2"), ("sent", "3.0 MiB"), ("predicted", "2.0 MiB"), ("received", "1.5 KiB")),
        # Late answers have a count of their own: they are no drops.
        *(("predicted", "1.0 KiB"), ("dropped", "3"), ("FID first", "90"), ("FID last", "40"), ("FID floor", "3.5")),
    ]


def test_each_column_of_a_classifier():
    measures = {"accuracy": {0: {1: 0.25, 2: 0.75}}, "loss": {0: {2: 0.5}}}
    row = row_of(without=(*ROUNDS, *PREDICTED, "d_loss", "g_loss", "live_peers"), measures=measures, loss=0.125)
    assert table.line(row) == (
        "w0 training  step 12/60  steps/s 2.5  loss 0.125  staleness 1.2 (max 4)  sent 3.0 MiB  received 1.5 KiB  "
        "accuracy 0.75"
    )
    assert cells(row, table.FINAL)[-3:] == [("dropped", "5"), ("accuracy first", "0.25"), ("accuracy last", "0.75")]


def test_the_summary_without_rounds():
    titles, text = table.aligned([row_of(without=(*ROUNDS, *PREDICTED))]).splitlines()
    assert " ".join(titles.split()) == "worker state step steps/s sent received dropped FID first FID last FID floor"
    assert " ".join(text.split()) == "w0 training 12/60 1.25 3.0 MiB 1.5 KiB 5 90 40 3.5"


def test_only_the_leader_has_counted_the_answers():
    answered = next(column for column in table.LIVE if column.title == "answered")
    assert [answered.show(row_of(worker)) for worker in (0, 1)] == ["7/8", "-"]
    assert answered.show(row_of(1, leader=1, cohort=None)) == "7" and answered.show(row_of(0, answered=None)) == "-"


def test_numbers_and_sizes_as_text():
    values = (None, 0.123456, 12.3456, 123.456, 999.6, 1000, 1234.5, 1e8, 1e9)
    assert [table.decimal(v) for v in values] == [
        *("-", "0.123", "12.3", "123", "1000", "1000", "1234", "100000000", "1e+09")
    ]
    assert [table.whole(v) for v in (None, 2.6, float("nan"), float("inf"))] == ["-", "3", "-", "-"]
    sizes = (0, 1023, 1024, 700 << 10, 1 << 20, 1 << 30, 3 << 40, -2048)
    assert [table.size(v) for v in sizes] == [
        *("0 B", "1023 B", "1.0 KiB", "700.0 KiB", "1.0 MiB", "1.0 GiB", "3.0 TiB", "-2.0 KiB")
    ]


ENDED = ((0, 5, "died"), (11, 60, "finished"))


def test_numbers_stand_to_the_right_and_words_to_the_left():
    rows = [Row(Record(n, [{"step": step}]), 60, Records(), state) for n, step, state in ENDED]
    columns = [table.WORKER, table.STATE, table.STEP]
    assert table.aligned(rows, columns).splitlines() == [
        "worker  state      step",
        "w0      died       5/60",
        "w11     finished  60/60",
    ]


def test_a_line_is_printed_when_a_state_changes_or_a_step_is_due(run, monkeypatch):
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(table.time, "monotonic", lambda: clock.now_s)
    said: list[str] = []
    shown = table.PlainDisplay(run.board, SimpleNamespace(show=said.append), 5.0)

    def after(seconds: float) -> list[str]:
        clock.now_s += seconds
        said.clear()
        shown.update()
        return list(said)

    assert after(0) == ["w0 starting  step 0/60", "w1 starting  step 0/60"] and after(9) == []
    run.workers[1].write(step=1)
    assert after(1) == ["w1 training  step 1/60"]
    run.workers[1].write(step=2)
    assert after(4.5) == [] and after(0.5) == ["w1 training  step 2/60"] and after(50) == []
    run.workers[1].write(step=3)
    assert after(0) == ["w1 training  step 3/60"]


# --- a classifier ---------------------------------------------------------------------------------
