"""The comparisons of the metrics: by hand, on planted data, with feature networks that return a row of the picture."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import config
from degan.data.base import ImageSource
from degan.errors import DataError
from degan.metrics import Evaluator

# The label of the planted classifier is the quadrant in which the two features lie.
CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
COUNT = 300


class FeatureNetwork(torch.nn.Module):
    """The features of a 2 x 2 picture are one of its rows."""

    sha256 = "5" * 64

    def __init__(self, row: int):
        super().__init__()
        self.row = row

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return samples[:, 0, self.row].clone()

    def head(self, values: torch.Tensor) -> torch.Tensor:
        return values @ CORNERS.T


def pictures(seed: int, shares: list[int], stretch: float) -> np.ndarray:
    """Pictures, uint8 (n, 1, 2, 2): the first row of `shares[c]` ones lies in quadrant c; the second row is random."""
    random = np.random.default_rng(seed)
    rows = [
        127.5 + CORNERS[corner].numpy() * random.uniform(5, 5 + 100 * stretch, (count, 2))
        for corner, count in enumerate(shares)
    ]
    rows = random.permutation(np.concatenate(rows))
    others = np.clip(random.normal(100 + 40 * stretch, 20, rows.shape), 0, 255)
    return np.rint(np.stack([rows, others], axis=1)).astype(np.uint8)[:, None]


def by_hand(pixels: np.ndarray, row: int) -> np.ndarray:
    return pixels[:, 0, row] / 127.5 - 1


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The Frechet distance; for two features the root's trace has a closed form: sqrt(tr AB + 2 sqrt(det AB))."""
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    return float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2) + np.trace(a) + np.trace(b) - 2 * root)


# No test picture lies in the last quadrant.
TEST = pictures(1, [250, 150, 100, 0], 0.5)
TRAIN = pictures(2, [100, 200, 300, 300], 1.0)
FAKE = pictures(3, [15, 200, 5, 80], 0.8)


class Planted:
    """An evaluator on the planted data, with notes of the data that it loads."""

    def __init__(self, patch, train=TRAIN, test=TEST, with_inception=True, **words):
        self.loaded, self.learnt = [], []
        # The labels of the files are wrong: the classifier's own count.
        self.parts = {"train": train, "test": test}
        self.sources = {
            part: ImageSource(pixels, np.zeros(len(pixels)), ["a", "b", "c", "d"])
            for part, pixels in self.parts.items()
        }
        patch.setattr("degan.metrics.evaluate.load", self.load)
        patch.setattr("degan.metrics.classifier.obtain", self.obtain)
        # A stand-in for the module that loads torchvision's models.
        patch.setitem(
            sys.modules, "degan.metrics.inception", SimpleNamespace(InceptionFeatures=lambda *words: FeatureNetwork(1))
        )
        settings = config.build(
            {
                "name": "planted",
                "data": {"name": "mnist"},
                "model": {"name": "mlp", "image_size": 4},
                "run": {"evaluate_samples": COUNT},
            }
        )
        self.evaluator = Evaluator(settings, "weights.pth" if with_inception else None, **words)

    def load(self, data, image_size, part):
        assert (data.name, image_size) == ("mnist", 4)
        self.loaded.append(part)
        return self.sources[part]

    def obtain(self, source):
        self.learnt.append(source)
        return FeatureNetwork(0)

    def measure(self, pixels) -> dict:
        """The metrics by name; the sampler walks once through `pixels`."""
        left = torch.from_numpy(pixels / 127.5 - 1).to(torch.float32)

        def sample(count):
            nonlocal left
            given, left = left[:count], left[count:]
            return given

        found = {metric.name: metric for metric in self.evaluator.evaluate(sample)}
        assert len(left) == 0
        return found


@pytest.fixture
def plant(monkeypatch):
    return lambda **words: Planted(monkeypatch, **words)


def test_samples_and_the_floor_are_measured_against_the_test_part(plant):
    planted = plant()
    found = planted.measure(FAKE)
    real = TRAIN[np.random.default_rng(1009).permutation(len(TRAIN))[:COUNT]]
    for row, feature_network in enumerate(("classifier", "inception")):
        fake, whole_test, some_train = (by_hand(pixels, row) for pixels in (FAKE, TEST, real))
        fid, floor = found[f"fid300_{feature_network}"], found[f"fid300_{feature_network}_floor"]
        assert fid.value == pytest.approx(frechet(fake, whole_test), rel=1e-4)
        assert floor.value == pytest.approx(frechet(some_train, whole_test), rel=1e-4)
        # The values of likely mistakes are far from both.
        others = [frechet(fake, by_hand(TRAIN, row)), frechet(fake, some_train), frechet(fake, whole_test[:COUNT])]
        others += [frechet(by_hand(TRAIN, row), whole_test), frechet(by_hand(TRAIN[:COUNT], row), whole_test)]
        for value in others:
            assert all(abs(value - metric.value) > 1e-3 * metric.value for metric in (fid, floor))
        for metric in (fid, floor):
            assert metric.weights_sha256 == ("5" * 64 if feature_network == "inception" else None)


