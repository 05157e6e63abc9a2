"""`python -m degan.worker`: a person's mistake is one line and exit code 2, and leaves no files behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from config import UsageError
from degan.worker.__main__ import main
from degan.worker.number import worker_number
from tests.servers import free_port
from tests.workers import Worker, experiment, wait_for

pytestmark = pytest.mark.timeout(100)

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PROGRESS = re.compile(r"\d\d:\d\d:\d\d ")


def one_line(text: str) -> str:
    """The one line on standard error that is no progress."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line and not PROGRESS.match(line)]
    assert len(lines) == 1 and lines[0].startswith("degan"), text
    return lines[0]


@pytest.fixture
def handlers():
    """Put back the handlers that a worker replaces in this process."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in names}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path, capsys, handlers, monkeypatch):
    """A function that runs a worker in this process; returns the exit code and the text on standard error."""
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.node", lambda: "host")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def workers(tmp_path):
    """A function that starts workers in processes of their own, which are cleared away."""
    incarnations = []

    def start(*words: object, **more) -> Worker:
        incarnations.append(Worker(list(words), tmp_path / f"{len(incarnations)}.log", **more))
        return incarnations[-1]

    yield start
    for incarnation in incarnations:
        incarnation.kill()


def refused(outcome: tuple[int, str], out: Path | None = None) -> str:
    code, text = outcome
    assert code == 2, text
    if out is not None:
        assert not out.exists(), "something was written"
    return one_line(text)


# --- the worker's number -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "environment", "host", "number", "source"),
    [
        ("1", {"RANK": "2"}, "pod-0", 1, "the command line"),
        (None, {"RANK": "2", "SLURM_PROCID": "1"}, "pod-0", 2, "RANK"),
        (None, {"SLURM_PROCID": "1"}, "pod-0", 1, "SLURM_PROCID"),
        (None, {"OMPI_COMM_WORLD_RANK": "1"}, "pod-0", 1, "OMPI_COMM_WORLD_RANK"),
        (None, {"JOB_COMPLETION_INDEX": "2"}, "pod-0", 2, "JOB_COMPLETION_INDEX"),
        (None, {"RANK": ""}, "pod-1.domain-2.org", 1, "pod-1"),
    ],
)
def test_where_the_number_comes_from(given, environment, host, number, source):
    found = worker_number(given, 3, environment, host)
    assert found[0] == number and source in found[1]


@pytest.mark.parametrize("given", ["3", "-1", "one", "1.0", "", "٢", "9" * 5000, "0x1", "1_0"])
def test_a_number_that_is_none(given):
    with pytest.raises(UsageError, match="0 to 2|outside 0..2"):
        worker_number(given, 3, {}, "host")


def test_no_number_anywhere(run, tmp_path):
    text = refused(run("--config", experiment(tmp_path, "none")), tmp_path / "runs")
    assert "which worker is this? give a number from 0 to 0" in text


def test_a_number_outside_the_list(run, tmp_path):
    text = refused(run("2", "--config", experiment(tmp_path, "outside", ["redis://a", "redis://b"])))
    assert "worker 2 (from the command line) is outside 0..1" in text


def test_a_number_from_a_scheduler_is_logged(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    code, text = run("--config", experiment(tmp_path, "logged"), "--dry-run")
    assert code == 0 and "this is worker 0, from the variable SLURM_PROCID" in text


# --- settings, data, device, folders -----------------------------------------------------------


def test_as_a_command_it_refuses_before_torch_is_loaded(tmp_path):
    file = experiment(tmp_path, "command")
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "degan.worker", "0", "--config", file, "--set", "mode.slak=2"],
        capture_output=True, text=True, cwd=ROOT, timeout=50,
    )  # fmt: skip
    lines = ended.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    text = refused((ended.returncode, "\n".join(line for line in lines if line not in imports)), tmp_path / "runs")
    assert "mode.slak: unknown key; did you mean 'slack'?" in text and ended.stdout == ""
    assert not [line for line in imports if line.split("|")[-1].strip() == "torch"]


def local(tmp_path: Path, *overrides: str) -> list:
    """Words for a local run of a few steps."""
    pairs = [word for override in overrides for word in ("--set", override)]
    return ["0", "--config", experiment(tmp_path, "local", mode="local"), "--set", "run.steps=4", *pairs]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=2000"], "worker 0 holds 1437 samples, less than one batch of 2000"),
        (["data.name=mnist", "data.root=nothing"], "nothing"),
        (["data.name=folder", "data.root=nothing"], "nothing"),
        (["data.name=folder"], "data.root"),
        (["data.split={kind: classes, groups: [[77]]}"], "77"),
        (["device=cuda:99"], "device: cuda:99 is not there"),
    ],
)
def test_data_and_device_that_are_not_there(run, tmp_path, overrides, message):
    assert message in refused(run(*local(tmp_path, *overrides)), tmp_path / "runs")


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    text = refused(run(*local(tmp_path), "--out", tmp_path / "taken"))
    assert "cannot write to" in text and "choose another --out" in text
    text = refused(run(*local(tmp_path), "--out", tmp_path / "taken" / "below"))
    assert "cannot write to" in text


def test_peers_as_a_number_are_for_the_launcher(run, tmp_path):
    out = tmp_path / "out"
    text = refused(run(0, "--config", experiment(tmp_path, "counted", 2), "--out", out))
    assert "peers: a number is for the local launcher" in text and "redis://host0:6379" in text
    assert not list(out.glob("w0/checkpoints")) and not (out / "experiment.yaml").exists()


def test_a_dry_run_writes_nothing(run, tmp_path):
    code, text = run(*local(tmp_path), "--out", tmp_path / "out", "--dry-run")
    assert code == 0 and "1,437 samples" in text and "nothing was started" in text
    assert not (tmp_path / "out").exists()
    # A dry run needs no Redis, and finds faults of the settings all the same.
    file = experiment(tmp_path, "dry", [f"redis://127.0.0.1:{free_port()}"])
    assert run(0, "--config", file, "--dry-run")[0] == 0
    refused(run(0, "--config", file, "--dry-run", "--set", "data.batch_size=5000"))
    assert not (tmp_path / "runs").exists()


def test_a_run_and_what_it_leaves(run, tmp_path):
    out = tmp_path / "out"
    code, text = run(*local(tmp_path, "run.snapshot_every=2"), "--out", out)
    assert code == 0 and "finished after 4 steps" in text
    assert {path.name for path in out.iterdir()} >= {"experiment.yaml", "reals.png", "fakes-000004.png", "w0"}
    assert not [path for path in out.rglob(".*")], "no temporary file is left"

    # A second run into the same folder needs --resume.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    text = refused(run(*local(tmp_path), "--out", out))
    assert "holds checkpoints of an earlier run; add --resume latest" in text
    for wrong in ("no-such", out / "w0" / "checkpoints" / "000009", out / "w0", "000004"):
        assert "degan.worker: " in refused(run(*local(tmp_path), "--out", out, "--resume", wrong))
    text = refused(run(*local(tmp_path, "seed=9"), "--out", out, "--resume", "latest"))
    assert "is of another experiment: seed is 3 there and 9 here" in text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before, "a refusal changed something"

    (out / "w0" / "checkpoints" / "000004" / "model.safetensors").write_bytes(b"damaged")
    text = refused(run(*local(tmp_path), "--out", out, "--resume", out / "w0" / "checkpoints" / "000004"))
    assert "damaged" in text
    code, text = run(*local(tmp_path, "run.steps=6"), "--out", out, "--resume", "latest")
    assert code == 0 and "passing over a damaged checkpoint" in text and "after 6 steps" in text


def test_local_training_goes_on_as_if_it_had_never_stopped(run, tmp_path):
    for updates in ("simultaneous", "alternating"):
        words = local(tmp_path, f"mode.updates={updates}", "run.checkpoint_every=2", "data.batch_size=400")
        once, twice = tmp_path / f"once-{updates}", tmp_path / f"twice-{updates}"
        assert run(*words, "--out", once, "--set", "run.steps=6")[0] == 0
        assert run(*words, "--out", twice)[0] == 0
        assert run(*words, "--out", twice, "--set", "run.steps=6", "--resume", "latest")[0] == 0
        name = Path("w0", "checkpoints", "000006", "model.safetensors")
        assert (once / name).read_bytes() == (twice / name).read_bytes()
        steps = [line.split(",")[0] for line in (twice / "w0" / "stats.jsonl").read_text().splitlines()]
        assert steps == [f'{{"step": {step}' for step in range(1, 7)]


# --- the others --------------------------------------------------------------------------------


def test_a_redis_that_cannot_be_reached(run, tmp_path):
    port, out = free_port(), tmp_path / "out"
    file = experiment(tmp_path, "unreachable", [f"redis://:secret@127.0.0.1:{port}", "redis://127.0.0.1:1"])
    text = refused(run(0, "--config", file, "--out", out, "--set", "connect_timeout_s=1"))
    assert f"127.0.0.1:{port}" in text and "refused" in text and "secret" not in text
    assert "after 1 s" in text
    assert not (out / "experiment.yaml").exists()


def test_a_peer_that_does_not_come(run, tmp_path, redis_url):
    file = experiment(tmp_path, "absent", [redis_url] * 3)
    text = refused(run(1, "--config", file, "--out", tmp_path / "out", "--set", "connect_timeout_s=1"))
    assert "worker 1 waited 1 s for worker 0, 2, which did not come" in text
    assert not (tmp_path / "out" / "experiment.yaml").exists()
    # The number is free again, at once.
    refused(run(1, "--config", file, "--out", tmp_path / "out", "--set", "connect_timeout_s=1"))


@pytest.mark.parametrize("same_folder", [True, False], ids=["same folder", "another folder"])
def test_a_number_that_is_started_twice(run, tmp_path, workers, redis_url, same_folder):
    name = f"twice-{same_folder}"
    file, out = experiment(tmp_path, name, [redis_url] * 2), tmp_path / "first"
    first = workers(0, "--config", file, "--out", out)
    first.until("waiting for worker 1")
    second = workers(0, "--config", file, "--out", out if same_folder else tmp_path / "second")
    text = refused((second.end(), second.text))
    assert "worker 0 is already running on " in text and f"as process {first.pid}" in text
    assert (out / "w0" / "pid").read_text() == f"{first.pid}\n"
    other = workers(1, "--config", file, "--out", out)
    assert (first.end(), other.end()) == (0, 0), first.text + other.text


@pytest.mark.parametrize(
    ("same_folder", "is_frozen"),
    [
        pytest.param(True, False, id="same"),
        pytest.param(True, True, id="frozen", marks=pytest.mark.slow),
        pytest.param(False, False, id="another", marks=pytest.mark.slow),
    ],
)
def test_a_number_is_taken_over(tmp_path, workers, redis_url, same_folder, is_frozen):
    name = f"over-{same_folder}-{is_frozen}"
    file, out = experiment(tmp_path, name, [redis_url] * 2), tmp_path / "first"
    words = ("--config", file, "--set", "bus.lease_s=4")
    first = workers(0, *words, "--out", out)
    first.until("waiting for worker 1")
    if is_frozen:
        first.signal(signal.SIGSTOP)
    second = workers(0, *words, "--takeover", "--out", out if same_folder else tmp_path / "second")
    second.until("waiting for worker 1")
    assert (f"taking worker 0 over from process {first.pid}" in second.text) == same_folder
    if not same_folder:
        assert first.end() == 1 and "someone else has taken over worker 0; this process stops" in first.text
    elif is_frozen:
        assert first.end() == -signal.SIGKILL
    else:
        assert first.end() == 0
    other = workers(1, *words, "--out", tmp_path / "other")
    assert (second.end(), other.end()) == (0, 0), second.text + other.text


@pytest.mark.parametrize(
    ("override", "key"),
    [("optimiser.generator_lr=0.1", "optimiser.generator_lr is "), ("model.hidden=9", "model.hidden is ")],
)
def test_workers_with_different_settings(tmp_path, workers, redis_url, override, key):
    file = experiment(tmp_path, f"differ-{len(override)}", [redis_url] * 2)
    both = [
        workers(0, "--config", file, "--out", tmp_path / "out"),
        workers(1, "--config", file, "--out", tmp_path / "out", "--set", override),
    ]
    for incarnation in both:
        text = refused((incarnation.end(), incarnation.text))
        assert key in text and "do not train the same" in text
    assert not (tmp_path / "out" / "experiment.yaml").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_worker_that_waits_for_the_others_can_be_stopped(tmp_path, workers, redis_url, number):
    file = experiment(tmp_path, f"waits-{number.name}", [redis_url] * 2)
    waiting = workers(0, "--config", file, "--out", tmp_path / "out")
    waiting.until("waiting for worker 1")
    waiting.signal(number)
    assert waiting.end() == 0, waiting.text
    assert "stopped before the first step" in waiting.text and "Traceback" not in waiting.text


def test_a_second_signal_ends_it_at_once(tmp_path, workers):
    gate = tmp_path / "never"
    incarnation = workers(*local(tmp_path), "--out", tmp_path / "out", script={2: f"hold:{gate}"})
    wait_for((tmp_path / "out" / "w0" / "stats.jsonl").exists, "the first step")
    wait_for(lambda: '"step": 2' in (tmp_path / "out" / "w0" / "stats.jsonl").read_text(), "step 2")
    incarnation.signal(signal.SIGTERM)
    incarnation.signal(signal.SIGINT)
    assert incarnation.end() < 0
    assert "Traceback" not in incarnation.text
