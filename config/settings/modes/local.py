"""The local mode: each worker trains alone."""

from __future__ import annotations

from config.settings.base import Settings
from config.settings.modes.base import Rest, Updates, check_updates


class Local(Settings, frozen=True, tag_field="name", tag="local"):
    """No exchange: each worker trains alone on its shard."""

    updates: Updates = "simultaneous"

    def check(self, rest: Rest) -> None:
        """Refuse settings that do not fit together. Raises SettingsError: names the key."""
        check_updates(self.updates, rest)
