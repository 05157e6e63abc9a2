"""The records of a run while it goes on, followed as its files grow: a `Row` a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from degan.runs.folder import METRICS
from degan.runs.lines import Tail
from degan.runs.records import Records
from degan.runs.records import Worker as Record
from launch.fleet import Worker
from launch.folder import RunFolder


@dataclass
class Row:
    """One worker's line of every table: its own record, and those of all for what is the run's."""

    record: Record
    total: int
    records: Records
    state: str = "starting"

    @property
    def worker(self) -> int:
        """The worker's number."""
        return self.record.number


class Board:
    """Follows the files of a run; `update` is cheap enough for a few calls a second."""

    def __init__(self, folder: RunFolder, workers: Sequence[Worker], total: int) -> None:
        """Of a run that is resumed, the lines of earlier incarnations count for the metrics and for nothing else."""
        self.records = Records({worker.number: Record(worker.number) for worker in workers})
        self.rows = [Row(self.records.workers[worker.number], total, self.records) for worker in workers]
        self._workers = workers
        self._metrics = Tail(folder.path / METRICS)

    def update(self) -> None:
        """Read what is new."""
        for line in self._metrics.read():
            self.records.add_metric(line)
        for worker, row in zip(self._workers, self.rows, strict=True):
            for line in worker.stats.read():
                row.record.add(line)
            row.state = worker.state(seen=bool(row.record.lines))
