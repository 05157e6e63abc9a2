"""The incarnations of a worker's process: their ends, the exit code, and the begin of the next one."""

from __future__ import annotations

import errno
import signal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import config
from config import UsageError
from degan import modes
from degan.artifacts.checkpoints import MANIFEST, MODEL
from degan.learners.gan_pair import GanPair
from degan.worker import __main__ as worker_main
from degan.worker import loop, setup
from degan.worker.faults import LOADS, OWN, FaultInjector, script
from degan.worker.number import worker_number
from degan.worker.signals import Signals
from peers.chaos.faults import Faults
from peers.errors import AbsentError, BusError, LeaseExpiredError, SetupError
from tests.leaves import plain
from tests.workers import experiment


class Incarnations:
    """Stand-ins for the parts of an incarnation; `ends` has the end of each incarnation, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, *ends: Any):
        self.ends, self.built, self.loops, self.closed, self.setup = list(ends), [], [], 0, []
        patch.setattr(setup.Setup, "build", self.build_setup)
        patch.setattr(modes, "build", self.build_mode)
        patch.setattr(loop, "Loop", self.make_loop)
        patch.setattr(Signals, "install", lambda signals: self.built.append("installed"))
        self.signals: Signals | None = None

    def build_setup(self, settings: config.Experiment, number: int) -> Any:
        self.setup.append((settings.name, number))
        pair = SimpleNamespace(size=5, device="cpu")
        return SimpleNamespace(
            settings=settings, worker=number, learner=pair, shard=[0] * 9, facts="facts", peer_info="peer_info"
        )

    def build_mode(self, context) -> Any:
        self.built.append((context.worker, context.facts, context.peer_info, context.may_take_over))
        return self

    def make_loop(self, made, mode, out, checkpoints, steps, signals, log, *hooks) -> Any:
        self.loops.append((out, checkpoints.folder, steps, len(hooks)))
        self.signals, self.mode = signals, mode
        assert (out / f"w{made.worker}" / "pid").read_text().strip().isdigit(), "the folder is ours by now"
        return self

    def run(self) -> None:
        end = self.ends.pop(0)
        if callable(end) and not isinstance(end, type):
            end = end(self)
        if end is not None:
            raise end

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def begin(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("DEGAN_FAULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    file = str(experiment(tmp_path, "incarnations", 3))

    def call(*ends: Any, words: tuple[str, ...] = ()) -> tuple[int, Incarnations, str]:
        incarnations = Incarnations(monkeypatch, *ends)
        code = worker_main.main(["1", "--config", file, "--out", str(tmp_path / "out"), *words])
        return code, incarnations, capsys.readouterr().err

    return call


def test_an_incarnation_that_ends_well(begin, tmp_path):
    code, incarnations, _ = begin(None)
    assert (code, incarnations.closed) == (0, 1)
    assert incarnations.setup == [("incarnations", 1)] and incarnations.built == [
        "installed",
        (1, "facts", "peer_info", False),
    ]
    assert incarnations.loops == [(tmp_path / "out", tmp_path / "out" / "w1" / "checkpoints", [], 0)]
    # A worker that has written nothing leaves no folder.
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code", "ending"),
    [
        (BusError("the wire is cut"), 1, "degan.worker: worker 1 failed: the wire is cut\n"),
        (AbsentError("nobody came"), 2, "degan.worker: nobody came\n"),
        (SetupError("no Redis"), 2, "degan.worker: no Redis\n"),
        (UsageError("fix it"), 2, "degan.worker: fix it\n"),
        (KeyboardInterrupt(), 0, " stopped before the first step\n"),
        (ZeroDivisionError("by zero"), 1, "this is a defect, please report the lines above\n"),
    ],
)
def test_the_failures_of_an_incarnation(begin, error, code, ending):
    found, incarnations, text = begin(error)
    assert (found, incarnations.closed) == (code, 1) and text.endswith(ending)
    assert ("Traceback" in text) == isinstance(error, ZeroDivisionError)


def test_a_worker_that_was_away_for_too_long_begins_another_incarnation_with_its_checkpoint(begin, tmp_path):
    """The next incarnation takes over nobody, and may be interrupted while it waits for the others."""
    seen = []

    def expire(incarnations: Incarnations) -> Exception:
        incarnations.signals.has_begun = True
        return LeaseExpiredError("the lease is gone")

    def look(incarnations: Incarnations) -> None:
        seen.append(incarnations.signals.has_begun)

    code, incarnations, text = begin(expire, look, words=("--takeover",))
    assert code == 0 and incarnations.closed == 2 and seen == [False]
    assert [built[3] for built in incarnations.built if built != "installed"] == [True, False]
    assert "the lease is gone; the others went on, joining them again" in text
    assert "nothing to resume in" in text, "it looks for the newest of its checkpoints"


def test_a_worker_that_is_to_leave_does_not_begin_another_incarnation(begin):
    def leave(incarnations: Incarnations) -> Exception:
        incarnations.signals.is_leaving = True
        return LeaseExpiredError("the lease is gone")

    code, incarnations, text = begin(leave)
    assert (code, incarnations.closed) == (0, 1) and "stopping, as this worker was told to" in text


def test_a_dry_run_begins_nothing(begin, tmp_path):
    code, incarnations, text = begin(words=("--dry-run",))
    assert code == 0 and "worker 1 of 3: 9 samples, 5 values, device cpu; nothing was started" in text
    assert incarnations.built == incarnations.loops == [] and not (tmp_path / "out").exists()


def test_a_worker_with_faults_logs_them_and_has_its_hooks(begin, monkeypatch):
    monkeypatch.setenv("DEGAN_FAULTS", "w1@step6:kill, w0@step1:nan")
    held = []
    monkeypatch.setattr(FaultInjector, "hold", lambda injector, pair, settings: held.append((pair.size, settings.name)))
    _, incarnations, text = begin(None)
    assert "injects faults into itself, as DEGAN_FAULTS says: w1@step6:kill\n" in text and held == [(5, "incarnations")]
    assert incarnations.loops[0][3] == 1
    with pytest.raises(UsageError, match="number from 0 to 2"):
        script({"DEGAN_FAULTS": "w3@step6:kill"}, config.build(plain("seed", peers=3)))
    assert script({}, config.build(plain("seed"))).faults == ()


# --- signals -----------------------------------------------------------------------------------


@pytest.fixture
def ends(monkeypatch):
    """The signals with which the process would have ended itself."""
    found = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: found.append((number, handler)))
    monkeypatch.setattr(signal, "raise_signal", lambda number: found.append((number, "raised")))
    return found


def test_the_meaning_of_each_signal(ends):
    signals = Signals()
    signals.install()
    found = {number: handler.__name__ for number, handler in ends}
    leave, stop = signals._leave.__name__, signals._stop.__name__
    alone = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    assert found == {**dict.fromkeys(alone, leave), signal.SIGUSR2: stop}


def test_a_request_to_leave_interrupts_any_wait_before_the_first_step(ends):
    signals = Signals()
    with pytest.raises(KeyboardInterrupt):
        signals._leave(signal.SIGTERM, None)
    assert signals.is_leaving and not signals.is_together and ends == []


def test_the_first_request_lets_the_step_end_and_the_second_does_not(ends):
    signals = Signals()
    signals.has_begun = True
    signals._leave(signal.SIGTERM, None)
    assert (signals.is_leaving, signals.is_together, ends) == (True, False, [])
    signals._leave(signal.SIGINT, None)
    assert ends == [(signal.SIGINT, signal.SIG_DFL), (signal.SIGINT, "raised")]


def test_a_request_to_stop_together_is_no_request_to_leave(ends):
    signals = Signals()
    signals._stop(signal.SIGUSR2, None)
    assert (signals.is_leaving, signals.is_together, ends) == (False, True, [])


# --- the worker's number -----------------------------------------------------------------------


def test_the_first_source_of_the_number_counts():
    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
    values = {name: str(number) for number, name in enumerate(names)}
    for number, name in enumerate(names):
        assert worker_number(None, 4, values, "pod-3") == (number, f"the variable {name}")
        del values[name]
    assert worker_number(None, 4, values, "pod-3.zone-1.org") == (3, "the host name pod-3.zone-1.org")
    assert worker_number(" 3 ", 4, {"RANK": "1"}, "pod-0") == (3, "the command line")
    for host in ("pod3", "pod-3x", "3", "host", "pod-"):
        with pytest.raises(UsageError, match="give a number from 0 to 3"):
            worker_number(None, 4, {}, host)
    with pytest.raises(UsageError, match=r"worker 4 \(from the command line\) is outside 0\.\.3; `peers` lists 4"):
        worker_number("4", 4, {}, "host")


# --- faults in a worker ------------------------------------------------------------------------


def injector(text: str, seen: list[str]) -> FaultInjector:
    return FaultInjector(Faults.parse(text).for_worker(0), lambda fault: seen.append(fault.action))


def test_faults_that_are_due_when_a_step_begins():
    seen: list[str] = []
    made = injector("w0@step2:kill, w0@step3:term, w0:attack:nan, w0@step3.before_apply:int", seen)
    for step, expected in ((1, []), (2, ["kill"]), (3, ["kill", "term"])):
        made.begin(step)
        assert seen == expected, "an attack is where a message is made"


def test_a_full_disk_and_a_torn_file(tmp_path):
    seen: list[str] = []
    made = injector("w0@step2:disk_full, w0@step4:torn, w0@step6.saving:kill", seen)
    model, manifest = tmp_path / MODEL, tmp_path / MANIFEST
    for path in (model, manifest):
        path.write_bytes(b"x" * 100)

    def save(step: int) -> tuple[int, int]:
        made.begin(step)
        for path in (model, manifest):
            made.saving(path)
        return model.stat().st_size, manifest.stat().st_size

    assert save(1) == (100, 100)
    with pytest.raises(OSError) as caught:
        save(2)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(model)
    assert save(3) == (100, 100)
    assert save(5) == (50, 100), "once the manifest has the sum of the whole file"
    assert save(5) == (50, 100), "only once"
    save(6)
    assert seen == ["kill"]


class AnyPair:
    """A pair whose methods, all that a mode may call, note their calls."""

    def __init__(self):
        self.called: list[str] = []


def noting(name: str):
    def called(pair: AnyPair, *arguments: Any, **named: Any) -> Any:
        pair.called.append(name)
        return (np.ones(3, np.float32), 1.0) if name in OWN else named or arguments

    return called


for _name in (*LOADS, *OWN, "apply"):
    setattr(AnyPair, _name, noting(_name))


@pytest.mark.parametrize(
    ("mode", "held"),
    [
        ({"name": "partial_exchange", "exchange": "gradients"}, {"apply"}),
        ({"name": "partial_exchange", "exchange": "parameters"}, set(LOADS)),
        ({"name": "federated"}, set(LOADS)),
        ({"name": "multi_discriminator"}, set(LOADS)),
    ],
)
def test_the_place_where_received_values_are_applied(mode, held):
    assert set(LOADS) == {"load_parameters", "load", "generator_gradient"}
    assert all(hasattr(GanPair, name) for name in LOADS)
    for name in (*LOADS, "apply"):
        pair = AnyPair()
        # The calls before the fault was due.
        seen: list[list[str]] = []
        made = FaultInjector(Faults.parse("w0@step1.before_apply:kill").for_worker(0), noted_before(pair, seen))
        made.hold(pair, config.build(plain("seed", mode=mode)))
        made.begin(1)
        assert getattr(pair, name)(4, 5, key=6) == {"key": 6} and getattr(pair, name)(4) == (4,)
        assert pair.called == [name, name]
        assert seen == ([[]] if name in held else []), "before, and once"


def noted_before(pair: AnyPair, seen: list[list[str]]):
    return lambda fault: seen.append(list(pair.called))


@pytest.mark.parametrize("name", ["gradients", "feedback", "discriminator_gradient"])
def test_a_poisoned_step_sends_no_number(name):
    pair = AnyPair()
    made = FaultInjector(Faults.parse("w0@step2:nan").for_worker(0))
    made.hold(pair, config.build(plain("seed")))
    for step, expected in ((1, False), (2, True), (3, False)):
        made.begin(step)
        gradient, loss = getattr(pair, name)(0, 0)
        assert (np.isnan(gradient).all(), np.isnan(gradient).any(), loss) == (expected, expected, 1.0)