def test_labels_are_compared_with_the_test_parts_as_the_classifier_sees_it(plant):
    found = plant().measure(FAKE)
    # The test part has the shares 0.5, 0.3, 0.2, 0; a tenth of them is 15, 9 and 6 of 300.
    assert found["coverage300_classes"].value == 2, "15 and 200 are enough, 5 are not; the last is never in the test"
    shares, wanted = np.array([15, 200, 5, 80]) / 300, np.array([0.5, 0.3, 0.2, 0])
    assert found["tv300_labels"].value == pytest.approx(np.abs(shares - wanted).sum() / 2)
    assert found["classes"].value == 4


@pytest.mark.parametrize(("counts", "covered"), [([14, 280, 6, 0], 2), ([285, 9, 6, 0], 3), ([285, 8, 7, 0], 2)])
def test_a_class_is_covered_from_a_tenth_of_its_own_share(plant, counts, covered):
    found = plant(with_inception=False).measure(pictures(4, counts, 0.5))
    assert found["coverage300_classes"].value == covered


def test_the_classifier_learns_from_the_training_part_and_only_that(plant):
    planted = plant()
    planted.measure(FAKE)
    assert planted.learnt == [planted.sources["train"]] and sorted(planted.loaded) == ["test", "train"]


def test_a_training_part_that_is_there_already_is_not_loaded_again(plant):
    mine = ImageSource(TRAIN[::-1], np.zeros(len(TRAIN)), ["a", "b", "c", "d"])
    planted = plant(train=TEST, with_inception=False)
    planted.evaluator = Evaluator(planted.evaluator._settings, train=mine)
    found = planted.measure(FAKE)
    assert planted.learnt == [mine] and planted.loaded == ["test"]
    real = TRAIN[::-1][np.random.default_rng(1009).permutation(len(TRAIN))[:COUNT]]
    assert found["fid300_classifier_floor"].value == pytest.approx(
        frechet(by_hand(real, 0), by_hand(TEST, 0)), rel=1e-4
    )


def test_the_floor_takes_all_training_samples_where_there_are_fewer(plant):
    found = plant(train=TRAIN[:90]).measure(FAKE)
    for row, feature_network in enumerate(("classifier", "inception")):
        expected = frechet(by_hand(TRAIN[:90], row), by_hand(TEST, row))
        assert found[f"fid300_{feature_network}_floor"].value == pytest.approx(expected, rel=1e-4)


def test_each_evaluation_sees_its_own_samples_and_the_same_standards(plant):
    planted, other = plant(), pictures(5, [100, 50, 100, 50], 0.2)
    first, second = planted.measure(FAKE), planted.measure(other)
    assert len(planted.learnt) == 1 and len(planted.loaded) == 2, "the real data is looked at once"
    assert second["fid300_classifier"].value == pytest.approx(frechet(by_hand(other, 0), by_hand(TEST, 0)), rel=1e-4)
    assert second["fid300_inception"].value == pytest.approx(frechet(by_hand(other, 1), by_hand(TEST, 1)), rel=1e-4)
    for name in ("fid300_classifier_floor", "fid300_inception_floor", "classes"):
        assert second[name].value == first[name].value
    assert second["coverage300_classes"].value == 3
    # An evaluator that copied the constants of an evaluation would copy their seconds too.
    assert all(metric.seconds >= 0 for metric in second.values())


@pytest.mark.parametrize("spoilt", [0, 1])
def test_a_sample_that_is_not_finite_spoils_this_evaluation_only(plant, spoilt):
    planted = plant()
    batches = [torch.zeros(250, 1, 2, 2), torch.zeros(50, 1, 2, 2)]
    batches[spoilt][7, 0, 1, 1] = math.inf
    left = iter(batches)
    found = {metric.name: metric.value for metric in planted.evaluator.evaluate(lambda count: next(left))}
    changing = [name for name in found if not name.endswith("floor") and name != "classes"]
    assert changing and all(math.isnan(found[name]) for name in changing)
    assert all(math.isfinite(value) for name, value in found.items() if name not in changing)
    assert math.isfinite(planted.measure(FAKE)["fid300_classifier"].value)


def test_a_metrics_seconds_are_those_of_its_own_network_with_the_sampling(plant, monkeypatch):
    now = 100.0

    def spend(seconds, result):
        nonlocal now
        now += seconds
        return result

    planted = plant()
    planted.measure(FAKE)
    monkeypatch.setattr("degan.metrics.evaluate.time.perf_counter", lambda: now)
    for seconds, feature_network in ((1.0, planted.evaluator._classifier), (5.0, planted.evaluator._inception)):
        real = feature_network.features
        monkeypatch.setattr(feature_network, "features", lambda samples, real=real, s=seconds: spend(s, real(samples)))
    left = iter([torch.rand(250, 1, 2, 2), torch.rand(50, 1, 2, 2)])
    found = planted.evaluator.evaluate(lambda count: spend(10.0, next(left)))
    seconds = {metric.name: metric.seconds for metric in found}
    assert seconds["fid300_classifier"] == seconds["tv300_labels"] == 2 * (10 + 1)
    assert seconds["fid300_inception"] == 2 * (10 + 5)


def test_a_test_part_of_one_sample_is_refused_in_one_line(plant):
    with pytest.raises(DataError, match="1 test sample.*; add some") as caught:
        plant(test=TEST[:1], with_inception=False).measure(FAKE)
    assert "\n" not in str(caught.value)
