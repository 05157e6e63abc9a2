"""A learner's state as the tests look at it: one vector, one network, one set of named tensors."""

from __future__ import annotations

import numpy as np
import torch

from degan.artifacts.learner_state import model_tensors
from degan.data.base import Batch
from degan.learners import names
from degan.learners.protocols import Counters, Learner


def unlabelled(samples: torch.Tensor) -> Batch:
    """A batch whose labels are not read."""
    return Batch(samples, torch.zeros(len(samples), dtype=torch.int64))


def tensors_of(learner: Learner) -> dict[str, torch.Tensor]:
    return model_tensors(learner)


def vectors_of(learner: Learner) -> dict[str, np.ndarray]:
    return learner.state()[0]


def counters_of(learner: Learner, network: str | None = None) -> Counters:
    return learner.state(None if network is None else names.of_network(learner.sizes, network))[1]


def model_of(learner: Learner, has_moments: bool = False) -> np.ndarray:
    """The vector that federated rounds send."""
    return names.joined(learner.state(names.of_model(learner.sizes, has_moments))[0])


def load_model(learner: Learner, values: np.ndarray, has_moments: bool = False, counters: Counters | None = None):
    learner.load(names.split(values, learner.sizes, names.of_model(learner.sizes, has_moments)), counters or {})


def network_of(learner: Learner, network: str, has_moments: bool = True) -> np.ndarray:
    """The vector that a swap of discriminators sends."""
    return names.joined(learner.state(names.of_network(learner.sizes, network, has_moments))[0])


def load_network(learner: Learner, network: str, values: np.ndarray, counters: Counters, has_moments: bool = True):
    learner.load(names.split(values, learner.sizes, names.of_network(learner.sizes, network, has_moments)), counters)


def average_of(learner: Learner) -> np.ndarray:
    """The moving average."""
    return names.joined(learner.state(names.of_average(learner.sizes))[0])
