"""Disturbed runs: killed, stopped, cut off. With slack 0 the weights must be those of an undisturbed run."""

from __future__ import annotations

import itertools
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from degan.runs.lines import read_lines
from tests.workers import Worker, experiment, wait_for

pytestmark = pytest.mark.timeout(120)

STEPS = 12
SYNC = ("mode.exchange=gradients", "mode.slack=0", "mode.codec=raw")
SIMULTANEOUS = (*SYNC, "mode.parts=1")
NORMALISED = (*SYNC, "mode.parts=2", "model.name=dcgan", "model.width=4", "model.image_size=32")
# A checkpoint has to hold the error feedback of a lossy codec and the parts that have not left.
LOSSY = ("mode.exchange=gradients", "mode.slack=0", "mode.codec=int8", "mode.parts=3")
# Every worker applies the published gradients of all.
PUBLISHED = ("mode.exchange=gradients", "mode.slack=0", "mode.codec=sign", "mode.own=delayed")
PUBLISHED_LATER = (*PUBLISHED, "mode.slack=2", "mode.codec=int8", "mode.parts=2")
# The delay is the bound, so that runs with parameters repeat under any bound.
PARAMETERS = ("mode.exchange=parameters", "mode.slack=2", "mode.codec=int8", "mode.parts=3")
ALTERNATING = ("mode.exchange=parameters", "mode.slack=0", "mode.codec=raw", "mode.parts=3", "mode.updates=alternating")
ALTERNATING_LATER = ("mode.exchange=parameters", "mode.slack=1", "mode.codec=topk", "mode.updates=alternating")

_count = itertools.count()


class Run:
    """Two workers of one run over one Redis; each incarnation of a worker is a process of its own."""

    def __init__(self, folder: Path, url: str, settings: tuple[str, ...], workers: int = 2):
        self.name = f"run-{next(_count)}-{folder.name}"[:60]
        self.out = folder / self.name
        self.file = experiment(folder, self.name, [url] * workers)
        self.settings = settings
        self.incarnations: list[Worker] = []

    def start(self, number: int, *words: str, script: dict[int, str] | None = None) -> Worker:
        log = self.file.with_name(f"{self.name}-{number}-{len(self.incarnations)}.log")
        overrides = [word for setting in self.settings for word in ("--set", setting)]
        incarnation = Worker([number, "--config", self.file, "--out", self.out, *overrides, *words], log, script)
        self.incarnations.append(incarnation)
        return incarnation

    def clear(self) -> None:
        for incarnation in self.incarnations:
            incarnation.kill()

    def step(self, number: int) -> int:
        """The newest step in a worker's stats."""
        path = self.out / f"w{number}" / "stats.jsonl"
        lines = read_lines(path) if path.exists() else []
        return lines[-1]["step"] if lines else 0

    def weights(self, number: int, step: int = STEPS) -> dict:
        return load_file(self.out / f"w{number}" / "checkpoints" / f"{step:06d}" / "model.safetensors")


@pytest.fixture
def make(tmp_path, redis_url):
    runs = []

    def new(settings: tuple[str, ...], workers: int = 2) -> Run:
        runs.append(Run(tmp_path, redis_url, settings, workers))
        return runs[-1]

    yield new
    for run in runs:
        run.clear()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def ends(incarnations: list[Worker], timeout_s: float = 60.0) -> None:
    for incarnation in incarnations:
        code = incarnation.end(timeout_s)
        assert code == 0, f"exit {code}:\n{incarnation.text}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, redis_url):
    """The weights of both workers after an undisturbed run, by settings; made once each."""
    known: dict[tuple, list[dict]] = {}

    def weights(settings: tuple[str, ...]) -> list[dict]:
        if settings not in known:
            run = Run(tmp_path_factory.mktemp("undisturbed"), redis_url, settings)
            try:
                ends([run.start(0), run.start(1)])
            finally:
                run.clear()
            known[settings] = [run.weights(0), run.weights(1)]
        return known[settings]

    return weights


def check(run: Run, expected: list[dict]) -> None:
    for number in (0, 1):
        assert same(run.weights(number), expected[number]), f"worker {number} has other weights"


