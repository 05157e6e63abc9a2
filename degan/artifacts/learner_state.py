"""A learner in a checkpoint: one tensor for each tensor of its networks, Adam's moments, and its random generators.

The one place that converts between a learner's vectors and the names in a checkpoint's files:

    model.safetensors      NETWORK.TENSOR: parameters and buffers of every network, the average included
    optimiser.safetensors  NETWORK.exp_avg, NETWORK.exp_avg_sq, random.GENERATOR
"""

from __future__ import annotations

import torch

from degan.learners.names import is_moment
from degan.learners.protocols import Counters, Learner, State

RANDOM = "random."


def model_tensors(learner: Learner) -> State:
    """Every tensor of the networks as NETWORK.TENSOR, copied to the CPU."""
    return {
        f"{network}.{name}": tensor.detach().cpu().clone()
        for network, module in learner.modules.items()
        for name, tensor in module.state_dict().items()
    }


def optimiser_tensors(learner: Learner) -> State:
    """Adam's moments as vectors, and the states of the random generators."""
    moments, _ = learner.state(filter(is_moment, learner.sizes))
    random = {f"{RANDOM}{name}": tensor for name, tensor in learner.random_state().items()}
    return {name: torch.from_numpy(vector) for name, vector in moments.items()} | random


def counters(learner: Learner) -> Counters:
    """All counters of a learner."""
    return learner.state()[1]


def load(learner: Learner, model: State, optimiser: State, counted: Counters) -> None:
    """The inverse of the three functions above.

    Raises:
        ValueError: a tensor is missing, or has another shape.
        KeyError: a counter or a random generator is missing.
    """
    for network, module in learner.modules.items():
        own = {n.removeprefix(f"{network}."): t for n, t in model.items() if n.startswith(f"{network}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from None
    moments = {}
    for name in filter(is_moment, learner.sizes):
        if name not in optimiser or optimiser[name].numel() != learner.sizes[name]:
            raise ValueError(f"the state has no {name} of {learner.sizes[name]} values")
        moments[name] = optimiser[name].numpy()
    learner.load(moments, {name: int(counted[name]) for name in counters(learner)})
    learner.load_random_state({n.removeprefix(RANDOM): t for n, t in optimiser.items() if n.startswith(RANDOM)})
