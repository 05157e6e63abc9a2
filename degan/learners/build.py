"""The learner that an experiment names."""

from __future__ import annotations

import torch

from config.settings.experiment import Experiment
from degan.learners.classifier import Classifier
from degan.learners.gan_pair import GanPair


def build(
    settings: Experiment, sample_shape: tuple[int, ...], classes: int, worker: int, device: torch.device
) -> GanPair | Classifier:
    """A GAN pair or a classifier, with the common initial weights of all workers.

    Args:
        settings: the experiment.
        sample_shape: (channels, height, width) or (2,).
        classes: number of classes of the data; a GAN does not use this.
        worker: this worker's number.
        device: the device of the computations.

    Raises:
        SettingsError: the networks do not fit the samples.
    """
    if settings.classifier is not None:
        return Classifier(settings, sample_shape, classes, device)
    return GanPair(settings, sample_shape, worker, device)