# A stop is a synchronous step at any place; only with slack 0 every other step is synchronous, too.
def kind(name: str, settings: tuple[str, ...], is_slow: bool = True):
    """One kind of run; a kind that is much like a quick one is a slow test."""
    return pytest.param(settings, id=name, marks=pytest.mark.slow if is_slow else ())


both = pytest.mark.parametrize(
    "settings",
    [
        kind("simultaneous", SIMULTANEOUS, is_slow=False),
        kind("alternating", ALTERNATING),
        kind("lossy", LOSSY),
        kind("published", PUBLISHED),
    ],
)
any_bound = pytest.mark.parametrize(
    "settings",
    [
        kind("simultaneous", SIMULTANEOUS, is_slow=False),
        kind("alternating", ALTERNATING),
        kind("lossy", LOSSY),
        kind("published", PUBLISHED_LATER),
        kind("parameters", PARAMETERS, is_slow=False),
        kind("alternating-later", ALTERNATING_LATER),
    ],
)


@pytest.mark.parametrize(
    "settings",
    [kind("mlp", SIMULTANEOUS), kind("alternating", ALTERNATING), kind("dcgan", NORMALISED, is_slow=False)],
)
def test_the_same_seed_gives_the_same_weights(make, undisturbed, settings):
    run = make(settings)
    ends([run.start(0), run.start(1)])
    check(run, undisturbed(settings))


def networks(weights: dict) -> dict:
    """The weights without the moving average, which is each worker's own."""
    return {name: array for name, array in weights.items() if not name.startswith("ema.")}


def test_both_workers_end_alike_with_one_part(undisturbed):
    """With one part and slack 0 every worker applies the same gradients in every step."""
    first, second = undisturbed(SIMULTANEOUS)
    assert same(first, second)


@pytest.mark.parametrize(
    "settings", [kind("parameters", PARAMETERS, is_slow=False), kind("alternating-later", ALTERNATING_LATER)]
)
def test_both_workers_end_alike_with_parameters(undisturbed, settings):
    first, second = undisturbed(settings)
    assert same(networks(first), networks(second))


@pytest.mark.parametrize("victim", [0, 1])
@any_bound
def test_a_killed_worker_goes_on_from_its_checkpoint(make, undisturbed, settings, victim):
    run = make(settings)
    survivor = run.start(1 - victim)
    assert run.start(victim, script={6: "kill"}).end() == -signal.SIGKILL
    again = run.start(victim, "--resume", "latest")
    ends([survivor, again])
    assert "replays at step 4" in again.text
    check(run, undisturbed(settings))
    lines = read_lines(run.out / f"w{victim}" / "stats.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "each step once"


def test_a_worker_killed_while_saving_goes_on_from_the_checkpoint_before(make, undisturbed):
    run = make(SIMULTANEOUS)
    survivor = run.start(0)
    assert run.start(1, script={8: "tear"}).end() == -signal.SIGKILL
    checkpoints = run.out / "w1" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir() if not path.name.startswith(".")) == ["000004"]
    again = run.start(1, "--resume", "latest")
    ends([survivor, again])
    assert "replays at step 4" in again.text
    check(run, undisturbed(SIMULTANEOUS))
    assert not list(checkpoints.glob(".*")), "the remains of the killed one are cleared away"


# Every snapshot averages the running statistics, so each of these steps is a sync point.
SYNC_POINTS = (*NORMALISED, "run.snapshot_every=1", "run.checkpoint_every=8", "bus.stall_timeout_s=20")


def test_replay_past_many_sync_points(make):
    """The restarted worker reads the survivor's statistics of all sync points of the interval again."""
    run = make((*SYNC_POINTS, "run.steps=18"))
    survivor = run.start(0)
    assert run.start(1, script={15: "kill"}).end() == -signal.SIGKILL
    again = run.start(1, "--resume", "latest")
    ends([survivor, again])
    assert "replays at step 8" in again.text


