"""Metrics: the distance against closed forms and torchmetrics, the cached classifier, the evaluator."""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from config.settings.data import Data
from config.settings.experiment import Experiment
from config.settings.models import Dcgan, Mlp
from config.settings.run import Run
from degan.data import load
from degan.data.base import ImageSource
from degan.errors import CacheError, DataError
from degan.metrics import Evaluator
from degan.metrics import classifier as classifiers
from degan.metrics.frechet import Gaussian, distance, fit
from tests.forks import Fork
from tests.workers import read_text, wait_for


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "classifiers"


# --- the Frechet distance -----------------------------------------------------------------------


def gaussian(mean, covariance):
    return Gaussian(np.array(mean, dtype=float), np.array(covariance, dtype=float), 1000)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 9), st.floats(-9, 9), st.floats(0, 9)), min_size=1, max_size=6)
)
def test_diagonal_gaussians_have_their_closed_form(rows):
    mean_a, std_a, mean_b, std_b = np.array(rows).T
    a, b = gaussian(mean_a, np.diag(std_a**2)), gaussian(mean_b, np.diag(std_b**2))
    closed = np.sum((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2)
    assert distance(a, b) == pytest.approx(closed, rel=1e-9, abs=1e-4)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9, abs=1e-9)


def test_it_agrees_with_the_matrix_root_where_that_is_sound():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(1)
    a, b = (fit(random.standard_normal((500, 12)) @ random.standard_normal((12, 12))) for _ in range(2))
    root = sqrtm(a.covariance @ b.covariance).real
    plain = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert distance(a, b) == pytest.approx(plain, rel=1e-9)


def test_a_turn_of_the_axes_changes_nothing():
    random = np.random.default_rng(2)
    one, other = random.standard_normal((80, 6)), random.standard_normal((90, 6)) * 2 + 1
    turn = np.linalg.qr(random.standard_normal((6, 6)))[0]
    assert distance(fit(one @ turn), fit(other @ turn)) == pytest.approx(distance(fit(one), fit(other)), rel=1e-9)


def test_singular_covariances_are_no_trouble():
    random = np.random.default_rng(3)
    few = random.standard_normal((10, 40)).astype(np.float32)  # Rank 9 of 40.
    few[:, 5] = 0
    same = fit(few)
    assert distance(same, same) == pytest.approx(0, abs=1e-9)
    moved = fit(few + np.float32(2))
    assert distance(same, moved) == pytest.approx(4 * 40, rel=1e-5)
    nothing = fit(np.zeros((5, 40)))
    assert distance(same, nothing) == pytest.approx(np.trace(same.covariance) + np.sum(same.mean**2), rel=1e-9)


