"""The settings of all leader-based modes: which workers may lead, how many answers a round needs, and its deadline."""

from __future__ import annotations

from typing import Annotated

import msgspec

from config.errors import SettingsError
from config.settings.base import Natural, Positive, Seconds, Settings

# Candidates for leader: the first n workers, or these, in this order; without a value the first three.
Leaders = Positive | list[Natural] | None
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Deadline(Settings, frozen=True):
    """How long the leader waits for the answers of a round: from the times of recent rounds, within these bounds."""

    floor_s: Seconds = 10.0
    ceiling_s: Seconds = 300.0


def check_leaders(leaders: Leaders, leader_trains: bool, deadline: Deadline, workers: int) -> None:
    """Refuse leaders that do not exist, and a deadline whose bounds are in the wrong order.

    Raises:
        SettingsError: names the key.
    """
    if isinstance(leaders, int) and leaders > workers:
        raise SettingsError(f"mode.leaders: {leaders} leaders, but there are only {workers} workers")
    if isinstance(leaders, list):
        strangers = [leader for leader in leaders if leader >= workers]
        if strangers:
            raise SettingsError(f"mode.leaders: {strangers[0]} is no worker; there are 0 to {workers - 1}")
        if not leaders or len(set(leaders)) < len(leaders):
            raise SettingsError("mode.leaders: name at least one worker, and each only once")
    if not leader_trains and workers == 1:
        raise SettingsError("mode.leader_trains: the only worker leads, so nobody would train; use more workers")
    if deadline.floor_s > deadline.ceiling_s:
        raise SettingsError("mode.deadline: floor_s is above ceiling_s")
