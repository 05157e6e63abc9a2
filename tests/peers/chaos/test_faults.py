"""The script of faults: its meaning, the items that are due at each step, and the faults of a worker on itself."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from degan.worker.faults import FaultInjector
from peers.chaos.attacks import NAMES
from peers.chaos.faults import BEGIN, HOOKS, SAVING, WIRE_HOOKS, Faults
from peers.chaos.faulty_bus import FaultyBus
from peers.errors import SetupError
from tests.fleets import make_layout, memory_buses
from tests.workers import Worker, experiment, wait_for

RANDOM = "random:seed={}:every=20:actions=kill+stop+restart+redis_kill+torn:until=400"


def texts(faults) -> list[str]:
    return [str(fault) for fault in faults]


EXAMPLES = (
    "w1@step12:kill",
    "w2@step20.after_publish:stop:8s",
    "redis0@step30:restart",
    "redis0@step30:restart:2.5s",
    "redis1@step30:kill:5s",
    "redis1@step30:back",
    "redis1@step3:stop:13s",
    "redis2@step3:full:1000000",
    "redis2@step3:full:1000000:20s",
    "w3:slow:10",
    "w3@step4:slow:1.5",
    "w0@step9:nan",
    "w0@step9.between_chunks:usr1",
    "w0@step9.saving:kill",
    "w0@step9.saving:torn",
    "w0:disk_full",
    *(f"w7:attack:{name}" for name in NAMES),
)


@pytest.mark.parametrize("item", EXAMPLES)
def test_an_item_and_back(item):
    (fault,) = Faults.parse(item).faults
    assert str(fault) == item
    assert Faults.parse(f" {item} ,").faults == (fault,)


def test_the_parts_of_an_item():
    one, two, three = Faults.parse("w2@step20.after_publish:stop:8s, redis1@step3:full:1000:2s, w3:slow:10").faults
    assert (one.is_redis, one.number, one.step, one.hook, one.action) == (False, 2, 20, "after_publish", "stop")
    assert one.seconds == 8.0 and two.size_bytes == 1000 and two.seconds == 2.0
    assert three.factor == 10.0 and three.seconds is None and three.step is None


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("w1", "WHO[@stepN[.HOOK]]:ACTION"),
        ("w1@12:kill", "WHO[@stepN[.HOOK]]:ACTION"),
        ("x1@step12:kill", "WHO[@stepN[.HOOK]]:ACTION"),
        ("w1:kill", "a step, as in w1@step12:kill"),
        ("w1@step1:explode", "one of the actions kill, term"),
        ("redis1@step1:nan", "one of the actions restart, kill"),
        ("w1@step1.lunch:kill", "one of the hooks before_publish"),
        ("redis1@step1.saving:kill", "no hook"),
        ("w1@step1.saving:nan", "no hook"),
        ("w1@step1.before_apply:torn", "torn at the hook saving"),
        ("w1@step1:stop", "seconds, as in stop:8s"),
        ("w1@step1:stop:8", "seconds, as in stop:8s"),
        ("w1@step1:kill:8s", "no argument"),
        ("w1:slow:0.5", "a factor of at least 1"),
        ("w1:slow:nan", "a factor of at least 1"),
        ("w1@step3:attack:nan", "no step"),
        ("w1:attack:rude", "one of the attacks sign_flip"),
        ("redis1@step1:full:0", "bytes, as in full:1000000"),
        ("redis1@step1:restart:soon", "nothing or seconds"),
        ("w4@step1:kill", "a number from 0 to 3"),
        ("random:seed=1", "random:seed=N:every=STEPS"),
        ("random:seed=1:every=0:actions=kill:until=9", "every= of at least 1"),
        ("random:seed=1:every=1:actions=sing:until=9", "actions of kill, term"),
    ],
)
def test_an_unreadable_item_is_one_line_that_names_it(item, expected):
    with pytest.raises(SetupError) as caught:
        Faults.parse(f"w1@step2:kill, {item}", workers=4)
    text = str(caught.value)
    assert repr(item) in text and expected in text and "\n" not in text


@given(st.text(alphabet="w1redis@step.:nakl,0 _=+", max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        faults = Faults.parse(text, 3)
    except SetupError:
        return
    assert Faults.parse(str(faults)) == faults


def test_a_random_schedule_is_the_same_for_the_same_seed():
    first, again, other = (Faults.parse(RANDOM.format(seed), 4) for seed in (7, 7, 8))
    assert first == again and first != other
    assert Faults.parse(str(first), 4) == first, "what it stands for is a script itself"
    assert [fault.step for fault in first.faults] == list(range(20, 401, 20))
    assert {fault.number for fault in first.faults} <= set(range(4))
    # The schedule is written down here, so that a schedule of today can be replayed next year.
    assert texts(first.faults[:4]) == WRITTEN
    with pytest.raises(SetupError, match="a number of workers"):
        Faults.parse(RANDOM.format(7))


WRITTEN = [
    "w2@step20.before_apply:kill",
    "redis1@step40:restart:7s",
    "w0@step60.before_publish:kill",
    "w0@step80.saving:torn",
]


def test_a_due_item_is_due_once():
    faults = Faults.parse(
        "w1@step3:kill, w1@step3.before_publish:term, w1@step5:kill, w2@step3:kill, redis1@step3:back"
    )
    plan = faults.for_worker(1)
    assert texts(plan.due(3)) == ["w1@step3:kill"] and plan.due(3) == []
    assert texts(plan.due(3, "before_publish")) == ["w1@step3.before_publish:term"]
    # A worker that missed a step is not hit for it later; otherwise each new start would hit it again.
    assert plan.due(6) == []
    redis = faults.for_redis(1)
    assert texts(redis.due(9)) == ["redis1@step3:back"] and redis.due(9) == []


def test_conditions_that_hold_and_items_that_wait_for_a_saving():
    plan = Faults.parse("w1:nan, w1@step4:slow:3, w1@step4.saving:torn").for_worker(1)
    assert texts(plan.due(1)) == ["w1:nan"] and texts(plan.due(6)) == ["w1:nan", "w1@step4:slow:3"]
    assert texts(plan.due(7)) == ["w1:nan"], "slow lasts by itself"
    assert plan.due(3, SAVING) == []
    assert texts(plan.due(8, SAVING)) == ["w1@step4.saving:torn"]
    assert plan.due(9, SAVING) == []


# --- around a bus ------------------------------------------------------------------------------


def entries(round: int, count: int):
    from peers.codecs.exact import RAW_BYTES
    from peers.types import Slice
    from peers.wire.encode import encode_vector

    size = count * RAW_BYTES // 4
    layout = make_layout(size)
    return list(encode_vector(layout, "part", round, Slice(0, size), np.zeros(size, np.float32)))


@pytest.mark.parametrize("hook", WIRE_HOOKS)
def test_the_hooks_around_a_publication(hook):
    """The chunks of the message in the stream when the hook is called."""
    bus, reader = memory_buses(2)
    reader.follow(0, bus.incarnation)
    seen = []
    plan = Faults.parse(f"w0@step2.{hook}:kill").for_worker(0, WIRE_HOOKS)
    faulty = FaultyBus(bus, plan, lambda fault: seen.append((str(fault), len(reader.receive(0, 0.0)))))
    faulty.configure(100, 10**6)
    sizes = []
    for round in (1, 2, 3):
        message = entries(round, 3)
        sizes.append(len(message))
        faulty.publish(message)
        if round == 1:
            assert len(reader.receive(0, 0.0)) == len(message)
    assert sizes[1] > 2
    there = {"before_publish": 0, "between_chunks": 1, "after_publish": sizes[1]}[hook]
    assert seen == [(f"w0@step2.{hook}:kill", there)]
    assert len(reader.receive(0, 0.0)) == sizes[1] - there + sizes[2], "all of it comes, once"
    assert faulty.sequence == bus.sequence == sum(sizes)
    faulty.close()


# --- a worker and itself -----------------------------------------------------------------------


def test_a_slow_worker_sleeps_in_proportion_to_its_computing(monkeypatch):
    slept, clock = [], iter([1.0, 2.0, 3.5, 3.5, 7.0])
    monkeypatch.setattr("degan.worker.faults.time.sleep", slept.append)
    injector = FaultInjector(Faults.parse("w0@step2:slow:11").for_worker(0), now_s=lambda: next(clock))
    injector.begin(1)
    injector.begin(2)
    assert slept == [], "what came before was not slow"
    injector.begin(3)
    assert slept == [15.0], "ten times the 1.5 s of step 2"


def test_a_worker_that_is_slow_from_the_beginning_may_become_slower():
    plan = Faults.parse("w0:slow:2, w0@step3:slow:20").for_worker(0)
    assert [texts(plan.due(step)) for step in (1, 2, 3, 4)] == [["w0:slow:2"], [], ["w0@step3:slow:20"], []]


class Pair:
    """The calls of a mode to a pair."""

    def __init__(self):
        self.called = []

    def gradients(self, section, real):
        return np.ones(3, np.float32), {"g_loss": 1.0}

    def apply(self, section, gradient):
        self.called.append("apply")

    def load_parameters(self, section, values):
        self.called.append("load")


@pytest.mark.parametrize(("exchange", "at"), [("parameters", ["apply"]), ("gradients", [])])
def test_received_terms_are_applied_after_the_hook_and_a_gradient_is_poisoned_in_its_step(exchange, at):
    seen, pair = [], Pair()
    settings = config.load("smoke", [f"mode.exchange={exchange}"])
    plan = Faults.parse("w0@step2:nan, w0@step3.before_apply:kill").for_worker(0)
    injector = FaultInjector(plan, act=lambda fault: seen.append(list(pair.called)))
    injector.hold(pair, settings)
    for step in (1, 2, 3):
        injector.begin(step)
        pair.called.clear()
        gradient, _ = pair.gradients((0, 3), None)
        assert np.isnan(gradient).all() == (step == 2)
        pair.apply((0, 3), gradient)
        pair.load_parameters((0, 3), gradient)
        assert pair.called == ["apply", "load"]
    assert seen == [at]


def test_every_hook_has_its_place():
    assert set(HOOKS) == {*WIRE_HOOKS, "before_apply", SAVING} and BEGIN not in HOOKS


@pytest.fixture
def workers(tmp_path):
    incarnations = []

    def start(script: str, *overrides: str, words=()) -> Worker:
        name = f"alone-{len(incarnations)}"
        pairs = [word for override in overrides for word in ("--set", override)]
        file = experiment(tmp_path, name, mode="local")
        out = tmp_path / "run"
        line = ["0", "--config", file, "--set", "name=alone", "--out", out, *pairs, *words]
        incarnations.append(Worker(line, tmp_path / f"{name}.log", DEGAN_FAULTS=script))
        return incarnations[-1]

    yield start
    for incarnation in incarnations:
        incarnation.kill()


def test_a_worker_logs_its_faults_in_advance_and_injects_them(workers, tmp_path):
    incarnation = workers("w0@step6:kill, redis0@step1:restart")
    assert incarnation.end() == -signal.SIGKILL
    assert "this worker injects faults into itself, as DEGAN_FAULTS says: w0@step6:kill\n" in incarnation.text
    steps = (tmp_path / "run" / "w0" / "stats.jsonl").read_text().count("\n")
    assert steps == 5, "at the beginning of step 6"


def test_a_script_that_cannot_be_read_ends_the_worker_with_one_line(workers, tmp_path):
    incarnation = workers("w0@step6:explode")
    assert incarnation.end() == 2
    assert incarnation.text.startswith("degan.worker: DEGAN_FAULTS: 'w0@step6:explode': expected one of the actions")
    assert incarnation.text.count("\n") == 1 and not (tmp_path / "run").exists()


def test_without_the_variable_nothing_is_logged(workers):
    incarnation = workers("")
    assert incarnation.end() == 0 and "DEGAN_FAULTS" not in incarnation.text


def test_a_stopped_worker_is_woken_from_outside(workers, tmp_path):
    incarnation = workers("w0@step3:stop:0.3s")
    wait_for(lambda: state(incarnation.pid) == "T", "it to be stopped")
    assert incarnation.end() == 0 and "finished after 12 steps" in incarnation.text


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("script", "is_there"),
    [("w0@step5.saving:torn, w0@step10:kill", True), ("w0@step5.saving:kill", False)],
    ids=["torn", "killed while saving"],
)
def test_a_checkpoint_that_was_not_saved_whole_is_passed_over(workers, tmp_path, script, is_there):
    assert workers(script).end() == -signal.SIGKILL
    assert (tmp_path / "run" / "w0" / "checkpoints" / "000008").exists() == is_there
    again = workers("", words=("--resume", "latest"))
    assert again.end() == 0, again.text
    assert ("passing over a damaged checkpoint" in again.text) == is_there
    assert "finished after 12 steps" in again.text
