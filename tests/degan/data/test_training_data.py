"""The training samples of a worker: from the settings to its batches, against scikit-learn and the disk."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

import config
from config import UsageError
from degan.data import load
from degan.metrics import classifier
from degan.worker import prepare
from degan.worker.setup import Setup, pick_device, shards_json
from tests.learner_views import tensors_of

WORKERS = 3
# A third of the 1,437 training digits, so that a batch is an epoch.
THIRD = 479


def settings(seed: int = 5, workers: int = WORKERS, image_size: int = 8, evaluate_every: int = 500, **data):
    return config.build(
        {
            "name": "which-data",
            "seed": seed,
            "peers": workers,
            "device": "cpu",
            "data": {"name": "digits", "batch_size": THIRD, **data},
            "model": {"name": "mlp", "latent": 4, "hidden": 8, "image_size": image_size},
            "mode": {"name": "local"},
            "run": {"evaluate_every": evaluate_every},
        }
    )


def build(worker: int, **words) -> Setup:
    return Setup.build(settings(**words), worker)


@pytest.fixture(scope="module", autouse=True)
def bundled():
    """scikit-learn's digits, read once, because reading takes longer than all the rest."""
    from sklearn.datasets import load_digits

    found = load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.datasets.load_digits", lambda: found)
        yield found


@pytest.fixture(scope="module")
def digits(bundled):
    """Pixels (n, 1, 8, 8) in [-1, 1] and labels of the training part: all but a fifth that is drawn once."""
    held_out = np.random.default_rng(20231).permutation(1797)[:360]
    kept = np.setdiff1d(np.arange(1797), held_out)
    pixels = np.rint(bundled.images[kept] / 16 * 255).astype(np.float32) / np.float32(127.5) - 1
    return pixels[:, None], bundled.target[kept]


def numbered(samples, pixels) -> list[int]:
    """The index of each sample in `pixels`; a sample that is not there fails the test."""
    whole = {np.rint((row + 1) * 127.5).astype(np.uint8).tobytes(): number for number, row in enumerate(pixels)}
    assert len(whole) == len(pixels), "no digit is there twice"
    return [whole[np.rint((row.numpy() + 1) * 127.5).astype(np.uint8).tobytes()] for row in samples]


def test_the_workers_share_out_the_training_part(digits):
    pixels, labels = digits
    held = [build(worker) for worker in range(WORKERS)]
    seen = [numbered(one.shard.next_batch().samples, pixels) for one in held]
    assert sorted(sum(seen, [])) == list(range(len(labels))), "each training sample is one worker's, no other is there"
    for worker, one in enumerate(held):
        histogram = np.bincount(labels[seen[worker]], minlength=10).tolist()
        assert one.peer_info == {"samples": THIRD, "histogram": histogram}
        assert one.counts[worker] == histogram
        assert one.facts == {"data (classes)": list("0123456789"), "data (samples)": 1437}
        assert json.loads(shards_json(one)) == {"classes": list("0123456789"), "counts": held[0].counts}


def test_a_worker_trains_on_the_classes_of_its_own_group(digits):
    pixels, labels = digits
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    for worker, group in enumerate(groups):
        one = build(worker, batch_size=100, split={"kind": "classes", "groups": groups})
        mine = np.flatnonzero(np.isin(labels, group))
        assert len(one.shard) == len(mine) and one.peer_info["samples"] == len(mine)
        seen = sum((numbered(one.shard.next_batch().samples, pixels) for _ in range(one.shard.batches_per_epoch)), [])
        assert set(seen) <= set(mine) and len(set(seen)) == len(seen) == len(mine) // 100 * 100
        everybodys = [[int((labels == name).sum()) * (name in theirs) for name in range(10)] for theirs in groups]
        assert one.counts == everybodys and one.peer_info["histogram"] == everybodys[worker]


