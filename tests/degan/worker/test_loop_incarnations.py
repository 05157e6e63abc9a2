"""The loop over several incarnations: runs that are resumed, stopped together, left, or joined."""

from __future__ import annotations

import signal

import pytest

import config
from config import UsageError
from degan.worker.signals import Signals
from tests.degan.worker.test_loop import metrics_by_hand, stats_by_hand, values_of
from tests.loops import Live, lines_of

QUIET = {"evaluate_every": 0, "snapshot_every": 0, "checkpoint_every": 3}


@pytest.fixture
def live(tmp_path, monkeypatch):
    def make(**words) -> Live:
        return Live(tmp_path / "run", monkeypatch, **words)

    return make


@pytest.fixture
def ended(monkeypatch):
    """The signals by which the process would have ended, each with its handler at that time."""
    found: list[tuple] = []
    monkeypatch.setattr(signal, "raise_signal", lambda number: found.append((number, signal.getsignal(number))))
    return found


@pytest.fixture
def signals(ended):
    """Signals that are installed in this process; the former handlers are put back."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in names}
    found = Signals()
    found.install()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


# --- resumed runs -------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_time_images_and_lines(live):
    first = live(steps=6, evaluate_every=0)
    first.run()
    assert [line["step"] for line in first.stats] == [3, 6]
    one = live(resume_from=(6,))
    assert one.run() == 10
    assert one.mode.begun == ([6], {"sent": 614}) and one.mode.calls[0] == "loaded ({}, {'sent': 614})"
    # The bytes are those of this incarnation: 100 a step, and 7 a sync point.
    sent = {9: 307, 10: 414}
    assert one.stats[2:] == [{**line, "sent_bytes": sent[line["step"]]} for line in stats_by_hand(9, 10)]
    assert [line["step"] for line in one.stats] == [3, 6, 9, 10]
    assert one.metrics == metrics_by_hand(0, {8: (64, 119.0), 10: (80, 97.0)})
    assert values_of(one, 10) == {
        "drawn": 80,
        "shade": 103,
        "mode": {"sent": 414},
        "trained_s": 27.5,
        "score": 97.0,
    }
    assert one.begun_steps == [7, 8, 9, 10]


def test_lines_after_the_step_of_an_older_checkpoint_are_forgotten(live):
    live(**QUIET).run()
    # The file has lines that were cut off, in the middle and at the end.
    stats = live().home / "stats.jsonl"
    stats.write_text(stats.read_text().replace('{"step": 6,', '{"step": 4\n{"step": 6,') + '{"step": 99')
    one, seen = live(resume_from=(6,), steps=8, **QUIET), []
    assert one.checkpoints.steps() == [6, 9, 10]
    # The lines are forgotten before a step is repeated.
    one.at = {7: lambda: seen.append((one.checkpoints.steps(), [line["step"] for line in one.stats]))}
    one.run()
    assert seen == [([6], [3, 6])]
    assert one.checkpoints.steps() == [6, 8] and [line["step"] for line in one.stats] == [3, 6, 8]
    assert one.stats[-1]["time_s"] == 18.0 and one.stats[-1]["step_s"] == 3.75 and one.stats[-1]["images"] == 64
    # Losses and waiting are those of the steps 7 and 8 alone.
    assert (one.stats[-1]["d_loss"], one.stats[-1]["wait_s"], one.stats[-1]["exchange_s"]) == (7.5, 1.875, 0.9375)


def test_the_mode_chooses_among_the_checkpoints(live):
    """The loop offers the newest checkpoint with its values; the common one of all workers may be older."""
    live(**QUIET).run()
    one = live(resume_from=(6, 9, 10), steps=11, **QUIET)
    one.mode.begins_at = 9
    assert one.run() == 11
    assert one.mode.begun == ([6, 9, 10], {"sent": 1028}) and one.mode.calls[0] == "loaded ({}, {'sent': 921})"
    assert one.begun_steps == [10, 11] and one.stats[-1]["time_s"] == 22.5 + 5.0 + 5.5


def test_a_joiner_begins_where_the_others_are(live):
    """The joiner's state comes from a peer: no checkpoint is loaded, and its own clock begins."""
    one = live(**QUIET)
    one.mode.begins_at = 7
    one.run()
    assert one.begun_steps == [8, 9, 10]
    assert [(line["step"], line["time_s"], line["step_s"]) for line in one.stats] == [(9, 8.5, 4.25), (10, 13.5, 5.0)]
    assert [line["d_loss"] for line in one.stats] == [8.5, 10.0]


def test_a_checkpoint_of_another_experiment_is_refused_when_it_is_loaded(live):
    live(**QUIET).run()
    one = live(resume_from=(9,), **QUIET)
    one.setup.settings = config.load("smoke", ["run.steps=10", "seed=9"])
    with pytest.raises(UsageError, match="000009 is of another experiment: seed is 1 there and 9 here"):
        one.run()
    # The files stay: nothing has begun.
    assert one.checkpoints.steps() == [6, 9, 10] and len(one.stats) == 4 and not one.signals.has_begun
    assert config.load(one.folder / "experiment.yaml").seed == 1


def test_a_run_that_is_over_is_shown_and_saved_again(live):
    live(**QUIET).run()
    one = live(resume_from=(10,))
    assert one.run() == 10
    assert one.mode.calls == ["loaded ({}, {'sent': 1028})", "finish", "state"]
    assert one.metrics == metrics_by_hand(0, {10: (80, 98.0)}) and values_of(one, 10)["trained_s"] == 27.5
    assert [line["step"] for line in one.stats] == [3, 6, 9, 10]


