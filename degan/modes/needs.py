"""What one worker asks of its node's Redis and of the wire, in bytes, as the settings have it.

Each mode computes its own (`needs` beside the mode's class) from the very layout and limits that it trains with; the
worker prints them at its start and the doctor holds them against what a node has.
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

LEADERS = 3  # Where the settings do not say how many may lead.


@dataclass(frozen=True)
class Needs:
    """The most that one worker needs, in bytes.

    Attributes:
        outbox_bytes: its streams, full.
        state_bytes: its state hash, with what a joiner or the followers of a leader fetch from there.
        step_bytes: what one peer reads from it in a step.
        vector_bytes: the vector that is trained, as float32.
    """

    outbox_bytes: int = 0
    state_bytes: int = 0
    step_bytes: int = 0
    vector_bytes: int = 0

    @property
    def redis_bytes(self) -> int:
        """All that its node's Redis must have room for."""
        return self.outbox_bytes + self.state_bytes

    def __str__(self) -> str:
        """For the line at a worker's start."""
        outbox, state = self.outbox_bytes / 2**20, self.state_bytes / 2**20
        return f"at most {outbox:,.1f} MiB of streams and {state:,.1f} MiB of states on this node's Redis"


def entry_bytes(size: int, codec: Codec) -> int:
    """The mean payload of the entries in which a vector of `size` values travels, rounded up."""
    sizes = [codec.encoded_bytes(piece.size) for piece in chunks(Slice(0, size), codec)]
    return -(-sum(sizes) // len(sizes))


def leader_outbox_bytes(layout: RoundLayout, streams: list[tuple[str, ...]]) -> int:
    """The streams of a worker in a mode with a leader, full.

    Args:
        streams: for each stream the kinds of vectors that may fill it.
    """
    entries = kept_entries(layout)
    return sum(entries * max(entry_bytes(*layout.kinds[kind]) for kind in kinds) for kinds in streams if kinds)


def float_bytes(arrays: dict[str, np.ndarray] | dict[str, int]) -> int:
    """Bytes of float32 vectors by name, given themselves or by their numbers of values."""
    return 4 * sum(array if isinstance(array, int) else array.size for array in arrays.values())


def leaders_of(settings: Experiment) -> list[int]:
    """The workers that may lead, in their order."""
    leaders = settings.mode.leaders
    if leaders is None:
        leaders = min(LEADERS, settings.workers)
    return list(range(leaders)) if isinstance(leaders, int) else list(leaders)
