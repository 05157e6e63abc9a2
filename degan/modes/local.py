"""Local training: no exchange, each worker alone with its shard; the baseline of every other mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.learners.guard import NonFiniteGuard
from degan.learners.protocols import Trainable
from degan.modes import Context
from degan.modes.needs import Needs


class Local:
    """See `degan.modes.Mode`.

    Args:
        settings: the experiment.
        worker: this worker's number.
        learner: the learner that is trained.
        log: called with one line for a person.
    """

    is_shared = False

    def __init__(
        self, settings: Experiment, worker: int, learner: Trainable, log: Callable[[str], None] = lambda line: None
    ):
        self._worker = worker
        self._learner = learner
        self._guard = NonFiniteGuard(learner, log)
        self._sections = learner.sections(settings.mode.updates)
        self._stop_at: int | None = None

    def begin(self, checkpoints, saved, load) -> int:
        if checkpoints:
            load(checkpoints[-1])
        return checkpoints[-1] if checkpoints else 0

    def step(self, step: int, next_batch: Callable[[], Batch], is_sync_point: bool) -> dict[str, float]:
        found, batch = {}, next_batch()
        for section in self._sections:
            gradient, some, is_usable = self._guard.gradients(section, batch)
            if is_usable:
                self._learner.apply(section, gradient)
                self._learner.average(section)
            found.update(some)
        return found

    def synchronise(self, step: int) -> bool:
        return True

    def finish(self) -> None:
        pass

    def leave(self, is_together: bool) -> None:
        pass

    def ask_to_stop(self, step: int) -> None:
        self._stop_at = step + 1

    def is_stopping(self, step: int) -> bool:
        return self._stop_at is not None and step >= self._stop_at

    def is_first(self) -> bool:
        return self._worker == 0

    def state(self):
        return {}, {}

    def stats(self) -> dict[str, Any]:
        return {
            "sent_bytes": 0,
            "received_bytes": 0,
            "staleness_mean": 0.0,
            "staleness_max": 0,
            "live_peers": 0,
            "dropped": dict(self._guard.counts),
            "wait_s": 0.0,
            "exchange_s": 0.0,
        }

    def close(self) -> None:
        pass


def build(context: Context) -> Local:
    """The mode of one worker."""
    return Local(context.settings, context.worker, context.learner, context.log)


def needs(settings: Experiment, learner: Trainable) -> Needs:
    """The needs of a worker: none, because it has no node."""
    return Needs(vector_bytes=4 * learner.size)
