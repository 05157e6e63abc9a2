"""Inception features from weights files of both kinds, and the evaluator's metrics with them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config.settings.data import Data
from config.settings.experiment import Experiment
from config.settings.models import Mlp
from config.settings.run import Run
from degan.data import load
from degan.data.base import ImageSource
from degan.errors import WeightsError
from degan.metrics import METRICS, Definition, Evaluator
from degan.metrics.inception import InceptionFeatures


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def inception_states():
    """Randomly initialised state dicts: torchvision's with its auxiliary head, and the FID kind."""
    import torchvision

    torch.manual_seed(3)
    states = {}
    for kind, outputs, head in (("torchvision", 1000, True), ("fid", 1008, False)):
        network = torchvision.models.inception_v3(
            weights=None, num_classes=outputs, aux_logits=head, init_weights=False, transform_input=False
        )
        states[kind] = network.state_dict()
    states["fid"] = {k: v for k, v in states["fid"].items() if not k.endswith("num_batches_tracked")}
    return states


@pytest.fixture(scope="module")
def inception_files(inception_states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(inception_states["torchvision"], folder / "torchvision.pth")
    save_file(inception_states["fid"], folder / "fid.safetensors")
    return {"torchvision": folder / "torchvision.pth", "fid": folder / "fid.safetensors"}


def test_torchvisions_kind_gives_torchvisions_features(inception_states, inception_files):
    import torchvision

    ours = InceptionFeatures(inception_files["torchvision"])
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True)
    theirs.load_state_dict(inception_states["torchvision"])
    theirs.fc = torch.nn.Identity()
    theirs.eval()
    images = torch.rand(2, 3, 299, 299) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = theirs(normalised)
    assert ours.kind == "torchvision"
    assert torch.allclose(ours.features(images), expected, rtol=1e-3, atol=1e-4)


