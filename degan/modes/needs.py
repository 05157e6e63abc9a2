"""The needs of one worker: bytes on its node's Redis and on the wire, computed from the settings.

Each mode computes its own needs (`needs` beside the mode's class) from the layout and limits of its training. The
worker prints them at its start, and the doctor compares them with a node's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from config.settings.experiment import Experiment
from peers.codecs.base import Codec
from peers.rounds.layout import RoundLayout
from peers.rounds.rounds import kept_entries
from peers.types import Slice
from peers.wire.layout import chunks

LEADERS = 3  # The number of workers that may lead, where the settings name none.


@dataclass(frozen=True)
class Needs:
    """The upper bounds of one worker's needs, in bytes.

    Attributes:
        outbox_bytes: its streams, full.
        state_bytes: its state hash, from which a joiner or the followers of a leader fetch.
        step_bytes: bytes that one peer reads from this worker in a step.
        vector_bytes: the trained vector, as float32.
    """

    outbox_bytes: int = 0
    state_bytes: int = 0
    step_bytes: int = 0
    vector_bytes: int = 0

    @property
    def redis_bytes(self) -> int:
        """The memory that its node's Redis must have."""
        return self.outbox_bytes + self.state_bytes

    def __str__(self) -> str:
        """The text for the line at a worker's start."""
        outbox, state = self.outbox_bytes / 2**20, self.state_bytes / 2**20
        return f"at most {outbox:,.1f} MiB of streams and {state:,.1f} MiB of states on this node's Redis"


def entry_bytes(size: int, codec: Codec) -> int:
    """The mean payload of the entries of a vector of `size` values, rounded up."""
    sizes = [codec.encoded_bytes(piece.size) for piece in chunks(Slice(0, size), codec)]
    return -(-sum(sizes) // len(sizes))


def leader_outbox_bytes(layout: RoundLayout, streams: list[tuple[str, ...]]) -> int:
    """The bytes of a worker's full streams in a leader-based mode.

    Args:
        streams: for each stream the kinds of vectors that may fill it.
    """
    entries = kept_entries(layout)
    return sum(entries * max(entry_bytes(*layout.kinds[kind]) for kind in kinds) for kinds in streams if kinds)


def float_bytes(arrays: dict[str, np.ndarray] | dict[str, int]) -> int:
    """Bytes of float32 vectors by name, given as arrays or as numbers of values."""
    return 4 * sum(array if isinstance(array, int) else array.size for array in arrays.values())


def leaders_of(settings: Experiment) -> list[int]:
    """The workers that may lead, in their order."""
    leaders = settings.mode.leaders
    if leaders is None:
        leaders = min(LEADERS, settings.workers)
    return list(range(leaders)) if isinstance(leaders, int) else list(leaders)
