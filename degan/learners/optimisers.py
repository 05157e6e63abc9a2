"""Adam and plain descent on one vector, by the functions of torch.optim instead of its classes.

The classes load torch's compiler (`torch._dynamo`) with the first step, about 3 s of CPU time in every process,
although nothing is compiled here. The functions compute the same, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from config.settings.models import Optimiser
from degan.learners.names import MOMENTS

# The values that torch.optim.SGD and torch.optim.Adam take where a person gives none.
SGD: dict[str, Any] = {"momentum": 0, "dampening": 0, "nesterov": False, "weight_decay": 0, "maximize": False}
ADAM: dict[str, Any] = {"eps": 1e-8, "amsgrad": False, "weight_decay": 0, "maximize": False}


class Descent:
    """Plain descent: values - rate * gradient.

    Args:
        values: float32 (parameters,); its `.grad` is the gradient.
        rate: the learning rate.

    Attributes:
        moments: the vectors that the algorithm keeps, float32 (parameters,), by name; none here.
        steps: the count of steps on which the next step depends; always 0 here.
    """

    moments: dict[str, torch.Tensor] = {}
    steps = 0

    def __init__(self, values: nn.Parameter, rate: float):
        self._values, self.rate = values, rate

    @torch.no_grad()
    def step(self) -> None:
        sgd([self._values], [self._values.grad], [None], lr=self.rate, **SGD)


class Adam(Descent):
    """Adam (Kingma and Ba, 2015), with the moments as vectors.

    Args:
        values, rate: as for `Descent`.
        betas: the decay of the mean and of the mean square of the gradients.
    """

    def __init__(self, values: nn.Parameter, rate: float, betas: tuple[float, float]):
        super().__init__(values, rate)
        self.betas = betas
        self.moments = {name: torch.zeros_like(values.data) for name in MOMENTS}
        self._step = torch.tensor(0.0)

    @property
    def steps(self) -> int:
        return int(self._step)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._step.fill_(steps)

    @torch.no_grad()
    def step(self) -> None:
        mean, square = ([self.moments[name]] for name in MOMENTS)
        beta1, beta2 = self.betas
        gradients = [self._values.grad]
        adam([self._values], gradients, mean, square, [], [self._step], lr=self.rate, beta1=beta1, beta2=beta2, **ADAM)


def optimiser_of(settings: Optimiser, values: nn.Parameter, rate: float) -> Descent:
    """A network's optimiser with the algorithm of the settings."""
    return Descent(values, rate) if settings.algorithm == "sgd" else Adam(values, rate, settings.betas)
