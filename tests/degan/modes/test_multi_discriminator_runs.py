"""MD-GAN in processes: runs with stopped, killed and resumed workers, among them the leader."""

from __future__ import annotations

import signal

import pytest

from degan.runs.lines import read_lines
from tests.degan.worker.test_resume import Run, ends, same
from tests.workers import wait_for

pytestmark = pytest.mark.timeout(120)

STEPS = 12
# An epoch of 479 digits in batches of 8 is 60 rounds.
SWAPS = ("mode.name=multi_discriminator", "mode.swap_every=0.05", "mode.state_every=2", "mode.batches=2")
EXACTLY = (*SWAPS, "mode.codec=raw", "mode.feedback_codec=raw", "mode.discriminator_steps=2")


@pytest.fixture
def make(tmp_path, redis_url):
    runs = []

    def new(*settings: str, workers: int = 3) -> Run:
        runs.append(Run(tmp_path, redis_url, settings, workers))
        return runs[-1]

    yield new
    for run in runs:
        run.clear()


def shared(weights: dict) -> dict:
    """The weights that all workers hold alike after a sync point."""
    return {name: array for name, array in weights.items() if not name.startswith("discriminator.")}


def lines_of(run: Run, worker: int) -> list[dict]:
    return read_lines(run.out / f"w{worker}" / "stats.jsonl")


def last(run: Run, worker: int) -> dict:
    return lines_of(run, worker)[-1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, redis_url):
    """An undisturbed run of three workers."""
    run = Run(tmp_path_factory.mktemp("undisturbed"), redis_url, EXACTLY, workers=3)
    try:
        ends([run.start(n) for n in range(3)])
    finally:
        run.clear()
    return run


def check(run: Run, expected: Run) -> None:
    for worker in range(3):
        assert same(run.weights(worker), expected.weights(worker)), f"worker {worker} has other weights"
        assert last(run, worker)["swaps"] == 4


def test_a_run_is_the_same_every_time(undisturbed, tmp_path, fake_url):
    """The second run is over fakeredis."""
    run = Run(tmp_path, fake_url, EXACTLY, workers=3)
    try:
        ends([run.start(n) for n in range(3)])
    finally:
        run.clear()
    check(run, undisturbed)


def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_been(make, undisturbed):
    run = make(*EXACTLY)
    ends([run.start(n, script={5: "usr2"} if n == 1 else None) for n in range(3)])
    assert last(run, 0)["step"] == last(run, 2)["step"] < STEPS
    ends([run.start(n, "--resume", "latest") for n in range(3)])
    check(run, undisturbed)


@pytest.mark.slow
def test_a_run_that_was_killed_as_a_whole_goes_on_from_its_checkpoints(make, undisturbed):
    run = make(*EXACTLY)
    incarnations = [run.start(n, script={7: "kill"}) for n in range(3)]
    assert [incarnation.end() for incarnation in incarnations] == [-signal.SIGKILL] * 3
    incarnations = [run.start(n, "--resume", "latest") for n in range(3)]
    ends(incarnations)
    assert all("begins at round 4" in incarnation.text for incarnation in incarnations)
    check(run, undisturbed)


def test_when_the_leader_is_killed_the_next_one_leads(make):
    run = make(*SWAPS, "bus.lease_s=3")
    others = [run.start(1), run.start(2)]
    assert run.start(0, script={6: "kill"}).end() == -signal.SIGKILL
    ends(others)
    assert "worker 0 is gone: its lease has expired" in others[0].text
    assert "this worker leads from round 7 on (term 2)" in others[0].text
    assert same(shared(run.weights(1)), shared(run.weights(2)))
    for worker in (1, 2):
        lines = lines_of(run, worker)
        assert [line["step"] for line in lines if "d_loss" in line] == list(range(1, STEPS + 1)), "no round is lost"
        assert lines[-1]["leader"] == 1 and lines[-1]["cohort"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_returns_takes_part_again(make, tmp_path, victim):
    """The worker, the leader or another, gets the newest generator and the discriminator of one that went on."""
    settings = (*SWAPS, "bus.lease_s=4", "run.steps=400", "run.checkpoint_every=40")
    run, gate, joined = make(*settings), tmp_path / "go on", tmp_path / "joined"
    leader = 1 if victim == 0 else 0
    # A round takes milliseconds: at full speed the run could be over before the worker has joined again.
    script = {90: f"hold:{gate}"} | dict.fromkeys(range(91, 400), f"slow:{joined}")
    others = {n: run.start(n, script=script if n == leader else None) for n in range(3) if n != victim}
    assert run.start(victim, script={60: "kill"}).end() == -signal.SIGKILL
    wait_for(lambda: run.step(leader) >= 90, "the others to go on alone")
    again = run.start(victim, "--resume", "latest")
    others[leader].until(f"worker {victim} was started again")
    gate.touch()
    again.until("joins at round")
    wait_for(lambda: any("d_loss" in line and line["step"] > 90 for line in lines_of(run, victim)), "it to take part")
    joined.touch()
    ends([*others.values(), again])
    assert "begins with the discriminator of worker" in again.text
    for worker in others:
        assert same(shared(run.weights(victim, 400)), shared(run.weights(worker, 400)))
        assert last(run, worker)["leader"] == last(run, victim)["leader"] == leader
    assert "d_loss" in last(run, victim) and last(run, leader)["cohort"] == 3