def test_fit_is_numpys_mean_and_covariance():
    features = np.random.default_rng(4).standard_normal((30, 5)).astype(np.float32)
    fitted = fit(features)
    assert fitted.covariance.dtype == np.float64
    assert fitted.count == 30
    assert np.allclose(fitted.mean, features.mean(axis=0), atol=1e-6)
    assert np.allclose(fitted.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_values_that_are_not_finite_give_nan_and_sizes_that_do_not_fit_are_refused():
    a = gaussian([0.0], [[1.0]])
    assert math.isnan(distance(a, gaussian([math.nan], [[1.0]])))
    with pytest.raises(ValueError, match="cannot be compared"):
        distance(a, gaussian([0.0, 0.0], np.eye(2)))
    with pytest.raises(ValueError, match="n >= 2"):
        fit(np.zeros((1, 3)))


def test_it_agrees_with_torchmetrics_on_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Rows(torch.nn.Module):
        num_features = 16

        def forward(self, images):
            return images.flatten(1)[:, :16].double()

    torch.manual_seed(0)
    real, fake = torch.randn(400, 1, 4, 4), torch.randn(300, 1, 4, 4) * 1.3 + 0.2
    theirs = FrechetInceptionDistance(feature=Rows(), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = distance(fit(real.flatten(1).numpy()), fit(fake.flatten(1).numpy()))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


# --- the classifier -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load(Data(name="digits"), 8, "train"), load(Data(name="digits"), 8, "test")


@pytest.fixture(scope="module")
def trained(digits):
    return classifiers.train_classifier(digits[0])


def test_it_learns_the_digits_and_gives_64_features(digits, trained):
    assert trained.accuracy(digits[1]) > 0.95
    features = trained.features(digits[1].take([0, 1, 2]))
    assert features.shape == (3, 64)
    assert features.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    alone = torch.cat([trained.features(digits[1].take([index])) for index in range(3)])
    assert torch.allclose(alone, features, atol=1e-5), "a sample's features do not depend on those beside it"


def test_it_is_cached_and_the_callers_random_state_is_untouched(digits, trained, cache, monkeypatch):
    torch.manual_seed(77)
    np.random.seed(77)
    threads, state, numpys = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        first = classifiers.obtain(digits[0])
    monkeypatch.setattr(classifiers, "train_classifier", lambda train: pytest.fail("trained twice"))
    again = classifiers.obtain(digits[0])
    assert not first.training and not again.training
    assert not any(parameter.requires_grad for one in (first, again) for parameter in one.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert torch.get_num_threads() == threads
    for name, value in trained.state_dict().items():
        assert torch.equal(value, first.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    assert len(list(cache.glob("*.safetensors"))) == 1
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_cache_file_is_trained_again(cache, damage, caplog):
    train = ImageSource(np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)), np.arange(40) % 2, ["a", "b"])
    classifiers.obtain(train)
    (path,) = cache.glob("*.safetensors")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        save_file({"x": torch.zeros(1)}, path)
    classifiers.obtain(train)
    assert "training the classifier again" in caplog.text
    assert path.read_bytes() == whole


def test_other_data_has_another_classifier(cache):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    for labels in (np.arange(40) % 2, np.arange(40) % 4 // 2):
        classifiers.obtain(ImageSource(pixels, labels, ["a", "b"]))
    classifiers.obtain(ImageSource(pixels, np.arange(40) % 2, ["a", "b", "c"]))
    assert len(list(cache.glob("*.safetensors"))) == 3


def test_large_images_and_few_samples(cache):
    source = ImageSource(np.zeros((5, 3, 64, 64), np.uint8), [0, 1, 0, 1, 0], ["a", "b"])
    assert classifiers.obtain(source).features(source.take([0, 1])).shape == (2, 64)
    with pytest.raises(DataError, match="cannot learn from 1 training samples"):
        classifiers.obtain(ImageSource(np.zeros((1, 3, 8, 8), np.uint8), [0], ["a"]))


def ask(folder: str, number: int) -> None:
    """In a process of its own: obtain the classifier, and write the log and a sum of the weights to a file."""
    log, go = Path(folder) / f"{number}.txt", Path(folder) / "go"
    logging.basicConfig(filename=log, level=logging.INFO)
    train = load(Data(name="gaussian-ring"), 28, "train")
    logging.info("ready")
    wait_for(go.exists, "the word to go")
    logging.info("sum %r", sum(float(p.double().sum()) for p in classifiers.obtain(train).parameters()))


def test_two_processes_that_ask_at_once_train_once(cache, tmp_path):
    askers = [Fork(ask, str(tmp_path), number) for number in range(2)]
    logs = [tmp_path / f"{number}.txt" for number in range(2)]
    try:
        wait_for(lambda: all("ready" in read_text(log) for log in logs), "both processes")
        (tmp_path / "go").touch()
        assert [asker.join(60) for asker in askers] == [0, 0]
    finally:
        for asker in askers:
            asker.kill()
    output = "".join(read_text(log) for log in logs)
    assert output.count("training the classifier for the metrics") == 1
    assert len(set(re.findall("sum .*", output))) == 1 and output.count("sum ") == 2


def test_a_cache_that_cannot_be_used_names_the_setting(tmp_path, monkeypatch, digits):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEGAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="set DEGAN_CACHE"):
        classifiers.obtain(digits[0])


def test_a_lock_that_is_held_for_too_long_is_an_error(tmp_path):
    from degan.data.files import locked

    with (
        locked(tmp_path / "lock", 1.0, "first"),
        pytest.raises(CacheError, match="another process holds"),
        locked(tmp_path / "lock", 0.0, "second"),
    ):
        pass


# --- the evaluator ------------------------------------------------------------------------------


def experiment(name="gaussian-ring", samples=600, model=None):
    return Experiment(name="try", data=Data(name=name), model=model or Mlp(), run=Run(evaluate_samples=samples))


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


def feed(samples):
    """A sampler that walks through `samples` in a loop."""
    position = 0

    def sample(count):
        nonlocal position
        chosen = np.arange(position, position + count) % len(samples)
        position += count
        return samples[chosen]

    return sample


@pytest.fixture(scope="module")
def ring_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def ring(ring_cache):
    """An evaluator of the ring, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEGAN_CACHE", ring_cache)
        evaluator = Evaluator(experiment())
        assert evaluator.classes == 8
    return evaluator


def plain_frechet(one, other):
    """The distance of two sets of features by numpy alone, with the root's trace from the product's eigenvalues."""
    a, b = (np.cov(features.astype(np.float64), rowvar=False) for features in (one, other))
    roots = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0))
    apart = one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    return float(apart @ apart + np.trace(a) + np.trace(b) - 2 * roots.sum())


def test_real_samples_score_near_the_floor_and_cover_everything(ring, ring_cache, monkeypatch):
    train, test = (load(Data(name="gaussian-ring"), 28, part) for part in ("train", "test"))
    metrics = ring.evaluate(feed(train.take(np.arange(600, 1200))))
    names = ["fid600_classifier", "fid600_classifier_floor", "coverage600_classes", "tv600_labels", "classes"]
    assert [metric.name for metric in metrics] == names
    got = values(metrics)
    assert (got["coverage600_classes"], got["classes"]) == (8, 8)
    assert got["tv600_labels"] < 0.01
    assert all(metric.seconds >= 0 and metric.weights_sha256 is None for metric in metrics)

    # The evaluator has trained the network of the training part, which is in the cache under that part's name.
    monkeypatch.setenv("DEGAN_CACHE", ring_cache)
    monkeypatch.setattr(classifiers, "train_classifier", lambda train: pytest.fail("of other data"))
    feature_network = classifiers.obtain(train)
    everything, whole_test = (
        feature_network.features(source.take(np.arange(len(source)))).numpy() for source in (train, test)
    )
    mine, drawn = everything[600:1200], everything[np.random.default_rng(1009).permutation(8192)[:600]]
    fid, floor = plain_frechet(mine, whole_test), plain_frechet(drawn, whole_test)
    # The values of wrong references differ from the right value by far more than a rounding.
    assert abs(plain_frechet(mine, everything) - fid) > 0.03 * fid
    assert abs(plain_frechet(mine, whole_test[:600]) - fid) > 0.03 * fid
    assert abs(plain_frechet(everything, whole_test) - floor) > 0.03 * floor
    assert got["fid600_classifier"] == pytest.approx(fid, rel=0.01)
    assert got["fid600_classifier_floor"] == pytest.approx(floor, rel=0.01)


def test_missing_modes_and_wrong_samples_are_seen(ring):
    train = load(Data(name="gaussian-ring"), 28, "train")
    half = train.take(np.flatnonzero(train.labels < 4))
    got = values(ring.evaluate(feed(half)))
    assert got["coverage600_classes"] == 4
    assert got["tv600_labels"] == pytest.approx(0.5)
    noise = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    floor = got["fid600_classifier_floor"]
    assert got["fid600_classifier"] > 10 * floor
    assert values(ring.evaluate(feed(noise)))["fid600_classifier"] > 10 * floor


def test_a_class_is_covered_from_a_tenth_of_its_share(ring):
    train = load(Data(name="gaussian-ring"), 28, "train")
    zeros, ones = (np.flatnonzero(train.labels == mode)[:600] for mode in (0, 1))
    for rare, covered in ((7, 1), (8, 2)):  # A tenth of an eighth of 600 is 7.5.
        samples = train.take(np.concatenate([ones[:rare], zeros[: 600 - rare]]))
        assert values(ring.evaluate(feed(samples)))["coverage600_classes"] == covered


def test_a_diverged_generator_gives_nan_and_the_floor_stays(ring, caplog):
    got = values(ring.evaluate(lambda count: torch.full((count, 2), math.nan)))
    assert math.isnan(got["fid600_classifier"]) and math.isnan(got["tv600_labels"])
    assert math.isfinite(got["fid600_classifier_floor"])
    assert "not finite" in caplog.text


def test_samples_of_another_shape_are_refused(ring):
    with pytest.raises(ValueError, match=r"expected samples \(250, 2\), got \(250, 3\)"):
        ring.evaluate(lambda count: torch.zeros(count, 3))


def test_the_sampler_is_asked_for_exactly_n_without_gradients(ring):
    asked = []

    def sample(count):
        asked.append((count, torch.is_grad_enabled()))
        return torch.zeros(count, 2)

    ring.evaluate(sample)
    assert asked == [(250, False), (250, False), (100, False)]


def test_missing_data_is_the_data_floors_error(cache, tmp_path):
    missing = Experiment(name="try", data=Data(name="mnist", root=str(tmp_path)), model=Dcgan())
    with pytest.raises(DataError, match="data.download=true"):
        Evaluator(missing).evaluate(feed(torch.zeros(10, 1, 32, 32)))


@pytest.mark.slow
@pytest.mark.skipif("DEGAN_TEST_DATA" not in os.environ, reason="DEGAN_TEST_DATA names no folder with MNIST")
def test_the_classifier_is_good_at_mnist(cache):
    data = Data(name="mnist", root=os.environ["DEGAN_TEST_DATA"])
    assert classifiers.obtain(load(data, 32, "train")).accuracy(load(data, 32, "test")) >= 0.98
