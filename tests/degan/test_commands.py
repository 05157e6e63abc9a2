"""The commands after the training: generate, evaluate, report; and the help of `degan`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from degan import __main__, evaluate, generate, report
from degan.metrics import classifier
from tests.workers import Worker, experiment

pytestmark = pytest.mark.timeout(100)

ROOT = Path(__file__).resolve().parent.parent.parent


def train(folder: Path, name: str, *overrides: str, workers: int = 1) -> Path:
    """A run of two steps whose workers train alone."""
    file, out = experiment(folder, name, workers, "local"), folder / name
    words = ["--set", "run.steps=2", *[word for override in overrides for word in ("--set", override)]]
    incarnations = [
        Worker([n, "--config", file, "--out", out, *words], folder / f"{name}-{n}.log") for n in range(workers)
    ]
    for incarnation in incarnations:
        assert incarnation.end() == 0, incarnation.text
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two workers, with images of 16 x 16 and checkpoints of the steps 1 and 2."""
    return train(tmp_path_factory.mktemp("runs"), "images", "run.checkpoint_every=1", "run.snapshot_every=1", workers=2)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), "points", "data.name=gaussian-ring")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture
def call(capsys):
    """A function that runs a command; returns the exit code, standard output and standard error."""

    def with_words(command, *words) -> tuple[int, str, str]:
        code = command.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return with_words


def refused(outcome: tuple[int, str, str]) -> str:
    code, out, text = outcome
    assert code == 2 and not out and text.startswith("degan") and text.count("\n") == 1, text
    return text


# --- generate ----------------------------------------------------------------------------------


def test_generate_a_grid(run, call, tmp_path):
    code, out, text = call(generate, run, "--count", 10, "--out", tmp_path / "new" / "grid.png")
    assert (code, text) == (0, "") and "10 samples of worker 0 after step 2" in out
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.format == "PNG" and image.width >= 4 * 16 and image.height >= 3 * 16


def test_generate_an_array(run, call, tmp_path):
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed", 5)), ("d", ("--worker", 1))):
        assert call(generate, run, "--count", 300, "--out", tmp_path / f"{name}.npz", *more)[0] == 0
    arrays = {}
    for name in "abcd":
        with np.load(tmp_path / f"{name}.npz") as file:
            assert list(file) == ["images"]
            arrays[name] = file["images"]
    assert arrays["a"].shape == (300, 16, 16, 1) and arrays["a"].dtype == np.uint8
    assert (arrays["a"] == arrays["b"]).all(), "the same seed"
    assert (arrays["a"] != arrays["c"]).any(), "another seed"
    assert (arrays["a"] != arrays["d"]).any(), "another worker"
    assert arrays["a"].std() > 0


def test_generate_a_folder(run, call, tmp_path):
    folder = tmp_path / "many"
    assert call(generate, run, "--count", 5, "--out", f"{folder}/")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:06d}.png" for n in range(5)]
    assert call(generate, run, "--count", 5, "--out", tmp_path / "array.npz")[0] == 0
    with np.load(tmp_path / "array.npz") as file, Image.open(folder / "000003.png") as image:
        assert (np.asarray(image) == file["images"][3].squeeze(-1)).all(), "the same samples in another form"


