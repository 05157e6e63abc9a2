"""How long a run is, and how often a worker writes something."""

from __future__ import annotations

from typing import Annotated

import msgspec

from config.settings.base import Natural, Positive, Settings


class Run(Settings, frozen=True):
    """How long a run is, and how often a worker writes something. The period 0 means never."""

    steps: Positive = 2000
    log_every: Positive = 10
    evaluate_every: Natural = 500
    evaluate_samples: Annotated[int, msgspec.Meta(ge=64, le=2**63 - 1)] = 5000
    snapshot_every: Natural = 500
    checkpoint_every: Natural | None = None
    keep_checkpoints: Positive = 3
    keep_best: bool = True
