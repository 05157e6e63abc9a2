"""The pieces between a learner and the wire, and their composition.

A piece maps an update of a worker (a gradient, a difference of parameters, a feedback) and its context to the next
update. `chain(a, b)` applies a, then b; a chain without pieces changes nothing. The non-finite guard is a piece
(`degan.learners.guard`), and so is the attack of a byzantine worker.

Source: the gradient transformations of optax, which compose in this way. Here a piece keeps no state of an optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Context(NamedTuple):
    """The origin of an update.

    Attributes:
        statistics: the learner's running statistics before the pass that made the update, float32 (buffers,).
    """

    statistics: np.ndarray


Piece = Callable[[np.ndarray, Context], np.ndarray]


def chain(*pieces: Piece) -> Piece:
    """The composition of the pieces, the first one first. Updates are float32 of any shape."""

    def composed(update: np.ndarray, context: Context) -> np.ndarray:
        for piece in pieces:
            update = piece(update, context)
        return update

    return composed


def attack(change: Callable[[np.ndarray], np.ndarray] | None) -> tuple[Piece, ...]:
    """The piece of a byzantine worker, which changes the update before it is sent; no piece where `change` is None."""
    return () if change is None else (lambda update, context: change(update),)
