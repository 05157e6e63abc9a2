"""Checkpoints are whole or not there, damaged ones are refused, and training goes on from them bit for bit."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch

import config
from config import UsageError
from degan.artifacts.checkpoints import (
    MANIFEST,
    MODEL,
    OPTIMISER,
    Checkpoint,
    Checkpoints,
    check_same_experiment,
    read,
    read_manifest,
)
from degan.modes.local import Local
from degan.worker.setup import Setup
from tests.learner_views import counters_of, tensors_of, vectors_of

AGREED = {"seed": 1, "optimiser.betas": [0.5, 0.999], "run.steps": 10, "bus.lease_s": 30.0}


def make(step: int) -> Checkpoint:
    random = torch.Generator().manual_seed(step)
    model = {"generator.w": torch.randn(3, 4, generator=random), "ema.count": torch.tensor(step)}
    optimiser = {"random.global": torch.arange(5, dtype=torch.uint8), "mode.window": torch.empty(0)}
    values = {"counters": {"applied": step}, "data": {"epoch": 1}, "mode": {"followed": {"1": [4, "é", 9]}}}
    return Checkpoint(step, model, optimiser, values, AGREED)


@pytest.fixture
def logged():
    return []


@pytest.fixture
def checkpoints(tmp_path, logged):
    return Checkpoints(tmp_path / "checkpoints", 3, logged.append)


def flip(path, where: float) -> None:
    """Change one bit of a file, `where` of the way through it."""
    raw = bytearray(path.read_bytes())
    raw[int(where * (len(raw) - 1))] ^= 1
    path.write_bytes(raw)


def test_a_saved_checkpoint_is_read_back(checkpoints):
    saved = make(7)
    folder = checkpoints.save(saved)
    found = checkpoints.load(7)
    assert folder.name == "000007" and (found.step, found.values, found.agreed) == (7, saved.values, AGREED)
    for name in ("model", "optimiser"):
        ours, theirs = getattr(saved, name), getattr(found, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)


def test_the_newest_stay(checkpoints):
    assert checkpoints.steps() == checkpoints.whole_steps() == []
    for step in (5, 10, 15, 20, 1_000_000):
        checkpoints.save(make(step))
    assert checkpoints.steps() == checkpoints.whole_steps() == [15, 20, 1_000_000]


@pytest.mark.parametrize("keeps_best", [True, False])
def test_the_best_stays_as_well(tmp_path, keeps_best):
    checkpoints = Checkpoints(tmp_path, 2, keeps_best=keeps_best)
    assert checkpoints.best_step() is None
    for step, score in ((5, 9.0), (10, 3.0), (15, None), (20, 4.0), (25, 5.0)):
        checkpoint = make(step)
        if score is not None:
            checkpoint.values["score"] = score
        checkpoints.save(checkpoint)
    assert checkpoints.steps() == ([10, 20, 25] if keeps_best else [20, 25])
    assert checkpoints.best_step() == (10 if keeps_best else 20)


def scored(step: int, score: float | None) -> Checkpoint:
    checkpoint = make(step)
    if score is not None:
        checkpoint.values["score"] = score
    return checkpoint


def test_of_equally_good_ones_the_newest_is_the_best_and_no_score_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    for step, score, kept in ((5, 3.0, [5]), (10, 3.0, [10]), (15, None, [10, 15]), (20, 3.5, [10, 20])):
        checkpoints.save(scored(step, score))
        assert checkpoints.steps() == kept and checkpoints.best_step() == kept[0]
    checkpoints.save(scored(25, 0.0))
    assert checkpoints.steps() == [25] and checkpoints.best_step() == 25, "zero is a score, and a very good one"


def test_with_the_best_forgotten_the_best_of_the_others_stays(tmp_path):
    """A run that goes on from an older step repeats the later ones; their former scores count no more."""
    checkpoints = Checkpoints(tmp_path, 2)
    for step, score in ((5, 4.0), (10, 6.0), (15, 5.0), (20, 1.0)):
        checkpoints.save(scored(step, score))
    assert checkpoints.steps() == [15, 20] and checkpoints.best_step() == 20
    checkpoints.forget_after(15)
    assert checkpoints.steps() == [15] and checkpoints.best_step() == 15
    for step, score in ((20, 7.0), (25, 8.0), (30, 9.0)):
        checkpoints.save(scored(step, score))
    assert checkpoints.steps() == [15, 25, 30] and checkpoints.best_step() == 15


def test_one_without_a_readable_manifest_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, 9)
    for step, score in ((5, 1.0), (10, 2.0), (15, 3.0)):
        checkpoints.save(scored(step, score))
    (tmp_path / "000005" / MANIFEST).write_text("{")
    assert checkpoints.best_step() == 10 and checkpoints.whole_steps() == [10, 15]
    (tmp_path / "000010" / MANIFEST).unlink()
    assert checkpoints.best_step() == 15 and checkpoints.steps() == [5, 10, 15]


def test_all_is_on_the_disk_before_it_has_its_name(checkpoints, monkeypatch):
    done, opened = [], {}
    really_open, really_sync, really_replace = os.open, os.fsync, os.replace

    def open_(path, *rest):
        opened[handle := really_open(path, *rest)] = os.path.basename(path)
        return handle

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(opened.get(handle)), really_sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("named"), really_replace(*paths)))
    checkpoints.save(make(5))
    at = done.index("named")
    assert set(done[:at]) == {MODEL, OPTIMISER, MANIFEST, f".000005.{os.getpid()}"}
    assert done[at + 1 :] == ["checkpoints"], "and then the name itself"


def test_each_file_is_reported_while_it_counts_for_nothing_and_a_full_disk_is_one_line(tmp_path):
    written = []

    def note(path):
        written.append(path.name)
        assert path.is_file() and not (tmp_path / "000005").exists()
        if len(written) == 6:
            raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path, 3, written=note)
    checkpoints.save(make(4))
    assert written == [MODEL, OPTIMISER, MANIFEST]
    with pytest.raises(UsageError, match="cannot save the checkpoint of step 5 in .*: No space left on device"):
        checkpoints.save(make(5))
    assert [path.name for path in tmp_path.iterdir()] == ["000004"]


def test_the_remains_of_a_killed_process_are_no_checkpoint_and_go_with_the_next(checkpoints):
    checkpoints.save(make(5)).rename(checkpoints.folder / ".000005.4711")
    (checkpoints.folder / "notes").mkdir()
    assert checkpoints.steps() == checkpoints.whole_steps() == [] and checkpoints.best_step() is None
    checkpoints.save(make(10))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["000010", "notes"]


def test_values_are_read_without_the_tensors_but_not_from_a_damaged_one(checkpoints):
    checkpoints.save(make(5))
    assert checkpoints.values(5) == make(5).values
    flip(checkpoints.folder / "000005" / OPTIMISER, 1.0)
    with pytest.raises(UsageError, match="optimiser.safetensors is damaged"):
        checkpoints.values(5)


def test_one_of_the_same_step_is_replaced(checkpoints):
    checkpoints.save(make(5))
    changed = make(5)
    changed.values["counters"] = {"applied": 99}
    checkpoints.save(changed)
    assert checkpoints.load(5).values["counters"] == {"applied": 99} and checkpoints.steps() == [5]


def test_later_checkpoints_are_forgotten(checkpoints):
    for step in (5, 10, 15):
        checkpoints.save(make(step))
    checkpoints.forget_after(5)
    assert checkpoints.steps() == [5]


def test_a_torn_write_counts_for_nothing_and_is_cleared_away(checkpoints, monkeypatch):
    checkpoints.save(make(5))
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("the power is gone")))
    with pytest.raises(UsageError, match="cannot save the checkpoint of step 10 in .*power"):
        checkpoints.save(make(10))
    assert len(list(checkpoints.folder.iterdir())) == 1
    assert checkpoints.steps() == checkpoints.whole_steps() == [5]
    monkeypatch.undo()
    checkpoints.save(make(15))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["000005", "000015"]


@pytest.mark.parametrize("name", [MODEL, OPTIMISER, MANIFEST])
def test_a_missing_file_is_refused(checkpoints, logged, name):
    checkpoints.save(make(5))
    (checkpoints.save(make(10)) / name).unlink()
    with pytest.raises(UsageError, match="000010 is no whole checkpoint"):
        checkpoints.load(10)
    assert checkpoints.whole_steps() == [5] and "passing over" in logged[0]


@pytest.mark.parametrize("where", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", [MODEL, OPTIMISER, MANIFEST])
def test_a_changed_bit_is_refused(checkpoints, logged, name, where):
    checkpoints.save(make(5))
    flip(checkpoints.save(make(10)) / name, where)
    with pytest.raises(UsageError, match="damaged|no whole checkpoint|checkpoint format"):
        checkpoints.load(10)
    assert checkpoints.whole_steps() == [5] and len(logged) == 1


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", '{"format": 1}', "[" * 100_000, '{"format": 2}', "\udcff"])
def test_a_manifest_of_anything_is_refused(checkpoints, text):
    folder = checkpoints.save(make(5))
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError):
        read(folder)


@pytest.mark.parametrize("number", [0, 3, 10])
def test_a_whole_checkpoint_of_another_format_is_refused_by_that_number(checkpoints, number):
    path = checkpoints.save(make(5)) / MANIFEST
    manifest = json.loads(path.read_text()) | {"format": number}
    del manifest["sum"]
    manifest["sum"] = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=f"checkpoint format {number}, this degan reads 1 and 2"):
        checkpoints.load(5)


def test_the_manifest_names_step_and_files(checkpoints):
    folder = checkpoints.save(make(5))
    manifest = read_manifest(folder)
    assert manifest["step"] == 5 and set(manifest["files"]) == {MODEL, OPTIMISER}
    assert read(folder.rename(folder.with_name("000007"))).step == 5, "a copy's name says nothing"


def test_another_experiment_is_refused_by_the_key(checkpoints):
    checkpoints.save(make(5))
    found = checkpoints.load(5)
    check_same_experiment(found, AGREED, "here")
    check_same_experiment(found, {**AGREED, "run.steps": 50, "bus.lease_s": 9.0}, "here")
    check_same_experiment(found, {**AGREED, "optimiser.betas": (0.5, 0.999)}, "here")
    with pytest.raises(UsageError, match=r"optimiser.betas is \[0.5, 0.999\] there and \[0.5, 0.9\] here"):
        check_same_experiment(found, {**AGREED, "optimiser.betas": [0.5, 0.9]}, "here")
    with pytest.raises(UsageError, match="mode.slack is None there and 2 here"):
        check_same_experiment(found, {**AGREED, "mode.slack": 2}, "here")
    without = {key: value for key, value in AGREED.items() if key != "seed"}
    with pytest.raises(UsageError, match="here is of another experiment: seed is 1 there and None here"):
        check_same_experiment(found, without, "here")


# --- resumed training --------------------------------------------------------------------------

DIGITS = {
    "name": "go-on",
    "device": "cpu",
    "data": {"name": "digits", "batch_size": 8},
    "run": {"steps": 100},
}
MODELS = {
    "mlp": {"name": "mlp", "latent": 4, "hidden": 8, "image_size": 16},
    "dcgan": {"name": "dcgan", "latent": 4, "width": 4},
    "lsgan": {"name": "lsgan", "latent": 4},
}
CASES = [("mlp", "simultaneous"), ("mlp", "alternating"), ("dcgan", "alternating"), ("lsgan", "simultaneous")]


def build(model: str, updates: str, **settings) -> tuple[Setup, Local]:
    data = {**DIGITS, "model": MODELS[model], "mode": {"name": "local", "updates": updates}, **settings}
    experiment = config.build(data)
    setup = Setup.build(experiment, 0)
    return setup, Local(experiment, 0, setup.learner)


def train(setup: Setup, mode: Local, steps: int) -> list[dict]:
    return [mode.step(step, setup.shard.next_batch, False) for step in range(steps)]


@pytest.mark.parametrize(("model", "updates"), CASES)
def test_training_goes_on_bit_for_bit(tmp_path, model, updates):
    """The state has weights, moments, moving average, running statistics, latents, dropout and data position."""
    whole, mode = build(model, updates)
    # The checkpoint is shortly before the end of an epoch, so that the resumed run takes the next epoch's order too.
    before = 3 if model == "lsgan" else whole.shard.batches_per_epoch - 2
    after = 3 if model == "lsgan" else 5
    train(whole, mode, before)
    Checkpoints(tmp_path, 1).save(whole.checkpoint(before, mode.state()))
    losses = train(whole, mode, after)

    again, mode = build(model, updates)
    again.restore(read(tmp_path / f"{before:06d}"))
    assert train(again, mode, after) == losses
    ours, theirs = tensors_of(whole.learner), tensors_of(again.learner)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = vectors_of(whole.learner), vectors_of(again.learner)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert counters_of(whole.learner) == counters_of(again.learner) and whole.shard.state() == again.shard.state()
    assert all(map(torch.equal, whole.shard.next_batch(), again.shard.next_batch()))


def test_wasserstein_mixing_goes_on_too(tmp_path):
    whole, mode = build("mlp", "alternating", loss="wasserstein_gp")
    train(whole, mode, 3)
    Checkpoints(tmp_path, 1).save(whole.checkpoint(3, mode.state()))
    losses = train(whole, mode, 3)
    again, mode = build("mlp", "alternating", loss="wasserstein_gp")
    again.restore(read(tmp_path / "000003"))
    assert train(again, mode, 3) == losses


def test_a_checkpoint_of_other_networks_or_data_is_refused(tmp_path):
    setup, mode = build("mlp", "simultaneous")
    Checkpoints(tmp_path, 1).save(setup.checkpoint(0, mode.state()))
    found = read(tmp_path / "000000")
    other, _ = build("dcgan", "simultaneous")
    with pytest.raises(UsageError, match="does not fit"):
        other.restore(found)
    other, _ = build("mlp", "simultaneous", data={"name": "digits", "batch_size": 16})
    with pytest.raises(UsageError, match="batches of"):
        other.restore(found)
    found.optimiser.pop("random.latents")
    with pytest.raises(UsageError, match="does not fit"):
        setup.restore(found)


def test_the_manifest_is_plain_json(tmp_path):
    setup, mode = build("mlp", "simultaneous")
    folder = Checkpoints(tmp_path, 1).save(setup.checkpoint(0, mode.state(), trained_s=1.5))
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["values"]["trained_s"] == 1.5
    assert manifest["agreed"] == json.loads(json.dumps(config.agreed(setup.settings)))