def test_the_fid_kind_differs_in_its_pools_and_takes_grey_images(inception_states, inception_files, tmp_path):
    ours = InceptionFeatures(inception_files["fid"])
    assert ours.kind == "fid"
    assert len(ours.sha256) == 64
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    features = ours.features(grey)
    assert features.shape == (2, 2048)
    assert torch.isfinite(features).all()
    assert torch.allclose(features, ours.features(grey.repeat(1, 3, 1, 1)))
    renamed = {**inception_states["fid"], "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(renamed, tmp_path / "same.pth")
    other = InceptionFeatures(tmp_path / "same.pth").features(grey)
    assert not torch.allclose(features, other, rtol=1e-2)


def test_the_fid_kinds_pools_are_those_of_the_tensorflow_network():
    from degan.metrics import inception

    x = torch.randn(1, 2, 5, 5).abs() + 1
    average = inception._average(torch.ones(1, 1, 4, 4))
    assert torch.allclose(average, torch.ones_like(average))  # The border adds no zeros.
    assert inception._InceptionEMax.pool(None, x).max() == x.max()
    assert torch.allclose(inception._InceptionEAverage.pool(None, x), inception._average(x))


def test_the_fid_kind_has_those_pools_in_all_of_its_blocks():
    """Each block is torchvision's with another pool, at the place of the TensorFlow network."""
    from torchvision.models import inception as theirs

    from degan.metrics import inception as ours

    plain = torch.nn.functional.avg_pool2d

    def without_border(x, kernel_size, stride, padding):
        assert (kernel_size, stride, padding) == (3, 1, 1)
        return plain(x, 3, 1, 1, count_include_pad=False)

    def largest(x, kernel_size, stride, padding):
        return torch.nn.functional.max_pool2d(x, kernel_size, stride, padding)

    torch.manual_seed(1)
    for make, base, pool in (
        (lambda: ours._InceptionA(8, pool_features=4), theirs.InceptionA, without_border),
        (lambda: ours._InceptionC(8, channels_7x7=4), theirs.InceptionC, without_border),
        (lambda: ours._InceptionEAverage(8), theirs.InceptionE, without_border),
        (lambda: ours._InceptionEMax(8), theirs.InceptionE, largest),
    ):
        block, x = make().eval(), torch.randn(1, 8, 5, 5)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(theirs.F, "avg_pool2d", pool)
            expected = base.forward(block, x)
        with torch.no_grad():
            assert torch.allclose(block(x), expected, atol=1e-6)
    with torch.device("meta"):
        networks = {kind: ours._Pool3(kind) for kind in ("fid", "torchvision")}
    placed = {kind: {n: type(m).__name__ for n, m in one.named_children()} for kind, one in networks.items()}
    for names, kind in ((("5b", "5c", "5d"), "A"), (("6b", "6c", "6d", "6e"), "C")):
        assert {placed["fid"][f"Mixed_{name}"] for name in names} == {f"_Inception{kind}"}
        assert {placed["torchvision"][f"Mixed_{name}"] for name in names} == {f"Inception{kind}"}
    assert (placed["fid"]["Mixed_7b"], placed["fid"]["Mixed_7c"]) == ("_InceptionEAverage", "_InceptionEMax")
    assert placed["torchvision"]["Mixed_7b"] == placed["torchvision"]["Mixed_7c"] == "InceptionE"


def test_images_are_resized_bilinearly_without_aligned_corners():
    feature_network = InceptionFeatures.__new__(InceptionFeatures)
    feature_network._device, feature_network._network = torch.device("cpu"), torch.nn.Identity()
    grey = torch.rand(2, 1, 13, 13, generator=torch.Generator().manual_seed(2)) * 2 - 1
    seen = feature_network.features(grey)
    assert seen.shape == (2, 3, 299, 299) and torch.equal(seen[:, 0], seen[:, 2])
    # 299 is 23 times 13: the middle of a pixel has the pixel's value; half-way to the next one is the mean of both.
    middle = slice(11, None, 23)
    assert torch.allclose(seen[:, :1, middle, middle], grey, atol=1e-6)
    between = (seen[:, 0, 11, 22] + seen[:, 0, 11, 23]) / 2
    assert torch.allclose(between, (grey[:, 0, 0, 0] + grey[:, 0, 0, 1]) / 2, atol=1e-6)
    assert torch.allclose(seen[:, 0, 0, 0], grey[:, 0, 0, 0]), "the border repeats"
    large = torch.rand(1, 3, 598, 598, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(feature_network.features(large), torch.nn.functional.avg_pool2d(large, 2), atol=1e-6)


def test_a_wrong_weights_file_is_one_clear_line(inception_states, tmp_path):
    def words(name):
        with pytest.raises(WeightsError) as caught, warnings.catch_warnings():
            warnings.simplefilter("error")
            InceptionFeatures(tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no Inception weights file" in words("nothing.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    assert "not a state dict" in words("noise.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    assert "not a state dict" in words("noise.safetensors")
    torch.save({"state": 3}, tmp_path / "number.pth")
    assert "not a state dict" in words("number.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    assert "not a state dict" in words("module.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "no layer fc" in words("other.safetensors")
    torch.save({"fc.weight": torch.zeros(10, 2048)}, tmp_path / "ten.pth")
    assert "fc.weight of shape (10, 2048), not 1000 or 1008 outputs" in words("ten.pth")
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "bare.pth")
    assert "should be (32, 3, 3, 3), is nothing" in words("bare.pth")
    torch.save({**inception_states["fid"], "extra": torch.zeros(2)}, tmp_path / "extra.pth")
    assert "extra should be nothing, is (2,)" in words("extra.pth")


# --- in the evaluator ---------------------------------------------------------------------------


def experiment(name):
    return Experiment(name="try", data=Data(name=name), model=Mlp(image_size=8), run=Run(evaluate_samples=4))


def test_a_persons_own_metric_and_both_inception_ones(cache, inception_files, monkeypatch):
    # There are few images because Inception is slow.
    digits = {part: load(Data(name="digits"), 8, part) for part in ("train", "test")}
    few = {
        part: ImageSource((source.take(np.arange(4)).numpy() * 127 + 128), source.labels[:4], source.classes)
        for part, source in digits.items()
    }
    monkeypatch.setattr("degan.metrics.evaluate.load", lambda data, size, part: few[part])
    # A distance over all 2,048 features takes seconds.
    whole = InceptionFeatures.features
    monkeypatch.setattr(InceptionFeatures, "features", lambda self, samples: whole(self, samples)[:, :32])
    mine = Definition("mean{n}", "classifier", lambda evidence: float(len(evidence.generated.labels)))
    evaluator = Evaluator(experiment("digits"), inception_files["fid"], metrics=(*METRICS, mine))
    metrics = evaluator.evaluate(lambda count: few["train"].take(np.arange(count)))
    assert [metric.name for metric in metrics][-3:] == ["fid4_inception", "fid4_inception_floor", "mean4"]
    by_name = {metric.name: metric for metric in metrics}
    assert by_name["mean4"].value == 4
    assert by_name["fid4_inception"].value >= 0
    assert by_name["fid4_inception"].weights_sha256 == InceptionFeatures(inception_files["fid"]).sha256
    assert by_name["fid4_classifier"].weights_sha256 is None


def test_weights_for_points_or_a_wrong_path_are_errors(cache, inception_files):
    with pytest.raises(WeightsError, match="no Inception weights file"):
        Evaluator(experiment("gaussian-ring"), "nowhere.pth")
    with pytest.raises(WeightsError, match="gaussian-ring has points"):
        Evaluator(experiment("gaussian-ring"), inception_files["fid"]).evaluate(lambda count: torch.zeros(count, 2))
