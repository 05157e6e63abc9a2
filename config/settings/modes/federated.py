"""Federated rounds: a cohort trains the leader's model, and the mean of the answers is the next model."""

from __future__ import annotations

from typing import Literal

from config.errors import SettingsError
from config.settings.base import Fraction, Natural, Positive, Settings
from config.settings.modes.base import Rest, Robust, check_trim
from config.settings.modes.leader import Deadline, Leaders, Share, check_leaders


class Stragglers(Settings, frozen=True):
    """FeGAN's weak workers: a fraction of all, drawn by the seed, take fewer local steps."""

    fraction: Fraction = 0.0
    local_steps: Positive | Literal["half"] = "half"


class Federated(Settings, frozen=True, tag_field="name", tag="federated"):
    """FL-GAN and FeGAN: in each round a cohort trains the leader's model, which becomes their weighted mean.

    A step of `run` is a round. `cohort` is a number of workers; without a value, `fraction` of the live workers.
    """

    leaders: Leaders = None
    leader_trains: bool = True
    fraction: Share = 0.5
    cohort: Positive | None = None
    sampling: Literal["uniform", "balanced"] = "uniform"
    share_histograms: bool = True
    local_steps: Positive = 50
    order: Literal["generator_first", "discriminator_first"] = "generator_first"
    weighting: Literal["uniform", "size", "kl"] = "size"
    scheme: Literal["exp", "linear", "dirac"] = "exp"
    sign: Literal["divergent_less", "as_released"] = "divergent_less"
    optimiser_state: Literal["keep", "reset", "average"] = "keep"
    quorum: Share = 0.5
    deadline: Deadline = Deadline()
    codec: Literal["raw", "float16", "bfloat16"] = "raw"
    reduce: Robust = "mean"
    byzantine: Natural = 1
    stragglers: Stragglers = Stragglers()

    def check(self, rest: Rest) -> None:
        """Refuse settings that do not fit together.

        Raises:
            SettingsError: names the key.
        """
        if self.order == "discriminator_first" and rest.classifier is not None:
            raise SettingsError("mode.order: discriminator_first is for a GAN's two networks; a classifier is one")
        check_trim(self.reduce, self.byzantine, rest.workers)
        if self.reduce != "mean" and self.optimiser_state == "average":
            raise SettingsError(
                f"mode.reduce: {self.reduce} is for models, and optimiser_state: average sends Adam's moments with "
                "them; set mode.optimiser_state: keep or reset"
            )
        check_leaders(self.leaders, self.leader_trains, self.deadline, rest.workers)
        if self.cohort is not None and self.cohort > rest.workers - (not self.leader_trains):
            those = f"only {rest.workers} workers" + ("" if self.leader_trains else ", and the leader does not train")
            raise SettingsError(f"mode.cohort: {self.cohort} workers a round, but there are {those}")
        needs = "weighting: kl" if self.weighting == "kl" else ""
        needs = "sampling: balanced" if self.sampling == "balanced" else needs
        if needs and not self.share_histograms:
            raise SettingsError(
                f"mode.{needs} needs to know what classes each worker holds; set mode.share_histograms: true, "
                "or use sampling: uniform with weighting: size or uniform"
            )
        has_moments = self.optimiser_state == "average" and rest.optimiser.algorithm == "adam"
        if has_moments and self.codec == "float16":
            raise SettingsError(
                "mode.codec: float16 makes zeros of Adam's second moments, which optimiser_state: average sends with "
                "the model, and the next step divides by them; set mode.codec: bfloat16 or raw"
            )
