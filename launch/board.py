"""The records of a run in progress, followed as its files grow: one `Row` for each worker."""

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
    """One worker's row of every table: its own record, and all records for the values of the run."""

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
        """In a resumed run the lines of earlier incarnations are read for the metrics only."""
        self.records = Records({worker.number: Record(worker.number) for worker in workers})
        self.rows = [Row(self.records.workers[worker.number], total, self.records) for worker in workers]
        self._workers = workers
        self._metrics = Tail(folder.path / METRICS)

    def update(self) -> None:
        """Read the new lines."""
        for line in self._metrics.read():
            self.records.add_metric(line)
        for worker, row in zip(self._workers, self.rows, strict=True):
            for line in worker.stats.read():
                row.record.add(line)
            row.state = worker.state(seen=bool(row.record.lines))
