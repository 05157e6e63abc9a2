"""The classifier: one network that learns the labels by cross entropy.

There is one network, so a round is one local step. There is no moving average: the metrics are of the network itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.learners.flat import to_numpy
from degan.learners.networks import Networks
from degan.learners.protocols import Metrics, Section, State
from degan.models import classifiers
from degan.seeds import spawn_seed

NETWORK = "classifier"


class Classifier(Networks):
    """A classifier in training; see `degan.learners.protocols`.

    The initial weights are the same on every worker: they depend on the seed alone.

    Args:
        settings: the experiment.
        sample_shape: (channels, height, width) or (2,).
        classes: number of classes.
        device: the device of the computations.
    """

    losses = ("c_loss", "accuracy")

    def __init__(self, settings: Experiment, sample_shape: tuple[int, ...], classes: int, device: torch.device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spawn_seed(settings.seed, "weights"))
            network = classifiers.build(settings.classifier, tuple(sample_shape), classes)
        optimiser = settings.optimiser
        super().__init__({NETWORK: network}, {NETWORK: optimiser.lr}, None, optimiser, sample_shape, device)
        self.classes = classes
        (self._flat,) = self._trained.values()

    def sections(self, updates: str) -> list[Section]:
        """One local step of the whole vector; one network cannot alternate."""
        return [(0, self.size)]

    def gradients(self, section: Section, batch: Batch) -> tuple[np.ndarray, dict[str, float]]:
        """The gradient of the mean cross entropy at the current parameters.

        Args:
            section: the whole vector.
            batch: samples float32 (batch, *sample_shape), labels int64 (batch,), on any device.

        Returns:
            float32 (size,), and by name the loss and the share of the batch that was classified correctly. On the CPU
            the array is the gradient itself, not a copy; the caller may change it until the next call.
        """
        samples = batch.samples.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        self._flat.clear_gradient()
        logits = self._flat.module(samples)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return to_numpy(self._gradient), {"c_loss": float(loss.detach()), "accuracy": float(right)}

    @torch.no_grad()
    def logits(self, samples: torch.Tensor) -> torch.Tensor:
        """The logits in evaluation mode, float32 (n, classes) on the CPU, for samples (n, *sample_shape)."""
        module = self._flat.module.eval()
        try:
            return module(samples.to(self.device)).cpu()
        finally:
            module.train()

    def show(self, count: int) -> None:
        """A classifier has no picture."""
        return

    def measure(self, evaluate: Callable[[Callable[[Any], torch.Tensor]], list[Metrics]]) -> list[Metrics]:
        """The evaluator's metrics of this classifier's logits."""
        return evaluate(self.logits)

    def random_state(self) -> State:
        """torch's global generator, which dropout would draw from."""
        return {"global": torch.random.get_rng_state()}

    def load_random_state(self, state: State) -> None:
        """The inverse of `random_state`."""
        torch.random.set_rng_state(state["global"])
