"""How the workers are connected, and where a worker's secrets are."""

from __future__ import annotations

from typing import Annotated

import msgspec

from config.errors import SettingsError
from config.settings.base import Natural, Positive, Seconds, Settings, Weight


class Bus(Settings, frozen=True):
    """How the workers are connected. Times in seconds, sizes in bytes.

    Without a value `replay_bytes` is 512 MiB where slack is 0, because a replay then ends with exactly the weights
    of an undisturbed run; elsewhere 64 MiB. With fewer than `min_peers` live peers a worker pauses until
    peers are back. A contribution is left out where its norm is more than `norm_gate` times the running
    median, and after `offences` of these its sender is banned. The value 0 switches either off.
    """

    lease_s: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 30.0
    replay_bytes: Natural | None = None
    unbounded_backlog: Positive = 64
    finish_timeout_s: Seconds = 60.0
    stall_timeout_s: Seconds = 600.0
    min_peers: Natural = 0
    norm_gate: Weight = 10.0
    offences: Natural = 10

    def check(self, workers: int) -> None:
        """Refuse settings that do not fit this number of workers, or any.

        Raises:
            SettingsError: names the key.
        """
        if self.min_peers >= workers:
            raise SettingsError(
                f"bus.min_peers: {self.min_peers}, but a worker of this experiment has only {workers - 1} peers"
            )
        if 0 < self.norm_gate < 1:
            raise SettingsError(
                "bus.norm_gate: below 1 it would leave out what is usual; give it 1 or more, or 0 for none"
            )


class Security(Settings, frozen=True):
    """Where this worker's certificates and keys are (`config.security`); `{worker}` in the path is its number."""

    folder: str | None = None
