"""MD-GAN: one generator at the leader, a discriminator at each worker."""

from __future__ import annotations

from typing import Literal

from config.errors import SettingsError
from config.settings.base import Natural, Positive, Settings, Weight
from config.settings.modes.base import Rest, Robust, check_trim
from config.settings.modes.leader import Deadline, Leaders, Share, check_leaders


class MultiDiscriminator(Settings, frozen=True, tag_field="name", tag="multi_discriminator"):
    """MD-GAN: one generator at the leader, a discriminator at each worker; a step of `run` is a generator update.

    `swap_every` is in epochs of the workers' mean shard, each counted as (samples / batch_size) rounds; 0 for never;
    without a value 1 where two workers can swap.
    """

    leaders: Leaders = None
    leader_trains: bool = True
    batches: Positive | Literal["log"] = 1
    discriminator_steps: Positive = 1
    swap_every: Weight | None = None
    swap_optimiser: bool = True
    state_every: Positive = 100
    quorum: Share = 0.5
    deadline: Deadline = Deadline()
    codec: Literal["raw", "float16", "bfloat16", "int8"] = "float16"
    feedback_codec: Literal["raw", "float16", "bfloat16", "int8"] = "float16"
    reduce: Robust = "mean"
    byzantine: Natural = 1

    def check(self, rest: Rest) -> None:
        """Refuse settings that do not fit together.

        Raises:
            SettingsError: names the key.
        """
        if rest.classifier is not None:
            raise SettingsError("mode.name: multi_discriminator trains a GAN; give model instead of classifier")
        check_trim(self.reduce, self.byzantine, rest.workers)
        check_leaders(self.leaders, self.leader_trains, self.deadline, rest.workers)
        if self.swap_every and rest.workers == 1:
            raise SettingsError("mode.swap_every: one worker has nobody to swap its discriminator with; set it to 0")
        judges = rest.workers - (not self.leader_trains)
        if isinstance(self.batches, int) and self.batches > judges:
            raise SettingsError(
                f"mode.batches: {self.batches} batches for {judges} that judge; nobody would look at some"
            )