def test_with_own_data_a_worker_has_all_it_finds_and_knows_only_itself(digits):
    pixels, labels = digits
    histogram = np.bincount(labels).tolist()
    orders = []
    for worker in range(2):
        one = build(worker, batch_size=1437, split={"kind": "own"})
        orders.append(numbered(one.shard.next_batch().samples, pixels))
        assert sorted(orders[-1]) == list(range(1437))
        assert one.counts == [histogram if number == worker else [] for number in range(WORKERS)]
        assert one.peer_info == {"samples": 1437, "histogram": histogram}
        assert "data (samples)" not in one.facts, "the others' numbers may differ"
    assert orders[0] != orders[1]


def test_every_epoch_every_worker_and_every_seed_has_an_order_of_its_own(digits):
    pixels, _ = digits
    orders = []
    for seed, worker in ((5, 0), (5, 1), (6, 0)):
        one = build(worker, seed=seed, batch_size=1437, split={"kind": "own"})
        orders += [numbered(one.shard.next_batch().samples, pixels) for _ in range(2)]
        assert one.shard.drawn == 2 * 1437 and one.shard.epoch == 2
    assert len({tuple(order) for order in orders}) == 6
    # The order is a shuffle, no rotation and no sorted run: few samples come right after their neighbour.
    for order in orders:
        assert sum(after == before + 1 for before, after in zip(order, order[1:], strict=False)) < 20


def test_latents_and_dropout_are_each_workers_own_and_weights_are_everybodys():
    held = {}
    for seed, worker in ((5, 0), (5, 1), (6, 0)):
        one = build(worker, seed=seed)
        held[seed, worker] = one.learner.random_state(), tensors_of(one.learner)
    for other in ((5, 1), (6, 0)):
        for name in ("latents", "mixing", "global"):
            assert not torch.equal(held[5, 0][0][name], held[other][0][name]), name
    again = build(0)
    assert all(torch.equal(held[5, 0][0][name], state) for name, state in again.learner.random_state().items())
    same, unlike = held[5, 1][1], held[6, 0][1]
    assert all(torch.equal(tensor, same[name]) for name, tensor in held[5, 0][1].items())
    assert not torch.equal(held[5, 0][1]["generator.body.0.weight"], unlike["generator.body.0.weight"])


def test_the_real_samples_that_are_shown_are_the_same_training_samples_on_every_worker(digits):
    pixels, _ = digits
    shown = [numbered(build(worker).sample_reals(64), pixels) for worker in range(2)]
    assert shown[0] == shown[1] and len(set(shown[0])) == 64
    assert numbered(build(0, seed=6).sample_reals(64), pixels) != shown[0]
    assert sorted(numbered(build(0).sample_reals(5000), pixels)) == list(range(1437)), "no more than there are"


def test_many_class_names_travel_as_their_hash(tmp_path):
    for classes in (20, 21):
        root = tmp_path / str(classes)
        for number in range(classes):
            (root / f"c{number:02d}").mkdir(parents=True)
            for name in ("1.png", "2.png"):
                Image.new("L", (4, 4), number).save(root / f"c{number:02d}" / name)
    names = [f"c{number:02d}" for number in range(21)]
    few, many = (
        build(0, workers=1, image_size=4, name="folder", root=str(tmp_path / name), batch_size=5)
        for name in ("20", "21")
    )
    assert few.facts == {"data (classes)": names[:20], "data (samples)": 20}
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert many.facts == {"data (classes)": f"21 of sha256 {digest}", "data (samples)": 21}
    assert many.classes == tuple(names)


def test_the_saved_state_of_a_mode_comes_back_under_its_own_names():
    one, other = build(0), build(0)
    arrays = {"window": np.arange(3, dtype=np.float32), "random": np.ones(2, np.uint8)}
    saved = one.checkpoint(7, (arrays, {"followed": {"1": [4]}}), trained_s=1.5)
    assert saved.step == 7 and saved.values["trained_s"] == 1.5 and saved.values["sample_shape"] == [1, 8, 8]
    assert saved.agreed == config.agreed(one.settings)
    found, values = other.restore(saved)
    assert values == {"followed": {"1": [4]}} and found.keys() == arrays.keys()
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )


