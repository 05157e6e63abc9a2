"""Modes with a leader under faults, in real processes: successors, returns, and equal models of all workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from degan.runs.lines import read_lines
from tests.degan.worker.test_resume import Run, ends, same
from tests.workers import wait_for

pytestmark = pytest.mark.timeout(120)

STEPS = 12
FEDERATED = (
    *("mode.name=federated", "mode.local_steps=2", "mode.fraction=1.0", "bus.lease_s=3", "bus.finish_timeout_s=20"),
    *("run.steps=12", "mode.deadline.floor_s=5"),
)
# Without a death the lease is long, so that no lease expires on a busy machine.
CALM = (*FEDERATED, "bus.lease_s=20")
SLOWLY = (*FEDERATED, "mode.local_steps=40")


@pytest.fixture
def make(tmp_path, redis_url):
    runs = []

    def new(settings: tuple[str, ...], workers: int = 3) -> Run:
        runs.append(Run(tmp_path, redis_url, settings, workers))
        return runs[-1]

    yield new
    for run in runs:
        run.clear()


def last(run: Run, number: int) -> dict:
    return read_lines(run.out / f"w{number}" / "stats.jsonl")[-1]


def hold_the_same(run: Run, numbers, step: int = STEPS) -> bool:
    first, *rest = (run.weights(number, step) for number in numbers)
    return all(same(first, other) for other in rest)


def test_when_the_leader_is_killed_the_next_one_goes_on(make):
    run = make(FEDERATED)
    incarnations = [run.start(0, script={6: "kill"}), run.start(1), run.start(2)]
    assert incarnations[0].end() == -signal.SIGKILL
    ends(incarnations[1:])
    assert "this worker leads from round" in incarnations[1].text
    assert hold_the_same(run, (1, 2))
    for number in (1, 2):
        line = last(run, number)
        assert line["step"] == STEPS and line["leader"] == 1 and line["void_rounds"] <= 1
    # The lowest live worker takes over the pictures of the gone one.
    assert "worker 0 is gone" in incarnations[1].text


@pytest.mark.slow
def test_a_leader_killed_in_the_middle_of_a_round_costs_that_round_only(make):
    run = make(SLOWLY)
    incarnations = [run.start(number) for number in range(3)]
    wait_for(lambda: run.step(0) >= 4, "some rounds")
    os.kill(incarnations[0].pid, signal.SIGKILL)
    ends(incarnations[1:])
    assert hold_the_same(run, (1, 2))
    line = last(run, 1)
    assert line["leader"] == 1 and line["void_rounds"] <= 1


@pytest.mark.slow
def test_a_second_succession(make):
    run = make((*FEDERATED, "run.steps=14", "mode.leaders=[0, 2, 1]"), workers=4)
    incarnations = [run.start(0, script={4: "kill"}), run.start(1), run.start(2, script={8: "kill"}), run.start(3)]
    ends([incarnations[1], incarnations[3]])
    assert "leads from round" in incarnations[2].text and "leads from round" in incarnations[1].text
    assert hold_the_same(run, (1, 3), 14)
    assert last(run, 3)["leader"] == 1


@pytest.mark.slow
def test_a_member_that_dies_is_missing_from_its_round_only_and_returns(make):
    run = make((*SLOWLY, "run.steps=40", "run.checkpoint_every=5"))
    incarnations = [run.start(0), run.start(1), run.start(2, script={6: "kill"})]
    assert incarnations[2].end() == -signal.SIGKILL
    wait_for(lambda: run.step(0) >= 8, "the others to go on")
    back = run.start(2, "--resume", "latest")
    back.until("joins at round")
    ends([incarnations[0], incarnations[1], back])
    assert hold_the_same(run, (0, 1, 2), 40)
    assert last(run, 0)["void_rounds"] == 0


@pytest.mark.slow
def test_a_leader_that_returns_follows_the_one_that_leads(make):
    run = make((*SLOWLY, "run.steps=40", "run.checkpoint_every=5"))
    incarnations = [run.start(0, script={6: "kill"}), run.start(1), run.start(2)]
    assert incarnations[0].end() == -signal.SIGKILL
    # The worker returns at once, before its lease expires and the others notice.
    back = run.start(0, "--resume", "latest")
    back.until("joins at round")
    ends([back, incarnations[1], incarnations[2]])
    assert hold_the_same(run, (0, 1, 2), 40)
    assert last(run, 0)["leader"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [7, STEPS - 1])
def test_the_only_leader_returns_and_leads_on(make, killed_after):
    run = make((*FEDERATED, "mode.leaders=1", "run.checkpoint_every=3"))
    incarnations = [run.start(0, script={killed_after: "kill"}), run.start(1), run.start(2)]
    assert incarnations[0].end() == -signal.SIGKILL
    back = run.start(0, "--resume", "latest")
    ends([back, incarnations[1], incarnations[2]])
    assert "nobody leads any more" in back.text
    assert hold_the_same(run, (0, 1, 2))
    # No member had to join again.
    assert not any("joining them again" in incarnation.text for incarnation in incarnations[1:])
    assert f"{killed_after - killed_after % 3:06d}" in [
        path.name for path in (run.out / "w0" / "checkpoints").iterdir()
    ], "its own checkpoints are still there"


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [(), ("mode.sampling=balanced", "mode.weighting=kl", "mode.cohort=2")],
    ids=["plain", "balanced"],
)
def test_a_run_that_is_resumed_ends_like_the_undisturbed_one(make, extra):
    settings = (*CALM, *extra)
    plain, interrupted = make(settings), make(settings)
    ends([plain.start(number) for number in range(3)])
    incarnations = [interrupted.start(0, script={6: "usr2"}), interrupted.start(1), interrupted.start(2)]
    ends(incarnations)
    stopped = [interrupted.step(number) for number in range(3)]
    assert len(set(stopped)) == 1 and stopped[0] < STEPS, stopped
    assert hold_the_same(interrupted, (0, 1, 2), stopped[0])
    ends([interrupted.start(number, "--resume", "latest") for number in range(3)])
    for number in range(3):
        assert same(plain.weights(number), interrupted.weights(number))


@pytest.mark.slow
def test_a_leader_frozen_for_longer_than_its_lease_comes_back_as_a_follower(make):
    run = make((*SLOWLY, "run.steps=40", "run.checkpoint_every=5"))
    incarnations = [run.start(number) for number in range(3)]
    wait_for(lambda: run.step(0) >= 6, "some rounds")
    incarnations[0].signal(signal.SIGSTOP)
    try:
        wait_for(lambda: "leads from round" in incarnations[1].text, "another leader")
        wait_for(lambda: run.step(1) >= 10, "the others to go on")
    finally:
        incarnations[0].signal(signal.SIGCONT)
    ends(incarnations)
    assert "joining them again" in incarnations[0].text
    assert hold_the_same(run, (0, 1, 2), 40)
    assert last(run, 0)["leader"] == last(run, 2)["leader"] == 1


def test_a_worker_that_is_told_to_leave_is_not_missed(make):
    run = make(CALM)
    incarnations = [run.start(0, script={5: "term"}), run.start(1), run.start(2)]
    ends(incarnations)
    assert run.step(0) < STEPS and run.step(1) == run.step(2) == STEPS
    assert last(run, 1)["leader"] == 1
    assert hold_the_same(run, (1, 2))


def test_only_one_worker_measures_and_draws(make):
    run = make((*CALM, "run.evaluate_every=6", "run.evaluate_samples=64", "run.snapshot_every=6"))
    ends([run.start(number) for number in range(3)])
    lines = read_lines(run.out / "metrics.jsonl")
    assert {line["worker"] for line in lines} == {0}
    assert {line["step"] for line in lines} == {0, 6, 12}
    drawn = sorted(path.relative_to(run.out) for path in run.out.glob("w*/fakes-*.png"))
    assert drawn == [Path("w0") / f"fakes-{step:06d}.png" for step in (0, 6, 12)]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["fake_url", "redis_url"])
def test_either_server_will_do(tmp_path, request, server):
    run = Run(tmp_path, request.getfixturevalue(server), CALM, 3)
    try:
        ends([run.start(number) for number in range(3)])
        assert hold_the_same(run, (0, 1, 2))
    finally:
        run.clear()
