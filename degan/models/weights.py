"""Initial weights, drawn explicitly, module by module in order, so that one seed gives one network."""

from __future__ import annotations

import math

from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def start_normal(module: nn.Module, std: float = 0.02) -> None:
    """Draw every weight of `module` from N(0, std), every BatchNorm scale from N(1, std); biases are zero.

    Source: Radford et al. 2016 (arXiv:1511.06434), section 4, for the weights; their released code for
    the BatchNorm scales.
    """
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            nn.init.normal_(layer.weight, 0.0, std)
        elif isinstance(layer, NORMS):
            nn.init.normal_(layer.weight, 1.0, std)
        if isinstance(layer, WEIGHTED + NORMS) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def start_uniform(layer: nn.Linear | nn.Conv2d) -> None:
    """Draw weights and biases of one layer from U(-a, a) with a = 1 / sqrt(inputs of one output).

    Source: torch's default for these layers, which released code uses where it sets no weights. The formula
    is written out, so the weights do not depend on the release of torch.
    """
    bound = 1.0 / math.sqrt(layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound)