def test_a_worker_killed_before_its_first_checkpoint_replays_from_the_beginning(make, undisturbed):
    run = make(SIMULTANEOUS)
    survivor = run.start(0)
    assert run.start(1, script={3: "kill"}).end() == -signal.SIGKILL
    again = run.start(1, "--resume", "latest")
    ends([survivor, again])
    assert "nothing to resume" in again.text and "replays at step 0" in again.text
    expected = undisturbed(SIMULTANEOUS)
    assert same(run.weights(0), expected[0]) and same(run.weights(1), expected[1])


def test_a_worker_joins_at_a_sync_point(make, tmp_path):
    """A worker that is killed before its first checkpoint gets the survivor's state of a step that is a sync point."""
    run, gate = make((*SYNC_POINTS, "bus.lease_s=3")), tmp_path / "go on"
    survivor = run.start(0, script={6: f"hold:{gate}"})
    assert run.start(1, script={3: "kill"}).end() == -signal.SIGKILL
    survivor.until("worker 1 is dropped from the bound")
    wait_for(lambda: run.step(0) >= 6, "the survivor to go on alone")
    again = run.start(1, "--resume", "latest")
    again.until("asking worker 0 for its state")
    survivor.until("worker 1 was started again")
    gate.touch()
    ends([survivor, again])
    assert "nothing to resume" in again.text and "joins at step" in again.text


