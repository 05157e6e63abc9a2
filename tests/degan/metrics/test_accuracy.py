"""Accuracy, loss and accuracy by class on a test part of seven samples, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from degan.data.base import ImageSource
from degan.errors import DataError, WeightsError
from degan.metrics import accuracy
from degan.metrics.accuracy import AccuracyEvaluator, evaluator_of
from degan.metrics.evaluate import Evaluator, Metric, score
from tests.classifiers import experiment
from tests.degan.learners.test_step import experiment as of_gan

LABELS = [0, 0, 0, 0, 1, 1, 3]


def source_of(labels):
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    return ImageSource(pixels, np.array(labels, dtype=np.int64), ["a", "b", "c", "d"])


@pytest.fixture
def evaluator(monkeypatch):
    """An evaluator of the seven samples, in batches of three."""
    asked = []

    def load(data, image_size, part):
        asked.append((data.name, image_size, part))
        return source_of(LABELS)

    monkeypatch.setattr(accuracy, "load", load)
    monkeypatch.setattr(accuracy, "_BATCH_SIZE", 3)
    found = AccuracyEvaluator(experiment())
    found.asked = asked
    return found


def answers(*wanted, weight=3.0):
    """Logits of log(weight) for the wanted class of each sample by its number, and zeros."""

    def logits(samples):
        numbers = torch.round((samples[:, 0, 0, 0] + 1) * 127.5).long()
        found = torch.zeros(len(samples), 4)
        for row, number in enumerate(numbers.tolist()):
            found[row, wanted[number]] = math.log(weight)
        return found

    return logits


def test_the_metrics_by_hand(evaluator):
    share, loss, by_class = evaluator.evaluate(answers(0, 0, 0, 2, 1, 0, 3))
    assert (share.name, share.value) == ("accuracy", pytest.approx(5 / 7))
    # The wanted class has 3 / 6 of the probability, each other one 1 / 6.
    assert (loss.name, loss.value) == ("loss", pytest.approx((5 * math.log(2) + 2 * math.log(6)) / 7))
    assert by_class.name == "accuracy_by_class"
    assert by_class.value[:2] == [0.75, 0.5] and math.isnan(by_class.value[2]) and by_class.value[3] == 1.0
    assert evaluator.classes == 4 and evaluator.asked == [("digits", 8, "test")], "the test part is loaded once"
    assert share.seconds > 0


def test_a_logit_that_is_not_finite_is_no_answer(evaluator):
    right = answers(*LABELS)

    def logits(samples):
        found = right(samples)
        found[0, 2] = float("nan")
        return found

    share, loss, by_class = evaluator.evaluate(logits)
    # The spoilt answers are those of the first sample of each batch: 0, 3 and 6.
    assert share.value == pytest.approx(4 / 7) and math.isnan(loss.value)
    assert by_class.value[:2] == [0.5, 1.0] and by_class.value[3] == 0.0


def test_logits_of_another_shape_are_refused(evaluator):
    with pytest.raises(ValueError, match=r"expected logits \(3, 4\), got \(3, 5\)"):
        evaluator.evaluate(lambda samples: torch.zeros(len(samples), 5))


def test_data_without_test_samples_is_refused(monkeypatch):
    monkeypatch.setattr(accuracy, "load", lambda *words: source_of([]))
    with pytest.raises(DataError, match="digits has none"):
        AccuracyEvaluator(experiment()).evaluate(answers())


def test_the_learner_decides_which_evaluator_is_used(tmp_path):
    assert isinstance(evaluator_of(experiment()), AccuracyEvaluator)
    assert isinstance(evaluator_of(of_gan()), Evaluator)
    with pytest.raises(WeightsError, match="trains a classifier"):
        evaluator_of(experiment(), tmp_path / "weights")


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"accuracy": 0.75, "loss": 3.0, "accuracy_by_class": [0.5, 1.0]}, 0.25),
        ({"fid64_classifier": 7.0, "fid64_classifier_floor": 1.0, "coverage64_classes": 9.0}, 7.0),
        ({"fid64_classifier": 7.0, "fid64_inception": 5.0, "fid64_inception_floor": 1.0}, 5.0),
        ({"coverage64_classes": 9.0}, None),
    ],
)
def test_the_best_is_the_lowest_score(metrics, expected):
    assert score([Metric(name, value, 0.0) for name, value in metrics.items()]) == expected