# --- stopping -----------------------------------------------------------------------------------


def test_all_stop_together_at_the_step_that_they_agree_on(live):
    one = live()
    one.at = {3: lambda: setattr(one.signals, "is_together", True)}
    assert one.run() == 5
    # The loop asks once, after the running step; the workers synchronise at the common step, which is not shown.
    assert one.mode.calls[2:] == [
        *("step 3", "ask 3", "step 4 sync", "synchronise 4", "step 5 sync", "synchronise 5", "leave together", "state")
    ]
    assert values_of(one, 5) == {"drawn": 40, "shade": 51, "mode": {"sent": 514}, "trained_s": 7.5}
    assert one.logged == ["stopped after step 5, together with the others; go on with --resume latest"]
    assert one.stats == stats_by_hand(3) and "fakes-000005.png" not in one.shades(one.home)


def test_a_step_that_all_stop_after_is_synchronised_though_nothing_is_due(live):
    one = live(**QUIET)
    one.at = {2: lambda: setattr(one.signals, "is_together", True)}
    one.mode.stops_after_asking = 3
    assert one.run() == 5
    assert one.mode.calls[2:] == [
        *(
            "ask 2",
            "step 3 sync",
            "synchronise 3",
            "state",
            "step 4",
            "step 5",
            "synchronise 5",
            "leave together",
            "state",
        )
    ]


def test_another_one_asked_and_all_stop(live):
    one = live(**QUIET)
    one.mode.stop_at = 2
    assert one.run() == 2 and one.checkpoints.steps() == [2]
    assert one.mode.calls == ["step 1", "step 2", "synchronise 2", "leave together", "state"]


def test_a_worker_that_leaves_alone_saves_after_its_step(live):
    one = live(**QUIET)
    one.at = {2: lambda: setattr(one.signals, "is_leaving", True)}
    assert one.run() == 2
    assert one.mode.calls == ["step 1", "step 2", "leave alone", "state"] and one.checkpoints.steps() == [2]
    assert one.logged == ["stopped after step 2, leaving the others; go on with --resume latest"]


def test_a_worker_that_was_told_to_leave_leaves_alone_even_at_the_common_step(live):
    one = live(**QUIET)
    one.mode.stop_at = 2
    one.at = {2: lambda: setattr(one.signals, "is_leaving", True)}
    assert one.run() == 2 and "leave alone" in one.mode.calls


def test_the_last_step_is_an_end_and_no_stop(live):
    one = live(**QUIET)
    one.at = {10: lambda: setattr(one.signals, "is_leaving", True)}
    one.mode.stop_at = 10
    assert one.run() == 10
    assert one.mode.calls[-2:] == ["finish", "state"] and one.logged == ["finished after 10 steps and 27.5 s"]


def test_a_joiner_of_a_run_that_stops_at_this_very_step_stops_with_it(live):
    one = live()
    one.mode.begins_at, one.mode.stop_at = 7, 7
    assert one.run() == 7
    assert one.mode.calls == ["leave together", "state"] and one.checkpoints.steps() == [7] and one.stats == []


def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(live):
    one = live(**QUIET)
    (one.home / "checkpoints").write_text("in the way")
    one.mode.stop_at = 2
    with pytest.raises(UsageError, match="cannot save the checkpoint of step 2"):
        one.run()


# --- signals ------------------------------------------------------------------------------------


def is_interrupted(number: int) -> bool:
    """Whether the installed handler of a signal interrupts a wait; the test calls it as the system does."""
    handler = signal.getsignal(number)
    assert callable(handler), "nobody listens"
    try:
        handler(number, None)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_leave_interrupts_only_before_the_first_step(signals, number):
    assert is_interrupted(number)
    assert signals.is_leaving and not signals.is_together
    signals.is_leaving, signals.has_begun = False, True
    assert not is_interrupted(number)
    assert signals.is_leaving and not signals.is_together


def test_a_request_to_stop_together_interrupts_nothing(signals):
    assert not is_interrupted(signal.SIGUSR2) and not is_interrupted(signal.SIGUSR2)
    assert signals.is_together and not signals.is_leaving


def test_a_second_request_to_leave_is_the_systems_own(signals, ended):
    signals.has_begun = True
    assert not is_interrupted(signal.SIGTERM) and ended == []
    is_interrupted(signal.SIGINT)
    assert ended == [(signal.SIGINT, signal.SIG_DFL)]


# --- the journal --------------------------------------------------------------------------------


def test_lines_of_other_workers_stay_when_a_worker_forgets(live):
    for worker in (0, 1):
        live(worker=worker, **{**QUIET, "evaluate_every": 5}).run()
    before = lines_of(live().folder / "metrics.jsonl")
    live(worker=1, resume_from=(6,), **{**QUIET, "evaluate_every": 5}).run()
    after = lines_of(live().folder / "metrics.jsonl")
    # The common file only grows: readers take the last line of a step.
    assert after[: len(before)] == before and [line["step"] for line in after[len(before) :]] == [10] * 3
    assert [line["step"] for line in lines_of(live().folder / "w0" / "stats.jsonl")] == [3, 6, 9, 10]
    assert [line["step"] for line in lines_of(live().folder / "w1" / "stats.jsonl")] == [3, 6, 9, 10]
