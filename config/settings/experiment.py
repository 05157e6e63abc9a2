"""One experiment: all blocks together, and the checks that need more than one block.

A block with a `name` (or a split's `kind`) is a tagged union: the tag picks the struct, and the struct says which
other keys are allowed. `degan/` looks a model, a data set or a mode up by the same tag.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from config.errors import SettingsError
from config.settings.base import Name, Natural, Positive, Seconds, Settings
from config.settings.bus import Bus, Security
from config.settings.data import Data
from config.settings.models import (
    Dcgan,
    Degan,
    GnLenet,
    Lsgan,
    Mlp,
    MlpClassifier,
    Optimiser,
    Regularisation,
    Resnet,
)
from config.settings.modes import Mode
from config.settings.modes.partial_exchange import PartialExchange
from config.settings.run import Run


class Experiment(Settings, frozen=True, kw_only=True):
    """One experiment file. `peers` lists each worker's Redis in worker order, or counts local workers."""

    name: Name
    seed: Natural = 1
    peers: Positive | list[str] = 1
    connect_timeout_s: Seconds = 30.0
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?)\Z")] = "auto"
    data: Data
    model: Lsgan | Dcgan | Mlp | Degan | None = None
    classifier: GnLenet | Resnet | MlpClassifier | None = None
    loss: Literal["non_saturating", "least_squares", "hinge", "wasserstein_gp"] = "non_saturating"
    regularisation: Regularisation = Regularisation()
    optimiser: Optimiser = Optimiser()
    mode: Mode = PartialExchange()
    bus: Bus = Bus()
    security: Security = Security()
    run: Run = Run()

    @property
    def image_size(self) -> int:
        """Height and width of the samples, where these are images."""
        return self._network.image_size

    @property
    def _network(self) -> Lsgan | Dcgan | Mlp | Degan | GnLenet | Resnet | MlpClassifier:
        found = self.classifier if self.model is None else self.model
        assert found is not None, "check has seen that there is one"
        return found

    @property
    def workers(self) -> int:
        """How many workers the experiment has."""
        return self.peers if isinstance(self.peers, int) else len(self.peers)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints; without a value of its own, as often as snapshots."""
        every = self.run.checkpoint_every
        return self.run.snapshot_every if every is None else every

    def check(self) -> None:
        """Refuse blocks that do not fit together.

        Raises:
            SettingsError: names the key.
        """
        self._check_peers()
        self.bus.check(self.workers)
        self.data.check(self.workers)
        self._check_learner()
        if self.data.name == "gaussian-ring" and not isinstance(self._network, Mlp | MlpClassifier):
            block = "model" if self.classifier is None else "classifier"
            raise SettingsError(f"{block}.name: gaussian-ring has points, not images; use mlp")
        self.mode.check(self)

    def _check_learner(self) -> None:
        """Refuse an experiment that is not exactly one of a GAN or a classifier."""
        if self.model is None and self.classifier is None:
            raise SettingsError("model: missing; give a GAN as model or a classifier as classifier")
        if self.classifier is None:
            return
        if self.model is not None:
            raise SettingsError("classifier: an experiment trains a GAN or a classifier; take out model or classifier")
        defaults = {field.name: field.default for field in msgspec.structs.fields(Experiment)}
        for name in ("loss", "regularisation"):
            if getattr(self, name) != defaults[name]:
                raise SettingsError(f"{name}: belongs to GANs; a classifier learns by cross entropy")

    def _check_peers(self) -> None:
        if not isinstance(self.peers, list):
            return
        if not self.peers:
            raise SettingsError("peers: empty; list one Redis URL a worker, or give a number for the local launcher")
        for index, url in enumerate(self.peers):
            if not re.match(r"^(redis|rediss|unix)://", url):
                raise SettingsError(f"peers[{index}]: {url!r} is no Redis URL; write redis://host:6379")
            try:
                urlsplit(url).port  # noqa: B018
            except ValueError as error:
                # The message leaves out a possible password. The reason may quote a part of one that has a slash.
                shown = re.sub(r"//.*@", "//", url)
                why = str(error) if "@" not in url else "its host or port is none"
                raise SettingsError(
                    f"peers[{index}]: {shown!r} is no Redis URL: {why}; write redis://host:6379"
                ) from None
