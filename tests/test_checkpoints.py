"""Checkpoints: whole or not there, refused when damaged, and training goes on from them bit for bit."""

from __future__ import annotations

import json
import os

import pytest
import torch

import config
from config import UsageError
from degan.checkpoints import (
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
from degan.worker.objects import Objects

AGREED = {"seed": 1, "optimiser.betas": [0.5, 0.999], "run.steps": 10, "bus.lease_s": 30.0}


def make(step: int) -> Checkpoint:
    random = torch.Generator().manual_seed(step)
    model = {"generator.w": torch.randn(3, 4, generator=random), "ema.count": torch.tensor(step)}
    optimiser = {"random.global": torch.arange(5, dtype=torch.uint8), "mode.window": torch.empty(0)}
    values = {"counters": {"applied": step}, "data": {"epoch": 1}, "mode": {"followed": {"1": [4, "é", 9]}}}
    return Checkpoint(step, model, optimiser, values, AGREED)


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path / "checkpoints", 3, said.append)


def flip(path, where: float) -> None:
    """Change one bit of a file, `where` of the way through it."""
    raw = bytearray(path.read_bytes())
    raw[int(where * (len(raw) - 1))] ^= 1
    path.write_bytes(raw)


def test_what_is_saved_is_read(checkpoints):
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


def test_one_of_the_same_step_is_replaced(checkpoints):
    checkpoints.save(make(5))
    changed = make(5)
    changed.values["counters"] = {"applied": 99}
    checkpoints.save(changed)
    assert checkpoints.load(5).values["counters"] == {"applied": 99} and checkpoints.steps() == [5]


def test_what_comes_after_is_forgotten(checkpoints):
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
def test_a_missing_file_is_refused(checkpoints, said, name):
    checkpoints.save(make(5))
    (checkpoints.save(make(10)) / name).unlink()
    with pytest.raises(UsageError, match="000010 is no whole checkpoint"):
        checkpoints.load(10)
    assert checkpoints.whole_steps() == [5] and "passing over" in said[0]


@pytest.mark.parametrize("where", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", [MODEL, OPTIMISER, MANIFEST])
def test_a_changed_bit_is_refused(checkpoints, said, name, where):
    checkpoints.save(make(5))
    flip(checkpoints.save(make(10)) / name, where)
    with pytest.raises(UsageError, match="damaged|no whole checkpoint|checkpoint format"):
        checkpoints.load(10)
    assert checkpoints.whole_steps() == [5] and len(said) == 1


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", '{"format": 1}', "[" * 100_000, '{"format": 2}', "\udcff"])
def test_a_manifest_of_anything_is_refused(checkpoints, text):
    folder = checkpoints.save(make(5))
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError):
        read(folder)


def test_the_manifest_names_step_and_files(checkpoints):
    manifest = read_manifest(checkpoints.save(make(5)))
    assert manifest["step"] == 5 and set(manifest["files"]) == {MODEL, OPTIMISER}


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


# --- going on ----------------------------------------------------------------------------------

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


def build(model: str, updates: str, **settings) -> tuple[Objects, Local]:
    data = {**DIGITS, "model": MODELS[model], "mode": {"name": "local", "updates": updates}, **settings}
    experiment = config.build(data)
    objects = Objects.build(experiment, 0)
    return objects, Local(experiment, 0, objects.pair)


def train(objects: Objects, mode: Local, steps: int) -> list[dict]:
    return [mode.step(step, objects.shard.next_batch, False) for step in range(steps)]


@pytest.mark.parametrize(("model", "updates"), CASES)
def test_training_goes_on_bit_for_bit(tmp_path, model, updates):
    """Weights, moments, moving average, running statistics, latents, dropout and data position."""
    whole, mode = build(model, updates)
    # A little before the end of an epoch, so that going on takes the next epoch's order too.
    before = 3 if model == "lsgan" else whole.shard.batches_per_epoch - 2
    after = 3 if model == "lsgan" else 5
    train(whole, mode, before)
    Checkpoints(tmp_path, 1).save(whole.checkpoint(before, mode.state()))
    losses = train(whole, mode, after)

    again, mode = build(model, updates)
    again.restore(read(tmp_path / f"{before:06d}"))
    assert train(again, mode, after) == losses
    ours, theirs = whole.pair.networks(), again.pair.networks()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = whole.pair.vectors(), again.pair.vectors()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert whole.pair.counters() == again.pair.counters() and whole.shard.state() == again.shard.state()
    assert torch.equal(whole.shard.next_batch(), again.shard.next_batch())


def test_wasserstein_mixing_goes_on_too(tmp_path):
    whole, mode = build("mlp", "alternating", loss="wasserstein_gp")
    train(whole, mode, 3)
    Checkpoints(tmp_path, 1).save(whole.checkpoint(3, mode.state()))
    losses = train(whole, mode, 3)
    again, mode = build("mlp", "alternating", loss="wasserstein_gp")
    again.restore(read(tmp_path / "000003"))
    assert train(again, mode, 3) == losses


def test_a_checkpoint_of_other_networks_or_data_is_refused(tmp_path):
    objects, mode = build("mlp", "simultaneous")
    Checkpoints(tmp_path, 1).save(objects.checkpoint(0, mode.state()))
    found = read(tmp_path / "000000")
    other, _ = build("dcgan", "simultaneous")
    with pytest.raises(UsageError, match="does not fit"):
        other.restore(found)
    other, _ = build("mlp", "simultaneous", data={"name": "digits", "batch_size": 16})
    with pytest.raises(UsageError, match="batches of"):
        other.restore(found)
    found.optimiser.pop("random.latents")
    with pytest.raises(UsageError, match="does not fit"):
        objects.restore(found)


def test_the_manifest_is_plain_json(tmp_path):
    objects, mode = build("mlp", "simultaneous")
    folder = Checkpoints(tmp_path, 1).save(objects.checkpoint(0, mode.state(), trained_s=1.5))
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["values"]["trained_s"] == 1.5
    assert manifest["agreed"] == json.loads(json.dumps(config.agreed(objects.settings)))
