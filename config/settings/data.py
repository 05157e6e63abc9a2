"""The data that the workers train on, and how the workers share it.

To add a split: its struct here, and its place in the union of `Data.split`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from config.errors import SettingsError
from config.settings.base import Natural, Positive, Rate, Settings


class Iid(Settings, frozen=True, tag_field="kind", tag="iid"):
    """Each worker holds a random n-th of the data."""


class Classes(Settings, frozen=True, tag_field="kind", tag="classes"):
    """Worker w holds the classes of `groups[w mod len(groups)]`; workers of one group share it out."""

    groups: list[list[Natural]]


class Dirichlet(Settings, frozen=True, tag_field="kind", tag="dirichlet"):
    """Per class, the workers' proportions are drawn from Dir(alpha); small alpha is very uneven."""

    alpha: Rate = 0.5
    min_samples: Positive = 10


class Shards(Settings, frozen=True, tag_field="kind", tag="shards"):
    """Sorted by label and cut into `per_worker` x n contiguous cuts; each worker draws `per_worker`."""

    per_worker: Positive = 2


class Fegan(Settings, frozen=True, tag_field="kind", tag="fegan"):
    """FeGAN's: worker 0 holds all classes, worker r of n only int(ramp r / n) + 1, in uneven numbers.

    Without a value `magic_num`, the most that a worker wants of a class, is half of the mean class.
    """

    magic_num: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None = None
    ramp: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 200
    min_samples: Positive = 10


class Mixed(Settings, frozen=True, tag_field="kind", tag="mixed"):
    """The fraction `even` is dealt out evenly at random, the rest in contiguous cuts in label order."""

    even: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class Own(Settings, frozen=True, tag_field="kind", tag="own"):
    """No split: a worker's shard is all the data at its `root`. For hosts that each hold their own data."""


class Data(Settings, frozen=True):
    """The data that the workers train on. Everything but `root` and `download` must agree between workers."""

    name: Literal["digits", "mnist", "fashion-mnist", "cifar10", "folder", "gaussian-ring"]
    root: str | None = None
    download: bool = False
    split: Iid | Classes | Dirichlet | Shards | Fegan | Mixed | Own = Iid()
    batch_size: Positive = 32

    def check(self, workers: int) -> None:
        """Refuse a split that does not fit the number of workers.

        Raises:
            SettingsError: names the key.
        """
        if not isinstance(self.split, Classes):
            return
        groups = self.split.groups
        if not groups or not all(groups):
            raise SettingsError("data.split.groups: every group needs at least one class")
        if len(groups) > workers:
            raise SettingsError(
                f"data.split.groups: {len(groups)} groups for {workers} workers; "
                "the data of some groups would be used by nobody"
            )
