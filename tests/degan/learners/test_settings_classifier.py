"""Every setting of a classifier and of its training has its effect: the table is complete by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import config
from degan.learners.classifier import Classifier
from degan.learners.optimisers import Adam, Descent
from tests.leaves import leaves, plain


def classifier_of(path: str, *value: Any, **more: Any) -> Classifier:
    settings = config.build(plain(path, *value, **more))
    side = settings.image_size
    return Classifier(settings, (1, side, side), 3, torch.device("cpu"))


def network(learner: Classifier) -> nn.Module:
    return learner.modules["classifier"]


def norms(learner: Classifier) -> set[type]:
    kinds = (nn.BatchNorm2d, nn.GroupNorm)
    return {type(layer) for layer in network(learner).modules() if isinstance(layer, kinds)}


def optimiser_in(learner: Classifier) -> Descent:
    return learner._optimisers["classifier"]


TABLE: dict[str, tuple[Any, Callable[[Classifier], Any], Any]] = {
    "classifier[gn_lenet].image_size": (40, lambda c: network(c).head.in_features, 64 * 5 * 5),
    "classifier[resnet].depth": (14, lambda c: len(network(c).body), 6),
    "classifier[resnet].width": (24, lambda c: network(c).head.in_features, 96),
    "classifier[resnet].norm": ("batch", norms, {nn.BatchNorm2d}),
    "classifier[resnet].image_size": (9, lambda c: c.sample_shape, (1, 9, 9)),
    "classifier[mlp].hidden": (5, lambda c: network(c).body.out_features, 5),
    "classifier[mlp].image_size": (9, lambda c: network(c).body.in_features, 81),
    "optimiser.lr": (0.25, lambda c: optimiser_in(c).rate, 0.25),
}


@pytest.mark.parametrize("path", TABLE)
def test_each_setting_of_a_classifier_has_its_effect(path):
    value, found, expected = TABLE[path]
    assert found(classifier_of(path, value)) == expected


def test_every_setting_of_a_classifier_has_its_row():
    assert {path for path in leaves() if path.startswith(("classifier", "optimiser.lr"))} == TABLE.keys()


@pytest.mark.parametrize(("algorithm", "kind"), [("sgd", Descent), ("adam", Adam)])
def test_the_algorithm_and_its_betas_are_a_classifiers_too(algorithm, kind):
    optimiser = {"algorithm": algorithm, "betas": [0.25, 0.75]}
    learner = classifier_of("optimiser.lr", 0.5, optimiser=optimiser)
    for _ in range(2):
        assert type(optimiser_in(learner)) is kind and optimiser_in(learner).rate == 0.5
        assert algorithm == "sgd" or optimiser_in(learner).betas == (0.25, 0.75)
        # A reset keeps the rates.
        learner.reset_optimisers()
