"""Named networks in training: one vector of all their parameters, an optimiser for each, and their state by name.

The common base of the learners. The vector is the networks' parameters one after the other, each flattened in module
order. All parameters are in one tensor and all gradients in another, so an exchange on the CPU copies nothing. A moving
average of a network is one more network, without an optimiser.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from config.settings.models import Optimiser
from degan.learners.flat import Flat, count, to_numpy
from degan.learners.names import AVERAGE, BUFFERS, MOMENTS, network_of
from degan.learners.optimisers import Descent, optimiser_of
from degan.learners.protocols import Counters, Section, Vectors

# The counter of the steps of an average.
APPLIED = "applied"


class Networks:
    """The base of `degan.learners.protocols.Trainable`; a learner adds `sections` and `gradients`.

    Args:
        networks: the trained networks by name, in the order of the vector.
        rates: each network's learning rate.
        average: a copy of the first network that becomes its moving average; None for no average.
        optimiser: algorithm, betas and decay.
        sample_shape: the shape of one sample.
        device: the device of the computations.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        rates: Mapping[str, float],
        average: nn.Module | None,
        optimiser: Optimiser,
        sample_shape: tuple[int, ...],
        device: torch.device,
    ):
        self.sample_shape, self.device = tuple(sample_shape), device
        self._optimiser, self._rates = optimiser, dict(rates)
        sizes = [count(network) for network in networks.values()]
        self._values, self._gradient = (torch.zeros(sum(sizes), device=device) for _ in range(2))
        views = zip(networks.items(), self._values.split(sizes), self._gradient.split(sizes), strict=True)
        self._trained = {name: Flat(module.to(device), values, gradient) for (name, module), values, gradient in views}
        averages = {} if average is None else {AVERAGE: Flat(average.to(device).eval().requires_grad_(True))}
        self._flats = self._trained | averages
        self._optimisers = self._make_optimisers()
        self._applied = 0

    def _make_optimisers(self) -> dict[str, Descent]:
        return {
            name: optimiser_of(self._optimiser, flat.values, self._rates[name]) for name, flat in self._trained.items()
        }

    # --- sizes and facts --------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of values in the vector: all trainable parameters."""
        return self._values.numel()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {name: flat.module for name, flat in self._flats.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """Values other than settings on which all workers must agree."""
        return {"model (number of values)": self.size, "model (sample shape)": list(self.sample_shape)}

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Number of values by vector: parameters, running statistics, moments, then the average."""
        found = {name: flat.size for name, flat in self._trained.items()}
        found |= {f"{name}.{BUFFERS}": flat.buffers.numel() for name, flat in self._trained.items()}
        for name, optimiser in self._optimisers.items():
            found |= {f"{name}.{moment}": vector.numel() for moment, vector in optimiser.moments.items()}
        for name, flat in self._flats.items():
            if name not in self._trained:
                found |= {name: flat.size, f"{name}.{BUFFERS}": flat.buffers.numel()}
        return found

    # --- one step ---------------------------------------------------------------------------------

    def apply(self, section: Section, gradient: np.ndarray) -> None:
        """One step of the optimisers with a gradient of a section, float32 (section's size,)."""
        mine = self._gradient[section[0] : section[1]]
        theirs = torch.from_numpy(gradient)
        # An array from `gradients` is already this memory, even if the caller has changed its values.
        if theirs.data_ptr() != mine.data_ptr():
            mine.copy_(theirs)
        begin = 0
        for name, flat in self._trained.items():
            if section[0] <= begin and begin + flat.size <= section[1]:
                self._optimisers[name].step()
            begin += flat.size

    def parameters(self, section: Section) -> np.ndarray:
        """The weights of a section, float32 (section's size,); on the CPU the weights themselves, not a copy."""
        return to_numpy(self._values[section[0] : section[1]])

    def load_parameters(self, section: Section, values: np.ndarray) -> None:
        """Set the weights of a section, float32 (section's size,)."""
        mine, theirs = self._values[section[0] : section[1]], torch.from_numpy(values)
        if theirs.data_ptr() != mine.data_ptr():
            mine.copy_(theirs)

    @torch.no_grad()
    def average(self, section: Section, steps: int = 1) -> None:
        """Update the moving average of the first network, if the section has that network; called after its update.

        The average is over weights and running statistics; its decay is warmed up over the first steps.

        Args:
            steps: optimiser steps since the last call; they decay as much as one call for each step.
        """
        if section[0] or AVERAGE not in self._flats:
            return
        decay = 1.0
        for _ in range(steps):
            self._applied += 1
            decay *= min(self._optimiser.ema_decay, (1 + self._applied) / (10 + self._applied))
        average, first = self._flats[AVERAGE], next(iter(self._trained.values()))
        average.values.data.lerp_(first.values.data, 1 - decay)
        average.buffers.lerp_(first.buffers, 1 - decay)

    def reset_optimisers(self) -> None:
        """Reset the optimisers to their state before the first step."""
        self._optimisers = self._make_optimisers()

    # --- running statistics -----------------------------------------------------------------------

    def statistics(self) -> np.ndarray:
        """BatchNorm's running statistics of all networks, the average last, float32 (buffers,); a copy."""
        return to_numpy(torch.cat([flat.buffers for flat in self._flats.values()]))

    def load_statistics(self, values: np.ndarray) -> None:
        """The inverse of `statistics`."""
        parts = torch.from_numpy(values).split([flat.buffers.numel() for flat in self._flats.values()])
        for flat, part in zip(self._flats.values(), parts, strict=True):
            flat.buffers.copy_(part)

    # --- the state --------------------------------------------------------------------------------

    def state(self, names: Iterable[str] | None = None) -> tuple[Vectors, Counters]:
        """Copies of the named vectors (without names: all), and the counters of their networks."""
        names = list(self.sizes if names is None else names)
        vectors = {name: to_numpy(self._vector(name)).copy() for name in names}
        networks = {network_of(name) for name in names}
        counters = {name: n for name, n in self._counters().items() if self._network_of_counter(name) in networks}
        return vectors, counters

    def load(self, vectors: Vectors, counters: Counters) -> None:
        """Load vectors and counters; all others stay. A step count is loaded together with its moments.

        Raises:
            ValueError: a vector or a counter that this learner does not have, or one of another size.
        """
        for name, values in vectors.items():
            if values.size != self.sizes.get(name):
                raise ValueError(f"expected {name} of {self.sizes.get(name, 0)} values, got {values.size}")
        if strangers := counters.keys() - self._counters().keys():
            raise ValueError(f"there is no counter {min(strangers)}")
        for name, values in vectors.items():
            self._vector(name).copy_(torch.from_numpy(values))
        self._applied = int(counters.get(APPLIED, self._applied))
        for name, buffer in self._whole_buffers():
            buffer.fill_(int(counters.get(name, int(buffer))))
        for name in self._trained:
            if name in counters and f"{name}.{MOMENTS[0]}" in vectors:
                self._optimisers[name].steps = int(counters[name])

    def _vector(self, name: str) -> torch.Tensor:
        """The memory of a vector."""
        network, _, part = name.partition(".")
        flat = self._flats[network]
        if not part:
            return flat.values.data
        return flat.buffers if part == BUFFERS else self._optimisers[network].moments[part]

    def _counters(self) -> Counters:
        """The step counts of the average, the optimisers and BatchNorm."""
        found = {APPLIED: self._applied} if AVERAGE in self._flats else {}
        found |= {name: optimiser.steps for name, optimiser in self._optimisers.items()}
        return found | {name: int(buffer) for name, buffer in self._whole_buffers()}

    @staticmethod
    def _network_of_counter(name: str) -> str:
        return AVERAGE if name == APPLIED else network_of(name)

    def _whole_buffers(self):
        for network, flat in self._flats.items():
            for name, buffer in flat.module.named_buffers():
                if not buffer.is_floating_point():
                    yield f"{network}.{name}", buffer