@pytest.mark.parametrize(
    "settings",
    [
        kind("simultaneous", SIMULTANEOUS),
        kind("lossy", LOSSY),
        kind("published", PUBLISHED_LATER),
        kind("parameters", PARAMETERS, is_slow=False),
        kind("alternating-later", ALTERNATING_LATER),
        kind("parameters-auto", (*PARAMETERS, "mode.parts=auto")),
    ],
)
def test_a_worker_that_comes_back_after_its_lease_joins_the_survivor(make, tmp_path, settings):
    run, gate = make((*settings, "bus.lease_s=3", "run.steps=400", "run.checkpoint_every=100")), tmp_path / "go on"
    survivor = run.start(0, script={150: f"hold:{gate}"})
    assert run.start(1, script={120: "kill"}).end() == -signal.SIGKILL
    survivor.until("worker 1 is dropped from the bound")
    wait_for(lambda: run.step(0) >= 150, "the survivor to go on alone")
    again = run.start(1, "--resume", "latest")
    again.until("asking worker 0 for its state")
    survivor.until("worker 1 was started again")
    gate.touch()
    ends([survivor, again])
    assert "joins at step" in again.text
    assert "worker 1 takes part from round" in survivor.text
    if settings is not LOSSY:
        assert same(networks(run.weights(0, 400)), networks(run.weights(1, 400)))
    for number in (0, 1):
        # A joiner that took the wrong rounds would see references that differ.
        assert not read_lines(run.out / f"w{number}" / "stats.jsonl")[-1]["dropped"]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param(SIMULTANEOUS, 1500, id="simultaneous", marks=pytest.mark.slow),
        pytest.param((*ALTERNATING, "mode.parts=1"), 1500, id="alternating", marks=pytest.mark.slow),
        pytest.param((*NORMALISED, "mode.parts=1"), 400, id="normalised", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(400)
def test_of_three_one_joins_again_while_the_others_go_on(make, settings, steps):
    """Nobody waits for the joiner, and from its first round on all three apply the same."""
    every = ("bus.lease_s=3", f"run.steps={steps}", "run.checkpoint_every=50")
    run = make((*settings, *every), workers=3)
    others = [run.start(0), run.start(2)]
    assert run.start(1, script={60: "kill"}).end() == -signal.SIGKILL
    others[0].until("worker 1 is dropped from the bound")
    again = run.start(1, "--resume", "latest")
    # Thousands of synchronous rounds take a busy machine more than a minute.
    ends([*others, again], timeout_s=300)
    assert "joins at step" in again.text
    assert same(run.weights(0, steps), run.weights(1, steps)) and same(run.weights(0, steps), run.weights(2, steps))


def test_a_frozen_worker_finds_its_lease_gone_and_joins_again(make, tmp_path):
    run, gate = make((*SIMULTANEOUS, "bus.lease_s=3", "run.steps=400", "run.checkpoint_every=100")), tmp_path / "go on"
    survivor, frozen = run.start(0, script={150: f"hold:{gate}"}), run.start(1)
    wait_for(lambda: run.step(1) >= 20, "the run to get going")
    frozen.signal(signal.SIGSTOP)
    survivor.until("worker 1 is dropped from the bound")
    wait_for(lambda: run.step(0) >= 150, "the survivor to go on alone")
    frozen.signal(signal.SIGCONT)
    frozen.until("joining them again")
    frozen.until("asking worker 0 for its state")
    survivor.until("worker 1 was started again")
    gate.touch()
    ends([survivor, frozen])
    assert same(run.weights(0, 400), run.weights(1, 400))


def test_a_terminated_worker_saves_and_the_other_finishes(make):
    run = make(SIMULTANEOUS)
    ends([run.start(0), run.start(1, script={6: "term"})])
    assert (run.out / "w1" / "checkpoints" / "000006" / "manifest.json").is_file()
    assert not (run.out / "w1" / "checkpoints" / f"{STEPS:06d}").exists()
    assert "leaving the others; go on with --resume latest" in run.incarnations[1].text
    assert run.step(0) == STEPS and (run.out / "w0" / "checkpoints" / f"{STEPS:06d}").is_dir()


@pytest.mark.parametrize("who", [(0, 1), (1,)], ids=["both asked", "one asked"])
@both
def test_stopped_together_they_go_on_as_if_nothing_had_been(make, undisturbed, settings, who):
    run = make(settings)
    ends([run.start(n, script={5: "usr2"} if n in who else None) for n in (0, 1)])
    saved = [sorted(path.name for path in (run.out / f"w{n}" / "checkpoints").iterdir()) for n in (0, 1)]
    assert saved[0] == saved[1] and saved[0][-1] > "000004", "both after the same step"
    assert run.step(0) == run.step(1) == int(saved[0][-1]) < STEPS
    ends([run.start(n, "--resume", "latest") for n in (0, 1)])
    assert all(f"begins at step {int(saved[0][-1])}" in incarnation.text for incarnation in run.incarnations[2:])
    check(run, undisturbed(settings))


@any_bound
def test_a_run_that_was_killed_as_a_whole_goes_on_over_the_same_redis(make, undisturbed, settings):
    """One worker dies before it has saved step 8, the other perhaps later: they go on from a step that both have."""
    run = make(settings)
    incarnations = [run.start(0, script={8: "kill"}), run.start(1)]
    assert incarnations[0].end() == -signal.SIGKILL
    # The messages of worker 0 in step 8 may have left it or not.
    wait_for(lambda: run.step(1) >= 7, "worker 1 to wait for worker 0")
    incarnations[1].kill()
    incarnations = [run.start(n, "--resume", "latest") for n in (0, 1)]
    ends(incarnations)
    assert all("begins at step 4" in incarnation.text for incarnation in incarnations)
    check(run, undisturbed(settings))


def test_a_finished_run_is_resumed_and_made_longer(make):
    run = make(SIMULTANEOUS)
    ends([run.start(0), run.start(1)])
    run.settings = (*SIMULTANEOUS, "run.steps=16")
    ends([run.start(n, "--resume", "latest") for n in (0, 1)])
    assert run.step(0) == run.step(1) == 16
    assert same(run.weights(0, 16), run.weights(1, 16))
    assert "steps: 16" in (run.out / "experiment.yaml").read_text()


def test_checkpoints_that_have_no_step_in_common_are_refused(make):
    """Worker 1 has lost its checkpoints and starts afresh."""
    run = make(SIMULTANEOUS)
    ends([run.start(0, script={5: "usr2"}), run.start(1)])
    before = sorted((run.out / "w0" / "checkpoints").rglob("*"))
    shutil.rmtree(run.out / "w1")
    incarnations = [run.start(0, "--resume", "latest"), run.start(1, "--resume", "latest")]
    for incarnation in incarnations:
        assert incarnation.end() == 2, incarnation.text
        assert "start all with --resume and a step that all have" in incarnation.text
        assert "Traceback" not in incarnation.text
    assert sorted((run.out / "w0" / "checkpoints").rglob("*")) == before
