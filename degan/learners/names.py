"""The names of a learner's vectors, and the lists of names that are sent together.

`generator` holds a network's trainable parameters, `generator.buffers` its running statistics, `generator.exp_avg` and
`generator.exp_avg_sq` Adam's moments. `ema` and `ema.buffers` are the moving average. The order of a list is the order
of the values on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

AVERAGE = "ema"
BUFFERS = "buffers"
MOMENTS = ("exp_avg", "exp_avg_sq")


def is_moment(name: str) -> bool:
    """Whether a vector is one of Adam's moments."""
    return name.rpartition(".")[2] in MOMENTS


def network_of(name: str) -> str:
    """The network that a vector or a counter belongs to."""
    return name.partition(".")[0]


def of_model(names: Iterable[str], has_moments: bool = False) -> list[str]:
    """The trained vectors: all parameters, then all running statistics, then the moments if wanted."""
    return [name for name in names if network_of(name) != AVERAGE and (has_moments or not is_moment(name))]


def of_average(names: Iterable[str]) -> list[str]:
    """The moving average: its parameters, then its running statistics; empty where a learner has no average."""
    return [name for name in names if network_of(name) == AVERAGE]


def of_network(names: Iterable[str], network: str, has_moments: bool = True) -> list[str]:
    """One network: its parameters, its running statistics, its moments if wanted."""
    return [name for name in names if network_of(name) == network and (has_moments or not is_moment(name))]


def joined(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vectors joined end to end, float32; a copy."""
    return np.concatenate([np.zeros(0, np.float32), *vectors.values()])


def size_of(sizes: Mapping[str, int], names: Iterable[str]) -> int:
    """How many values the named vectors have together."""
    return sum(sizes[name] for name in names)


def split(values: np.ndarray, sizes: Mapping[str, int], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The inverse of `joined`: views of `values` by name.

    Raises:
        ValueError: `values` has another number of values than the names together.
    """
    found, offset = {}, 0
    for name in names:
        found[name] = values[offset : offset + sizes[name]]
        offset += sizes[name]
    if offset != values.size:
        raise ValueError(f"expected {offset} values for {', '.join(found)}, got {values.size}")
    return found
