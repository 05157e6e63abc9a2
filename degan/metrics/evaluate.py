"""The metrics by name, and the evaluator that feeds them: samples in, named numbers out.

Every metric is against the whole test set, and does not depend on the shard of a worker. The number n of
generated samples is in a metric's name, because a Frechet distance falls with n.

| metric | what | best |
| --- | --- | --- |
| fid{n}_classifier | Frechet distance, the classifier's features | the floor |
| fid{n}_classifier_floor | the same for n training samples (all, where there are fewer) | - |
| coverage{n}_classes | classes that appear often enough (see `COVERED`) | classes |
| tv{n}_labels | total variation between the label shares, 0 to 1 | 0 |
| classes | classes of the data set | - |
| fid{n}_inception, fid{n}_inception_floor | with a weights file: Inception's features | the floor |

All labels are the classifier's: those of the generated samples and those of the test set. So an error of the
classifier is on both sides.

To add a metric, write a function `(Evidence) -> float` and give the evaluator a longer tuple:
`Evaluator(settings, metrics=(*METRICS, Definition("recall{n}_classifier", "classifier", recall)))`; to have it in
every run, put the line into `METRICS`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from config.settings.experiment import Experiment
from degan.data.base import Source
from degan.data.sources import load
from degan.errors import DataError, WeightsError
from degan.metrics import classifier, frechet

log = logging.getLogger(__name__)

# A class counts as covered from this part of its share in the test set. High enough that blurred samples of other
# classes, which the classifier takes for this class, do not count. Low enough for a class that is learnt late.
COVERED = 0.1

_BATCH_SIZE = 250
_FLOOR_SEED = 1009

FeatureNetwork = Literal["classifier", "inception"]


@dataclass(frozen=True)
class Metric:
    """One result.

    Attributes:
        name: with the sample count.
        value: NaN where the samples are not finite (a diverged generator); a list by class.
        seconds: the time of the metric, with the pass over the samples that metrics of one network share.
        weights_sha256: of the Inception weights file, where the metric uses it.
    """

    name: str
    value: float | list[float]
    seconds: float
    weights_sha256: str | None = None


def score(metrics: Sequence[Metric]) -> float | None:
    """The score of a checkpoint, the lowest is the best; None without a Frechet distance or an accuracy."""
    found = [m.value for m in metrics if m.name.startswith("fid") and not m.name.endswith("floor")]
    found += [1 - m.value for m in metrics if m.name == "accuracy"]
    return found[-1] if found else None


@dataclass(frozen=True)
class Features:
    """A network's features of n samples: values float32 `(n, d)`; labels int64 `(n,)`, none from Inception."""

    values: np.ndarray
    labels: np.ndarray | None

    @cached_property
    def gaussian(self) -> frechet.Gaussian:
        """The Gaussian fitted to the values."""
        return frechet.fit(self.values)


@dataclass(frozen=True)
class Evidence:
    """The features that a metric may use, all from the same network.

    Attributes:
        generated: n generated samples; None for a constant metric.
        reference: the whole test set.
        real: n training samples, or all if there are fewer.
        classes: of the data set.
    """

    generated: Features | None
    reference: Features
    real: Features
    classes: int


@dataclass(frozen=True)
class Definition:
    """One metric of the registry.

    Attributes:
        name: its "{n}" becomes the sample count.
        feature_network: the network of its features; an "inception" metric is left out without a weights file.
        compute: the metric.
        constant: whether the value is the same for every model; then computed once, without generated samples.
    """

    name: str
    feature_network: FeatureNetwork
    compute: Callable[[Evidence], float]
    constant: bool = False


def _fid(evidence: Evidence) -> float:
    return frechet.distance(evidence.generated.gaussian, evidence.reference.gaussian)


def _floor(evidence: Evidence) -> float:
    return frechet.distance(evidence.real.gaussian, evidence.reference.gaussian)


def _counts(features: Features, classes: int) -> np.ndarray:
    """How many samples of each class there are: int64 `(classes,)`."""
    return np.bincount(features.labels, minlength=classes)


def _shares(features: Features, classes: int) -> np.ndarray:
    """Each class's share of the samples: float64 `(classes,)`, sum 1."""
    return _counts(features, classes) / len(features.labels)