def test_auto_is_the_first_gpu_that_is_there(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    for there, name, found in (
        (0, "auto", "cpu"),
        (2, "auto", "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
        (2, "cuda:2", None),
        (1, "cuda:1", None),
        (0, "cuda", None),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        if found:
            assert pick_device(name) == torch.device(found)
        else:
            with pytest.raises(UsageError, match=rf"device: {name} is not there \({there} GPUs found\)"):
                pick_device(name)


def test_drawn_samples_are_counted_over_epochs():
    one = build(0, batch_size=100)
    for number in range(1, 11):
        assert one.shard.next_batch().samples.shape == (100, 1, 8, 8)
        assert (one.shard.drawn, one.shard.epoch) == (100 * number, number // 4)


def test_a_worker_measures_with_all_that_it_was_given(monkeypatch, digits, tmp_path):
    """The evaluator loads the test part and does not load the training part again."""
    pixels, _ = digits
    learnt, loaded = [], []
    monkeypatch.setattr("degan.metrics.classifier.obtain", lambda source: learnt.append(source) or Brightness())
    monkeypatch.setattr("degan.metrics.evaluate.load", lambda *words: loaded.append(words[2]) or load(*words))
    one = build(1)
    metrics = one.evaluator.evaluate(lambda count: torch.zeros(count, 1, 8, 8))
    assert loaded == ["test"]
    assert numbered(learnt[0].take(np.arange(len(learnt[0]))), pixels) == list(range(1437)), "not only its own third"
    assert {metric.name for metric in metrics} >= {"fid5000_classifier", "fid5000_classifier_floor"}

    made = []
    monkeypatch.setattr("degan.metrics.accuracy.Evaluator", lambda *words, **more: made.append((words, more)))
    Setup.build(one.settings, 1, inception=tmp_path / "weights.pth")
    (((given, weights), more),) = made
    assert (given, weights) == (one.settings, tmp_path / "weights.pth")
    assert more["device"] == torch.device("cpu") and len(more["train"]) == 1437


class Brightness(torch.nn.Module):
    """A feature network that needs no training."""

    def features(self, samples):
        return samples.flatten(1).mean(dim=1, keepdim=True)

    def head(self, values):
        return torch.cat([values, -values], dim=1)


# --- before the workers --------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The data for which the classifier of the metrics was requested."""
    sources = []
    monkeypatch.setattr(classifier, "obtain", sources.append)
    return sources


def prepared(folder, capsys, **words) -> tuple[int, str]:
    file = folder / "which-data.yaml"
    file.write_text(config.dump(settings(**words)), encoding="utf-8")
    return prepare.main(["--config", str(file)]), capsys.readouterr().err


def test_the_classifier_is_prepared_on_the_whole_training_part(digits, asked, tmp_path, capsys):
    pixels, labels = digits
    assert prepared(tmp_path, capsys) == (0, "")
    (source,) = asked
    assert numbered(source.take(np.arange(len(source))), pixels) == list(range(1437))
    assert np.array_equal(source.labels, labels)


def test_a_run_that_measures_nothing_prepares_no_classifier(asked, tmp_path, capsys):
    assert prepared(tmp_path, capsys, evaluate_every=0) == (0, "") and asked == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"batch_size": THIRD + 1}, "worker 0 holds 479 samples, less than one batch of 480"),
        (
            {"batch_size": 150, "split": {"kind": "classes", "groups": [[*range(5)], [9], [*range(5, 9)]]}},
            "worker 1 holds 146 samples, less than one batch of 150",
        ),
        ({"batch_size": 8, "workers": 1438}, "1437 samples cannot be shared out between 1438 workers"),
        ({"split": {"kind": "classes", "groups": [[0], [1], [77]]}}, "names class 77"),
    ],
)
def test_errors_that_would_stop_a_worker_are_reported_before(asked, tmp_path, capsys, words, message):
    code, text = prepared(tmp_path, capsys, **words)
    assert code == 2 and message in text and text.startswith("degan: ") and text.count("\n") == 1
    assert asked == []
