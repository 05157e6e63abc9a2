"""Partial exchange: parts of gradients or of weights under a staleness bound."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from config.errors import SettingsError
from config.settings.base import Natural, Settings
from config.settings.modes.base import Rest, Updates, check_trim, check_updates


class PartialExchange(Settings, frozen=True, tag_field="name", tag="partial_exchange"):
    """DEGAN and Ako: one of `parts` slices of the gathered gradient, or of the weights, is published in each step."""

    parts: Annotated[int, msgspec.Meta(ge=1, le=1024)] | Literal["auto"] = 4
    slack: Natural | None = 2
    codec: Literal["raw", "float16", "bfloat16", "int8", "topk", "sign"] = "float16"
    topk_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    rounding: Literal["nearest", "stochastic"] = "nearest"
    exchange: Literal["gradients", "parameters"] = "parameters"
    own: Literal["immediate", "delayed"] = "immediate"
    reduce: Literal["mean", "sum", "clipped_mean", "median", "trimmed_mean", "centered_clip"] = "mean"
    byzantine: Natural = 1
    updates: Updates = "simultaneous"

    def check(self, rest: Rest) -> None:
        """Refuse settings that do not fit together.

        Raises:
            SettingsError: names the key.
        """
        check_updates(self.updates, rest)
        if self.exchange == "parameters":
            self._check_parameters()
        else:
            self._check_gradients()
        if self.reduce in ("mean", "sum"):
            return
        check_trim(self.reduce, self.byzantine, rest.workers)
        if self.slack is None:
            raise SettingsError(
                f"mode.reduce: {self.reduce} chooses among what all have published by the bound; "
                "give mode.slack a number"
            )
        if self.exchange == "gradients" and self.own == "immediate":
            raise SettingsError(
                f"mode.reduce: {self.reduce} chooses among what all have published, and with own: immediate ours is "
                "not among it; set mode.own: delayed"
            )

    def _check_parameters(self) -> None:
        if self.slack is None and self.codec in ("int8", "topk", "sign"):
            raise SettingsError(
                f"mode.codec: {self.codec} carries differences, and with slack: null the workers agree on nothing that "
                "they could be differences to; give a slack, or use float16, bfloat16 or raw"
            )
        if self.slack is None and self.parts == "auto":
            raise SettingsError(
                "mode.parts: auto changes the number of parts in a round that all have reached, and with slack: null "
                "there is none; give mode.slack or mode.parts a number"
            )

    def _check_gradients(self) -> None:
        if self.slack is None and self.own == "delayed":
            raise SettingsError(
                "mode.own: delayed applies what all have published by the bound; give mode.slack a number"
            )
        if self.updates == "alternating":
            raise SettingsError(
                "mode.updates: alternating trains the generator against the discriminator that has just been updated, "
                "and exchange: gradients updates both after the exchange; set mode.exchange: parameters, or "
                "updates: simultaneous"
            )