def _coverage(evidence: Evidence) -> float:
    """The number of covered classes. A class that the classifier finds nowhere in the test set is never covered."""
    there, made = (_counts(seen, evidence.classes) for seen in (evidence.reference, evidence.generated))
    # Counts are cross-multiplied, because a quotient is rounded: a share of exactly a tenth would not count.
    least = COVERED * (there * len(evidence.generated.labels))
    return float(np.sum((there > 0) & (made * len(evidence.reference.labels) >= least)))


def _total_variation(evidence: Evidence) -> float:
    apart = _shares(evidence.generated, evidence.classes) - _shares(evidence.reference, evidence.classes)
    return float(np.abs(apart).sum() / 2)


def _classes(evidence: Evidence) -> float:
    return float(evidence.classes)


METRICS = (
    Definition("fid{n}_classifier", "classifier", _fid),
    Definition("fid{n}_classifier_floor", "classifier", _floor, constant=True),
    Definition("coverage{n}_classes", "classifier", _coverage),
    Definition("tv{n}_labels", "classifier", _total_variation),
    Definition("classes", "classifier", _classes, constant=True),
    Definition("fid{n}_inception", "inception", _fid),
    Definition("fid{n}_inception_floor", "inception", _floor, constant=True),
)


class Evaluator:
    """Measures models of one experiment; values that do not depend on the model are computed once, when needed.

    Args:
        settings: the experiment's; `data`, `model.image_size` and `run.evaluate_samples` are read.
        inception: a weights file for the `fid{n}_inception` metrics (see `degan.metrics.inception`).
        device: where the feature networks run.
        metrics: the metrics to compute.
        train: the data set's training part, if the caller has loaded it; otherwise loaded when needed.

    Raises:
        WeightsError: the weights file is missing or of another network.
    """

    def __init__(
        self,
        settings: Experiment,
        inception: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        metrics: Sequence[Definition] = METRICS,
        train: Source | None = None,
    ) -> None:
        self._settings = settings
        self._count = settings.run.evaluate_samples
        self._device = torch.device(device)
        self._inception = None
        if inception is not None:
            # torchvision's models take a second and 90 MB, and most workers do not need them.
            from degan.metrics.inception import InceptionFeatures

            self._inception = InceptionFeatures(inception, self._device)
        self._metrics = [one for one in metrics if one.feature_network == "classifier" or self._inception is not None]
        self._train = train
        self._constants: dict[str, Metric] = {}

    @property
    def classes(self) -> int:
        """How many classes the data set has."""
        return self._standards["classifier"].classes

    def evaluate(self, sample: Callable[[int], torch.Tensor]) -> list[Metric]:
        """Every metric, for `run.evaluate_samples` samples, in the registry's order.

        Args:
            sample: called with a count k <= 250 as often as needed, under `no_grad`; gives k new samples,
                float32 `(k, *sample_shape)` in [-1, 1], on any device.

        Raises:
            ValueError: samples of another shape.
            DataError: the data set cannot be read, or has fewer than 2 test samples (at the first call).
            CacheError: the classifier's cache cannot be used (at the first call).
        """
        standards = self._standards
        generated, seen_s = self._look_at_generated(sample)
        return [
            self._constant(one, standards[one.feature_network])
            if one.constant
            else self._measure(one, standards, generated, seen_s)
            for one in self._metrics
        ]

    # --- values that do not depend on the model -------------------------------------------------

    @cached_property
    def _standards(self) -> dict[FeatureNetwork, Evidence]:
        """The features of the test set and of the training samples, from each network."""
        data, size = self._settings.data, self._settings.image_size
        test = load(data, size, "test")
        if len(test) < 2:
            raise DataError(f"the metrics cannot compare with {len(test)} test sample of {data.name}; add some")
        if self._inception is not None and not test.is_image:
            raise WeightsError(
                f"Inception looks at images, data.name={data.name} has points; leave the weights file out"
            )
        train = self._train if self._train is not None else load(data, size, "train")
        self._train = None
        self._classifier = classifier.obtain(train).to(self._device)
        self._sample_shape = test.sample_shape
        chosen = np.random.default_rng(_FLOOR_SEED).permutation(len(train))[: self._count]
        everything = np.arange(len(test))
        return {
            feature_network: Evidence(
                None,
                self._look_at(feature_network, test, everything),
                self._look_at(feature_network, train, chosen),
                len(test.classes),
            )
            for feature_network in self._feature_networks
        }

    @property
    def _feature_networks(self) -> list[FeatureNetwork]:
        return ["classifier"] if self._inception is None else ["classifier", "inception"]

    @torch.no_grad()
    def _look_at(self, feature_network: FeatureNetwork, source: Source, indices: np.ndarray) -> Features:
        log.info("features of %d real samples by the %s (once)", len(indices), feature_network)
        starts = range(0, len(indices), _BATCH_SIZE)
        return _join(
            [self._features(feature_network, source.take(indices[start : start + _BATCH_SIZE])) for start in starts]
        )

    def _constant(self, one: Definition, evidence: Evidence) -> Metric:
        if one.name not in self._constants:
            started = time.perf_counter()
            self._constants[one.name] = self._metric(one, one.compute(evidence), time.perf_counter() - started)
        return self._constants[one.name]

    # --- the model's samples --------------------------------------------------------------------

    @torch.no_grad()
    def _look_at_generated(
        self, sample: Callable[[int], torch.Tensor]
    ) -> tuple[dict[FeatureNetwork, Features] | None, dict[FeatureNetwork, float]]:
        """Features by network, or None where a sample is not finite; and seconds by network, sampling included."""
        pieces: dict[FeatureNetwork, list[Features]] = {
            feature_network: [] for feature_network in self._feature_networks
        }
        sampling_s, looking_s = 0.0, dict.fromkeys(self._feature_networks, 0.0)
        finite = True
        for start in range(0, self._count, _BATCH_SIZE):
            count = min(_BATCH_SIZE, self._count - start)
            began = time.perf_counter()
            samples = sample(count)
            if tuple(samples.shape) != (count, *self._sample_shape):
                raise ValueError(f"expected samples {(count, *self._sample_shape)}, got {tuple(samples.shape)}")
            finite = bool(torch.isfinite(samples).all())
            sampling_s += time.perf_counter() - began
            if not finite:
                log.warning("the generator makes samples that are not finite; its metrics are NaN")
                break
            for feature_network in self._feature_networks:
                began = time.perf_counter()
                pieces[feature_network].append(self._features(feature_network, samples))
                looking_s[feature_network] += time.perf_counter() - began
        seconds = {
            feature_network: sampling_s + looking_s[feature_network] for feature_network in self._feature_networks
        }
        return (
            {feature_network: _join(pieces[feature_network]) for feature_network in self._feature_networks}
            if finite
            else None
        ), seconds

    def _measure(
        self,
        one: Definition,
        standards: dict[FeatureNetwork, Evidence],
        generated: dict[FeatureNetwork, Features] | None,
        seen_s: dict[FeatureNetwork, float],
    ) -> Metric:
        if generated is None:
            return self._metric(one, math.nan, seen_s[one.feature_network])
        standard = standards[one.feature_network]
        started = time.perf_counter()
        value = one.compute(
            Evidence(generated[one.feature_network], standard.reference, standard.real, standard.classes)
        )
        return self._metric(one, value, seen_s[one.feature_network] + time.perf_counter() - started)

    def _features(self, feature_network: FeatureNetwork, samples: torch.Tensor) -> Features:
        samples = samples.to(self._device, torch.float32)
        if feature_network == "inception":
            return Features(self._inception.features(samples).cpu().numpy(), None)
        values = self._classifier.features(samples)
        return Features(values.cpu().numpy(), self._classifier.head(values).argmax(dim=1).cpu().numpy())

    def _metric(self, one: Definition, value: float, seconds: float) -> Metric:
        sha256 = self._inception.sha256 if one.feature_network == "inception" else None
        return Metric(one.name.replace("{n}", str(self._count)), float(value), seconds, sha256)


def _join(pieces: list[Features]) -> Features:
    labels = None if pieces[0].labels is None else np.concatenate([piece.labels for piece in pieces])
    return Features(np.concatenate([piece.values for piece in pieces]), labels)
