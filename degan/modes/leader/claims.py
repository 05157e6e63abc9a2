"""Claims of peers in small maps, checked before use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from peers.errors import MessageError
from peers.rounds.rounds import term_of
from peers.types import Received

MAX_COUNT = 2**48  # The bound of samples, rounds and terms.
MAX_CLASSES = 2**16


def whole(fields: dict[str, Any], name: str) -> int:
    """A number that a leader claims.

    Raises:
        MessageError: the number is missing or impossible.
    """
    value = fields.get(name)
    if not _is_count(value):
        raise MessageError("malformed", f"a round without a {name}")
    return value


def plain_peer_info(peer_info: dict[str, Any]) -> dict[str, Any]:
    """A worker's peer info without impossible values: `samples`, and `histogram` over the classes."""
    found: dict[str, Any] = {}
    if _is_count(peer_info.get("samples")):
        found["samples"] = peer_info["samples"]
    histogram = peer_info.get("histogram")
    if isinstance(histogram, list) and len(histogram) <= MAX_CLASSES and all(map(_is_count, histogram)):
        found["histogram"] = histogram
    return found


def mean_losses(messages: dict[int, Received], names: Sequence[str]) -> dict[str, float]:
    """The losses of a leader that does not train: the mean of the named losses over the answers that have all."""
    rows = [message.extras for message in messages.values() if set(names) <= message.extras.keys()]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names if rows}


def answer_extras(announcement: Received, losses: dict[str, float]) -> dict[str, float]:
    """The extras of an answer to a round: the losses, and the term, which ties the answer to its leader."""
    return {"term": float(term_of(announcement))} | {k: v for k, v in losses.items() if math.isfinite(v)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT
