"""The training of the metrics' classifier: its samples, labels and rate; and its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from degan.data.base import ImageSource, PointSource
from degan.metrics import classifier as classifiers
from degan.metrics.classifier import Classifier, train_classifier


class Watched(PointSource):
    """Points that note the indices of the taken ones."""

    def __init__(self, points, labels, classes):
        super().__init__(points, labels, classes)
        self.taken: list[list[int]] = []

    def take(self, indices):
        self.taken.append(list(indices))
        return super().take(indices)


def points(count: int) -> Watched:
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, count)
    return Watched(random.normal(labels[:, None] / 2 - 0.5, 0.05, (count, 2)), labels, "abc")


@pytest.mark.parametrize(("count", "batch", "batches"), [(300, 128, 2), (128, 128, 1), (50, 50, 1)])
def test_it_learns_every_sample_with_its_own_label_in_new_order_each_epoch(monkeypatch, count, batch, batches):
    source, answers = points(count), []

    def watched(scores, labels):
        answers.append(labels.tolist())
        return F.cross_entropy(scores, labels)

    monkeypatch.setattr(classifiers, "F", type("", (), {"cross_entropy": staticmethod(watched)}))
    train_classifier(source)
    # The classifier sees so few samples 25 times; more epochs would overfit.
    assert len(source.taken) == 25 * batches and all(len(taken) == batch for taken in source.taken)
    assert answers == [source.labels[taken].tolist() for taken in source.taken]
    epochs = [sum(source.taken[start : start + batches], []) for start in range(0, len(source.taken), batches)]
    assert all(len(set(epoch)) == batch * batches for epoch in epochs), "no sample twice in an epoch"
    assert len({tuple(epoch) for epoch in epochs}) == 25
    assert set(sum(epochs, [])) == set(range(count))


def test_the_learnt_classes_hold_for_samples_that_it_has_not_seen():
    learnt = train_classifier(points(300))
    random = np.random.default_rng(2)
    labels = random.integers(0, 3, 1100)
    unseen = PointSource(random.normal(labels[:, None] / 2 - 0.5, 0.05, (1100, 2)), labels, "abc")
    assert learnt.accuracy(unseen) > 0.99
    # One sample in ten has a wrong label, in the last of three batches too.
    unseen.labels = np.where(np.arange(1100) % 10 == 9, (labels + 1) % 3, labels)
    answers = learnt(unseen.take(np.arange(1100))).argmax(dim=1).numpy()
    right = (answers == unseen.labels).mean()
    assert 0.85 < right < 0.92 and learnt.accuracy(unseen) == pytest.approx(right)


def test_the_rate_rises_over_a_fifth_and_falls_to_nothing():
    rates = [classifiers._schedule(progress) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_rates_reach_the_optimiser(monkeypatch):
    used = []

    class Watching(torch.optim.AdamW):
        def step(self):
            used.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Watching)
    train_classifier(points(128))
    assert used == pytest.approx([4e-3 * min(step / 5, (25 - step) / 20) for step in range(25)])


def test_neither_random_state_nor_grad_mode_nor_threads_change():
    source = points(128)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(4)
        state = torch.get_rng_state()
        with torch.inference_mode():
            first = train_classifier(source)
            assert torch.is_inference_mode_enabled() and torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(5)
        second = train_classifier(source)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(mine, second.state_dict()[name]) for name, mine in first.state_dict().items())


@pytest.mark.parametrize(("side", "factor"), [(64, 2), (96, 3)])
def test_large_images_are_averaged_down_to_32(side, factor):
    torch.manual_seed(0)
    network = Classifier((3, side, side), 4).eval()
    samples = torch.rand(2, 3, side, side) * 2 - 1
    expected = network.trunk(F.avg_pool2d(samples, factor))
    assert torch.allclose(network.features(samples), expected, atol=1e-5)
    assert torch.allclose(network(samples), network.head(expected), atol=1e-5)


def test_every_sample_is_seen_by_itself():
    pixels = np.random.default_rng(3).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    source = ImageSource(pixels, np.arange(60) % 2, "ab")
    learnt = train_classifier(source)
    together = learnt.features(source.take(np.arange(60)))
    alone = torch.cat([learnt.features(source.take([index])) for index in range(60)])
    assert torch.allclose(alone, together, atol=1e-4) and float(together.std()) > 0.1
    assert not learnt.training and not any(one.requires_grad for one in learnt.parameters())


def test_another_pixel_label_name_or_shape_is_another_classifier():
    pixels = np.random.default_rng(0).integers(1, 255, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    changed, turned = pixels.copy(), labels.copy()
    changed[-1, 0, -1, -1] += 1
    turned[-1] = 0
    sources = [
        ImageSource(pixels, labels, "ab"),
        ImageSource(changed, labels, "ab"),
        ImageSource(pixels, turned, "ab"),
        ImageSource(pixels, labels, "abc"),
        ImageSource(pixels, labels, "ba"),
        ImageSource(pixels.reshape(40, 4, 4, 4), labels, "ab"),
        ImageSource(pixels[:-1], labels[:-1], "ab"),
    ]
    assert len({classifiers._key(source) for source in sources}) == len(sources)
    again = ImageSource(pixels.copy(), labels.tolist(), ("a", "b"))
    assert classifiers._key(again) == classifiers._key(sources[0])
