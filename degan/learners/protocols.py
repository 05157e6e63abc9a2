"""The interfaces of a learner: for the modes, the checkpoints and the worker's loop.

A learner is `Learner` for checkpoints and joining, `Trainable` for the modes that exchange vectors, `Adversarial` for
the mode that splits a GAN over workers, and `Shown` for pictures and metrics. `degan.learners.names` has the names of
the vectors.
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
# Steps of an optimiser by network, batches that a BatchNorm layer has seen, steps of the average.
Counters = dict[str, int]
State = dict[str, torch.Tensor]
# The slice of the vector that a local step updates: the index of its first value, and of the one after its last.
Section = tuple[int, int]

Metrics = TypeVar("Metrics")


class Learner(Protocol):
    """The state that a checkpoint saves and that a joining worker receives.

    Attributes:
        sizes: the number of values of every vector of the state, in the order on the wire.
        facts: values other than settings on which all workers must agree; plain values.
        modules: the networks by name; a checkpoint uses the names of their tensors.
        sample_shape: the shape of one sample, (channels, height, width) or (2,).
        device: the device of the computations.
    """

    sizes: dict[str, int]
    facts: dict[str, Any]
    modules: dict[str, nn.Module]
    sample_shape: tuple[int, ...]
    device: torch.device

    def state(self, names: Iterable[str] | None = None) -> tuple[Vectors, Counters]:
        """Copies of the named vectors (without names: all), and the counters of their networks."""

    def load(self, vectors: Vectors, counters: Counters) -> None:
        """Load vectors and counters; all others stay. A step count is loaded together with its moments.

        Raises:
            ValueError: a vector or a counter that this learner does not have, or one of another size.
        """

    def random_state(self) -> State:
        """Every random generator, as uint8 tensors by name."""

    def load_random_state(self, state: State) -> None:
        """The inverse of `random_state`."""


class Trainable(Learner, Protocol):
    """A learner for local, partial_exchange and federated.

    Attributes:
        size: the number of values in the vector: all trainable parameters.
        losses: the names of the losses that a step returns beside its gradient.
    """

    size: int
    losses: tuple[str, ...]

    def sections(self, updates: str) -> list[Section]:
        """The local steps of one round, in order, for `simultaneous` or `alternating` updates."""

    def gradients(self, section: Section, batch: Batch | None) -> tuple[np.ndarray, dict[str, float]]:
        """The gradient of a section, float32 (section's size,), and the losses by name.

        Args:
            batch: samples and labels; not read by a section that uses the fakes of the section before.

        Returns:
            On the CPU the gradient itself, not a copy; the caller may change it until the next call.
        """

    def apply(self, section: Section, gradient: np.ndarray) -> None:
        """One step of the optimisers with a gradient of a section, float32 (section's size,)."""

    def parameters(self, section: Section) -> np.ndarray:
        """The parameters of a section, float32 (section's size,); on the CPU the parameters themselves, not a copy."""

    def load_parameters(self, section: Section, values: np.ndarray) -> None:
        """Set the parameters of a section, float32 (section's size,)."""

    def average(self, section: Section, steps: int = 1) -> None:
        """Update the moving average, where there is one; called after the update of a section.

        Args:
            steps: optimiser steps since the last call.
        """

    def statistics(self) -> np.ndarray:
        """The running statistics of all networks, float32 (buffers,); a copy."""

    def load_statistics(self, values: np.ndarray) -> None:
        """The inverse of `statistics`."""

    def reset_optimisers(self) -> None:
        """Reset the optimisers to their state before the first step."""


class Adversarial(Learner, Protocol):
    """A GAN whose two networks may be on different workers."""

    size: int
    losses: tuple[str, ...]

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
    """A learner that a worker draws and measures at a sync point."""

    def show(self, count: int) -> torch.Tensor | None:
        """`count` samples for a picture, float32 (count, *sample_shape) in [-1, 1]; None where there is no picture."""

    def measure(self, evaluate: Callable[[Callable[[Any], torch.Tensor]], list[Metrics]]) -> list[Metrics]:
        """An evaluator's metrics of this learner.

        Args:
            evaluate: `Evaluator.evaluate` of the learner's kind; called with the learner's samples or logits function.
        """
