"""The one place that converts between modules and flat vectors.

`Flat` moves a module's parameters into one tensor and its floating-point buffers into another; the module's own
tensors become views of these. So "all parameters as a vector" costs nothing, an optimiser works on a
single tensor, and the exchange sees plain float32 numpy arrays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Flat:
    """A module whose parameters, gradients and float buffers are views of flat tensors.

    Args:
        module: its parameters are replaced in place; move the module to its device before.
        values, gradient: float32 (parameters,) memory to use, for several modules in one vector; new memory
            where not given.

    Attributes:
        values: float32 (parameters,), a leaf whose `.grad` collects the module's gradients.
        gradient: float32 (parameters,), that `.grad`.
        buffers: float32 (buffers,): BatchNorm's running means and variances, in module order.
    """

    def __init__(self, module: nn.Module, values: torch.Tensor | None = None, gradient: torch.Tensor | None = None):
        self.module = module
        parameters = [p for p in module.parameters() if p.requires_grad]
        first = torch.cat([p.detach().reshape(-1).float() for p in parameters])
        self.values = nn.Parameter(first if values is None else values.copy_(first))
        self.gradient = torch.zeros_like(first) if gradient is None else gradient.zero_()
        self.values.grad = self.gradient
        offset = 0
        for parameter in parameters:
            end = offset + parameter.numel()
            parameter.data = self.values.data[offset:end].view(parameter.shape)
            parameter.grad = self.gradient[offset:end].view(parameter.shape)
            offset = end
        self._parameters = parameters
        floats = [b for b in module.buffers() if b.is_floating_point()]
        self.buffers = (
            torch.cat([b.detach().reshape(-1).float() for b in floats])
            if floats
            else torch.zeros(0, device=self.values.device)
        )
        offset = 0
        for buffer in floats:
            end = offset + buffer.numel()
            buffer.data = self.buffers[offset:end].view(buffer.shape)
            offset = end

    @property
    def size(self) -> int:
        """Number of trainable parameters."""
        return self.values.numel()

    def clear_gradient(self) -> None:
        """Zero the gradient in place; None in its place would detach the views."""
        self.gradient.zero_()

    def freeze(self, is_frozen: bool) -> None:
        """Set whether backward passes leave this module's gradients unchanged."""
        for parameter in self._parameters:
            parameter.requires_grad_(not is_frozen)


def count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A float32 numpy array of the same values; on the CPU a view, not a copy."""
    return tensor.detach().cpu().numpy()