def test_generate_points(points, call, tmp_path):
    assert call(generate, points, "--count", 7, "--out", tmp_path / "p.npz")[0] == 0
    with np.load(tmp_path / "p.npz") as file:
        assert list(file) == ["points"]
        assert file["points"].shape == (7, 2) and file["points"].dtype == np.float32
    assert call(generate, points, "--count", 7, "--out", tmp_path / "p.png")[0] == 0
    assert "points have no picture each" in refused(call(generate, points, "--out", tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_generate_takes_the_newest_whole_checkpoint(copy, call, tmp_path):
    newest = copy / "w0" / "checkpoints" / "000002" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    _, out, _ = call(generate, copy, "--count", 1, "--out", tmp_path / "x.npz")
    assert "worker 0 after step 1" in out
    (copy / "w0" / "checkpoints" / "000001" / "manifest.json").unlink()
    assert "no whole checkpoint" in refused(call(generate, copy, "--worker", 0, "--out", tmp_path / "x.npz"))


def test_generate_refuses_in_one_line(run, copy, call, tmp_path):
    out = tmp_path / "x.png"
    (tmp_path / "file").write_text("")
    for words, message in (
        ((tmp_path / "nothing", "--out", out), "is no run folder (it has no experiment.yaml)"),
        ((tmp_path / "file", "--out", out), "is no run folder"),
        ((run, "--worker", 7, "--out", out), "no checkpoint of worker 7"),
        ((run, "--worker", -1, "--out", out), "no checkpoint of worker -1"),
        ((run, "--count", 0, "--out", out), "--count 0: expected at least 1"),
        ((run, "--seed", -1, "--out", out), "--seed -1: expected 0 to"),
        ((run, "--seed", 2**64, "--out", out), "expected 0 to"),
        ((run, "--out", tmp_path / "file" / "x.png"), "cannot write"),
        ((run, "--out", tmp_path / "file" / "x"), "cannot write"),
    ):
        assert message in refused(call(generate, *words))
    for number in (0, 1):
        shutil.rmtree(copy / f"w{number}" / "checkpoints")
    assert "no checkpoint of any worker yet" in refused(call(generate, copy, "--out", out))
    assert not out.exists()


def test_other_settings_than_the_checkpoint_has_are_refused(copy, call, tmp_path):
    file = copy / "experiment.yaml"
    file.write_text(file.read_text().replace("hidden: 8", "hidden: 9"))
    assert "does not fit the settings" in refused(call(generate, copy, "--out", tmp_path / "x.png"))
    file.write_text("name: [")
    assert "not valid YAML" in refused(call(generate, copy, "--out", tmp_path / "x.png"))


# --- evaluate ----------------------------------------------------------------------------------

NAMES = ["fid64_classifier", "fid64_classifier_floor", "coverage64_classes", "tv64_labels", "classes"]


@pytest.fixture
def quick_classifier(monkeypatch):
    """An untrained classifier in the place of the trained one, whose training takes half a minute."""

    def untrained(source) -> torch.nn.Module:
        torch.manual_seed(0)
        return classifier.Classifier(source.sample_shape, len(source.classes)).eval()

    monkeypatch.setattr(classifier, "obtain", untrained)


def test_evaluate_as_json(run, call, quick_classifier):
    code, out, _ = call(evaluate, run, "--samples", 64, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["worker"], line["metric"]) for line in lines] == [(w, name) for w in (0, 1) for name in NAMES]
    assert all(line["step"] == 2 and isinstance(line["value"], float) for line in lines)
    again = call(evaluate, run, "--samples", 64, "--json")[1]
    assert again == out, "the same seed, the same numbers"


def test_evaluate_as_a_table(run, call, quick_classifier):
    code, out, _ = call(evaluate, run, "--samples", 65, "--worker", 1)
    assert code == 0 and len(out.splitlines()) == len(NAMES)
    assert all(line.startswith("w1  step      2  ") for line in out.splitlines())
    assert "fid65_classifier " in out


def test_evaluate_refuses_in_one_line(run, call, tmp_path):
    for words, message in (
        ((tmp_path,), "is no run folder"),
        ((run, "--worker", 7), "no checkpoint of worker 7"),
        ((run, "--samples", 5), "run.evaluate_samples: expected int >= 64"),
        ((run, "--seed", -1), "--seed -1: expected 0 to"),
        ((run, "--set", "data.rot=x"), "data.rot: unknown key; did you mean 'root'?"),
        ((run, "--inception", tmp_path / "none.pt"), "none.pt"),
    ):
        assert message in refused(call(evaluate, *words))


# --- report ------------------------------------------------------------------------------------


def test_report_of_that_run(copy, call):
    assert call(report, copy)[0] == 0
    text = (copy / "report.html").read_text()
    assert "images" in text and "data:image/png" in text


# --- the commands ------------------------------------------------------------------------------


def test_degan_lists_its_commands(call):
    code, out, _ = call(__main__, "--help")
    assert code == 0 and all(f"  {name} " in out for name in __main__.COMMANDS)
    assert call(__main__)[:2] == (2, out)
    assert "no command 'generat'" in refused(call(__main__, "generat"))


def test_degan_dispatches(run, call, tmp_path):
    assert "is no run folder" in refused(call(__main__, "generate", tmp_path, "--out", tmp_path / "x.png"))
    assert "no experiment file" in refused(call(__main__, "worker", "0", "--config", "no-such"))
    code, _, text = call(__main__, "local", "no-such", "--out", tmp_path / "x")
    assert code == 2 and "no experiment file" in text and text.count("\n") == 1


def test_light_imports_load_no_torch():
    code = "import sys, launch, launch.__main__, config, degan.__main__; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stdout == "False\n", ended.stderr


@pytest.mark.parametrize("words", [("-m", "degan"), ("-m", "launch"), ("-m", "degan.worker"), ("-m", "degan.generate")])
def test_help_is_there_without_torch(words):
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *words, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 0 and "usage:" in ended.stdout
    assert not any(line.split("|")[-1].strip() == "torch" for line in ended.stderr.splitlines())


# --- a classifier -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A run of a classifier, of two steps."""
    folder = tmp_path_factory.mktemp("classified")
    file = folder / "experiment.yaml"
    file.write_text(
        "{name: classified, data: {name: digits}, classifier: {name: mlp, image_size: 8}, mode: {name: local}, "
        "run: {steps: 2, evaluate_every: 2}}"
    )
    incarnation = Worker([0, "--config", file, "--out", folder / "run"], folder / "log")
    assert incarnation.end() == 0, incarnation.text
    return folder / "run"


def test_a_classifier_is_measured_with_the_metrics_of_its_run(classified, call):
    kept = [json.loads(line) for line in (classified / "metrics.jsonl").read_text().splitlines()]
    code, out, err = call(evaluate, classified, "--json")
    assert (code, err) == (0, "")
    found = {line["metric"]: line["value"] for line in map(json.loads, out.splitlines())}
    assert found == {line["metric"]: line["value"] for line in kept if line["step"] == 2}
    assert list(found) == ["accuracy", "loss", "accuracy_by_class"] and len(found["accuracy_by_class"]) == 10
    code, out, _ = call(evaluate, classified)
    assert code == 0 and [len(line.split()) for line in out.splitlines()] == [5, 5, 14]
    values = json.loads((classified / "w0/checkpoints/000002/manifest.json").read_text())["values"]
    assert values["score"] == 1 - found["accuracy"] and values["classes"] == 10


def test_a_classifier_generates_nothing(classified, call, tmp_path):
    code, _, err = call(generate, classified, "--out", tmp_path / "x.png")
    assert code == 2 and err == "degan.generate: worker 0 has trained a classifier, which generates nothing\n"
