"""What is trained, as the modes, the checkpoints and the worker's loop see it.

A learner is `Learner` for checkpoints and joining, `Trainable` for the modes that exchange vectors, `Adversarial` for
the mode that splits a GAN over workers, and `Shown` for pictures and metrics. The names of the vectors are those of
`degan.learners.names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from degan.data.base import Batch

# float32, one-dimensional, by name.
Vectors = dict[str, np.ndarray]
# Steps of an optimiser by network, batches that a BatchNorm has seen, steps of the average.
Counters = dict[str, int]
State = dict[str, torch.Tensor]
# The part of the vector that a local step updates: first value, and the one after the last.
Section = tuple[int, int]

Metrics = TypeVar("Metrics")


class Learner(Protocol):
    """What is saved, and what a joining worker receives.

    Attributes:
        sizes: the number of values of every vector of the state, in the order in which they travel.
        facts: what must be the same for all workers and is no setting; plain values.
        modules: the networks by name, whose tensors a checkpoint names.
        sample_shape: of one sample, (channels, height, width) or (2,).
        device: where it computes.
    """

    sizes: dict[str, int]
    facts: dict[str, Any]
    modules: dict[str, nn.Module]
    sample_shape: tuple[int, ...]
    device: torch.device

    def state(self, names: Iterable[str] | None = None) -> tuple[Vectors, Counters]:
        """Copies of the named vectors (without names: all), and the counters of their networks."""

    def load(self, vectors: Vectors, counters: Counters) -> None:
        """Take vectors and counters over; those that are not given stay. A step count goes with its moments.

        Raises:
            ValueError: a vector or a counter that this learner does not have, or one of another size.
        """

    def random_state(self) -> State:
        """Every random generator, as uint8 tensors by name."""

    def load_random_state(self, state: State) -> None:
        """The inverse of `random_state`."""


class Trainable(Learner, Protocol):
    """What local, partial_exchange and federated train.

    Attributes:
        size: the number of values in the vector: all trainable parameters.
    """

    size: int

    def sections(self, updates: str) -> list[Section]:
        """The local steps of one round, in order, for `simultaneous` or `alternating` updates."""

    def gradients(self, section: Section, batch: Batch | None) -> tuple[np.ndarray, dict[str, float]]:
        """The gradient of a section, float32 (section's size,), and the losses by name.

        Args:
            batch: samples and labels; a section that goes on with what the one before has made does not read it.

        Returns:
            On the CPU the gradient itself, not a copy: it is the caller's until the next call.
        """

    def apply(self, section: Section, gradient: np.ndarray) -> None:
        """One step of the optimisers with a gradient of a section, float32 (section's size,)."""

    def parameters(self, section: Section) -> np.ndarray:
        """The parameters of a section, float32 (section's size,); on the CPU themselves, not a copy."""

    def load_parameters(self, section: Section, values: np.ndarray) -> None:
        """Put parameters of a section in their place, float32 (section's size,)."""

    def average(self, section: Section, steps: int = 1) -> None:
        """After a section is what it is to be: the moving average, where there is one.

        Args:
            steps: how many steps of an optimiser led here.
        """

    def statistics(self) -> np.ndarray:
        """The running statistics of all networks, float32 (buffers,); a copy."""

    def load_statistics(self, values: np.ndarray) -> None:
        """The inverse of `statistics`."""

    def reset_optimisers(self) -> None:
        """As if no step had been taken."""


class Adversarial(Learner, Protocol):
    """A GAN of which the two networks may be on different workers."""

    size: int

    def sections(self, updates: str) -> list[Section]:
        """With `alternating`: the discriminator's section, then the generator's."""

    def make_fakes(self, batches: int, size: int) -> list[torch.Tensor]:
        """`batches` times `size` samples, each (size, *sample_shape), with their graphs."""

    def discriminator_gradient(self, real: torch.Tensor, fake: np.ndarray) -> tuple[np.ndarray, float]:
        """The discriminator's gradient on reals and fakes, both (batch, *sample_shape); and the loss."""

    def feedback(self, fake: np.ndarray) -> tuple[np.ndarray, float]:
        """The gradient of the generator's loss at generated samples, float32 like `fake`; and the loss."""

    def generator_gradient(self, fakes: list[torch.Tensor], gradients: list[np.ndarray]) -> np.ndarray:
        """The generator's gradient from those at its fakes."""

    def apply(self, section: Section, gradient: np.ndarray) -> None:
        """As of `Trainable`."""

    def average(self, section: Section, steps: int = 1) -> None:
        """As of `Trainable`."""

    def statistics(self) -> np.ndarray:
        """As of `Trainable`."""

    def load_statistics(self, values: np.ndarray) -> None:
        """As of `Trainable`."""


class Shown(Protocol):
    """What can be looked at, at a sync point."""

    def show(self, count: int) -> torch.Tensor | None:
        """`count` samples for a picture, float32 (count, *sample_shape) in [-1, 1]; None where there is no picture."""

    def measure(self, evaluate: Callable[[Callable[[Any], torch.Tensor]], list[Metrics]]) -> list[Metrics]:
        """What an evaluator says of this learner.

        Args:
            evaluate: `Evaluator.evaluate` of the learner's kind; it is given what the learner computes.
        """
