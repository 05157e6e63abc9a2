"""The network of generate and evaluate: the moving average of the chosen checkpoint, against plain torch."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import config
from degan import evaluate, generate, models
from degan.artifacts.checkpoints import Checkpoint, Checkpoints
from degan.data.base import ImageSource

SHAPE = (1, 32, 32)


def checkpoint(settings, step: int, seed: int, score: float | None = None) -> Checkpoint:
    """A checkpoint of random weights and running statistics; the generator and its average differ."""
    random = torch.Generator().manual_seed(seed)
    generator, discriminator = models.build(settings.model, SHAPE)
    model = {}
    for prefix, network in (("generator", generator), ("discriminator", discriminator), ("ema", generator)):
        for name, tensor in network.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=random) * 0.5
            # Scales and variances are around one, all other values around zero.
            is_scale = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
            model[f"{prefix}.{name}"] = (drawn.abs() + 0.5 if is_scale else drawn).to(tensor.dtype)
    values = {"sample_shape": list(SHAPE)} | ({} if score is None else {"score": score})
    return Checkpoint(step, model, {"random.global": torch.zeros(1)}, values, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which worker 0 has its best score at step 2, and worker 1 has measured nothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    settings = config.build(
        {
            "name": "saved",
            "peers": 3,
            "data": {"name": "mnist"},
            "model": {"name": "dcgan", "latent": 4, "width": 2},
            "run": {"evaluate_samples": 300},
        }
    )
    (folder / "experiment.yaml").write_text(config.dump(settings), encoding="utf-8")
    for worker, steps in ((0, ((1, 9.0), (2, 3.0), (3, 5.0), (4, None))), (1, ((2, None), (6, None)))):
        checkpoints = Checkpoints(folder / f"w{worker}" / "checkpoints", keep=9)
        for step, score in steps:
            checkpoints.save(checkpoint(settings, step, 10 * worker + step, score))
    return folder


def by_hand(run: Path, worker: int, step: int, seed: int, *counts: int) -> np.ndarray:
    """The samples (n, 1, 32, 32) of the moving average with its running statistics, latents drawn in `counts`."""
    file = run / f"w{worker}" / "checkpoints" / f"{step:06d}" / "model.safetensors"
    own = {name.removeprefix("ema.body."): tensor for name, tensor in load_file(file).items()}
    random = torch.Generator().manual_seed(seed)
    x = torch.cat([torch.randn(count, 4, generator=random) for count in counts])[:, :, None, None]
    for layer in (0, 3, 6):
        x = F.conv_transpose2d(x, own[f"{layer}.weight"], stride=2 if layer else 1, padding=1 if layer else 0)
        mean, variance, scale, shift = (
            own[f"{layer + 1}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = torch.relu((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift)
    return torch.tanh(F.conv_transpose2d(x, own["9.weight"], own["9.bias"], stride=2, padding=1)).numpy()


def output_of(command, capsys, *words) -> str:
    assert command.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "worker", "step", "seed"),
    [
        ((), 0, 4, 0),
        (("--seed", 7), 0, 4, 7),
        (("--best",), 0, 2, 0),
        (("--worker", 1), 1, 6, 0),
        (("--worker", 0, "--best", "--seed", 3), 0, 2, 3),
    ],
)
def test_generated_images_are_the_averages_of_that_checkpoint(run, tmp_path, capsys, words, worker, step, seed):
    file = tmp_path / "x.npz"
    text = output_of(generate, capsys, run, "--count", 300, "--out", file, *words)
    assert text == f"300 samples of worker {worker} after step {step} in {file}\n"
    with np.load(file) as found:
        images = found["images"]
    expected = (by_hand(run, worker, step, seed, 300).transpose(0, 2, 3, 1) + 1) * 127.5
    # The images are a rounding apart; other weights give other pictures.
    assert np.abs(images - expected).max() < 0.51
    assert expected.std() > 20


def test_where_the_newest_is_damaged_the_newest_whole_one_is_shown(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    for step in (3, 4):
        (copy / "w0" / "checkpoints" / f"{step:06d}" / "optimiser.safetensors").write_bytes(b"")
    assert "worker 0 after step 2 in" in output_of(generate, capsys, copy, "--count", 1, "--out", tmp_path / "x.npz")
    shutil.rmtree(copy / "w0")
    assert "worker 1 after step 6 in" in output_of(generate, capsys, copy, "--count", 1, "--out", tmp_path / "x.npz")


def test_a_worker_that_measured_nothing_has_no_best(run, capsys, tmp_path):
    assert generate.main([str(run), "--worker", "1", "--best", "--out", str(tmp_path / "x.npz")]) == 2
    assert "no checkpoint of worker 1 that was measured" in capsys.readouterr().err


def test_a_grid_is_square_and_a_folder_has_one_picture_each(run, capsys, tmp_path):
    from PIL import Image

    expected = np.rint((by_hand(run, 0, 4, 0, 5) + 1) * 127.5)[:, 0]
    output_of(generate, capsys, run, "--count", 5, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        sheet = np.asarray(image)[:, :, 0].astype(int)
    assert sheet.shape == (129, 194), "two rows of three, each pixel doubled, one between"
    output_of(generate, capsys, run, "--count", 5, "--out", f"{tmp_path}/many/")
    for index in range(5):
        top, left = index // 3 * 65, index % 3 * 65
        with Image.open(tmp_path / "many" / f"{index:06d}.png") as image:
            own = np.asarray(image).astype(int)
        for shown in (sheet[top : top + 64 : 2, left : left + 64 : 2], own):
            assert np.abs(shown - expected[index]).max() <= 1


class Corners(torch.nn.Module):
    """A feature network by hand: two pixels; the label is the number of the larger one."""

    def features(self, samples):
        return samples[:, 0, 10, 10:12]

    def head(self, values):
        return values


def plain_frechet(one: np.ndarray, other: np.ndarray) -> float:
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    return float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2) + np.trace(a) + np.trace(b) - 2 * root)


@pytest.fixture
def real(monkeypatch):
    """A data set of noise with parts of different brightness, and a feature network that needs no training."""
    random = np.random.default_rng(8)
    pixels = {"train": random.integers(0, 100, (90, 1, 32, 32)), "test": random.integers(50, 256, (70, 1, 32, 32))}
    sources = {part: ImageSource(values, np.arange(len(values)) % 2, "ab") for part, values in pixels.items()}
    monkeypatch.setattr("degan.metrics.evaluate.load", lambda data, size, part: sources[part])
    monkeypatch.setattr("degan.metrics.classifier.obtain", lambda train: Corners())
    return {part: values / 127.5 - 1 for part, values in pixels.items()}


@pytest.mark.parametrize("seed", [0, 4])
def test_evaluate_measures_each_workers_newest_average_on_the_same_latents(run, real, capsys, seed):
    lines = [json.loads(line) for line in output_of(evaluate, capsys, run, "--json", "--seed", seed).splitlines()]
    assert len(lines) == 2 * 5, "worker 2 has no checkpoint"
    test = real["test"][:, 0, 10, 10:12]
    for worker, step in ((0, 4), (1, 6)):
        found = {line["metric"]: line["value"] for line in lines if line["worker"] == worker}
        assert {line["step"] for line in lines if line["worker"] == worker} == {step}
        fake = by_hand(run, worker, step, seed, 250, 50)[:, 0, 10, 10:12]
        assert found["fid300_classifier"] == pytest.approx(plain_frechet(fake, test), rel=1e-3)
        floor = plain_frechet(real["train"][:, 0, 10, 10:12], test)
        assert found["fid300_classifier_floor"] == pytest.approx(floor, rel=1e-3)
        apart = abs((fake[:, 0] >= fake[:, 1]).mean() - (test[:, 0] >= test[:, 1]).mean())
        assert found["tv300_labels"] == pytest.approx(apart, abs=1e-6)


def test_evaluate_takes_as_many_samples_of_the_worker_that_is_named(run, real, capsys):
    words = ("--json", "--worker", 1, "--samples", 65)
    lines = [json.loads(line) for line in output_of(evaluate, capsys, run, *words).splitlines()]
    assert {(line["worker"], line["step"]) for line in lines} == {(1, 6)}
    fake = by_hand(run, 1, 6, 0, 65)[:, 0, 10, 10:12]
    assert lines[0]["metric"] == "fid65_classifier"
    assert lines[0]["value"] == pytest.approx(plain_frechet(fake, real["test"][:, 0, 10, 10:12]), rel=1e-3)


def test_evaluate_hands_on_what_is_set_and_the_weights_file(run, monkeypatch, capsys):
    made = []

    class Watched:
        def __init__(self, settings, inception, **others):
            made.append((settings, inception))

        def evaluate(self, sample):
            assert sample(3).shape == (3, *SHAPE)
            return []

    monkeypatch.setattr("degan.metrics.accuracy.Evaluator", Watched)
    output_of(evaluate, capsys, run, "--set", "data.root=elsewhere", "--samples", 65, "--inception", "weights.pth")
    output_of(evaluate, capsys, run, "--set", "run.evaluate_samples=66")
    (settings, weights), (other, none) = made
    assert (settings.data.root, settings.run.evaluate_samples, weights) == ("elsewhere", 65, "weights.pth")
    assert (other.data.root, other.run.evaluate_samples, none) == (None, 66, None)
