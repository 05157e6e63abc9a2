"""The local mode: each worker trains alone."""

from __future__ import annotations

from config.settings.base import Settings
from config.settings.modes.base import Rest, Updates


class Local(Settings, frozen=True, tag_field="name", tag="local"):
    """No exchange: each worker trains alone on its shard."""

    updates: Updates = "simultaneous"

    def check(self, rest: Rest) -> None:
        """Every setting of this mode fits every experiment."""
