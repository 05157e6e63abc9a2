"""The metrics of a classifier: accuracy, cross entropy, and the accuracy on each class of the test set.

Every metric is measured on the whole test part, and does not depend on the shard of a worker.

| metric | what | best |
| --- | --- | --- |
| accuracy | the share that is classified correctly | 1 |
| loss | mean cross entropy (nats); null where a logit is not finite | 0 |
| accuracy_by_class | the accuracy on each class, in label order; null for a class without test samples | 1 |
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from config.settings.experiment import Experiment
from degan.data.base import Source
from degan.data.sources import load
from degan.errors import DataError, WeightsError
from degan.metrics.evaluate import Evaluator, Metric

_BATCH_SIZE = 250


class AccuracyEvaluator:
    """Measures classifiers of one experiment.

    Args:
        settings: the experiment's; `data` and the classifier's `image_size` are read.
    """

    def __init__(self, settings: Experiment) -> None:
        self._settings = settings

    @cached_property
    def _test(self) -> Source:
        test = load(self._settings.data, self._settings.image_size, "test")
        if not len(test):
            raise DataError(f"the accuracy needs test samples, and {self._settings.data.name} has none; add some")
        return test

    @property
    def classes(self) -> int:
        """How many classes the data set has."""
        return len(self._test.classes)

    def evaluate(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> list[Metric]:
        """The three metrics of the module's docstring, in that order.

        Args:
            logits: called with samples float32 (k, *sample_shape), k <= 250; gives float32 (k, classes).

        Raises:
            ValueError: logits of another shape.
            DataError: the data set cannot be read, or has no test samples (at the first call).
        """
        began, test = time.perf_counter(), self._test
        right, loss = np.zeros(len(test), dtype=bool), 0.0
        for start in range(0, len(test), _BATCH_SIZE):
            batch = test.batch(np.arange(start, min(start + _BATCH_SIZE, len(test))))
            found = logits(batch.samples)
            if tuple(found.shape) != (len(batch.labels), self.classes):
                raise ValueError(f"expected logits {(len(batch.labels), self.classes)}, got {tuple(found.shape)}")
            # A logit that is not finite gives no answer.
            is_answer = torch.isfinite(found).all(dim=1)
            answers = (found.argmax(dim=1) == batch.labels) & is_answer
            right[start : start + len(answers)] = answers.numpy()
            loss += float(F.cross_entropy(found, batch.labels, reduction="sum"))
        held = np.bincount(test.labels, minlength=self.classes)
        known = np.bincount(test.labels[right], minlength=self.classes)
        by_class = [float(k / n) if n else math.nan for k, n in zip(known, held, strict=True)]
        seconds = time.perf_counter() - began
        return [
            Metric("accuracy", float(right.mean()), seconds),
            Metric("loss", loss / len(test), 0.0),
            Metric("accuracy_by_class", by_class, 0.0),
        ]


def evaluator_of(
    settings: Experiment,
    inception: str | Path | None = None,
    device: str | torch.device = "cpu",
    train: Source | None = None,
) -> Evaluator | AccuracyEvaluator:
    """The evaluator of the experiment's kind of learner; the arguments are those of `Evaluator`.

    Raises:
        WeightsError: the weights file is missing or of another network, or a file is given for a classifier.
    """
    if settings.classifier is None:
        return Evaluator(settings, inception, device=device, train=train)
    if inception is not None:
        raise WeightsError("Inception looks at a generator's samples, and this experiment trains a classifier")
    return AccuracyEvaluator(settings)
