"""The files that a worker writes: lines in stats.jsonl and metrics.jsonl, pictures, and its log."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from degan.runs.folder import METRICS, STATS
from degan.runs.lines import read_lines


def log(line: str) -> None:
    """One line for a person, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class Journal:
    """Appends to the run folder. A line is one write, so several workers may share a file.

    Args:
        run: the run folder.
        worker: this worker's number.
    """

    def __init__(self, run: Path, worker: int):
        self.folder = run / f"w{worker}"
        self._worker = worker
        self._has_said = False
        self._stats = self.folder / STATS
        self._metrics = run / METRICS

    def forget_after(self, step: int) -> None:
        """Drop this worker's statistics after `step`, because the worker trains these steps again.

        All workers write metrics.jsonl, so no line is removed from that file; its readers take a step's last line.
        """
        if self._stats.exists():
            kept = [line for line in read_lines(self._stats) if line.get("step", 0) <= step]
            temporary = self._stats.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self._stats)

    def stats(self, line: dict[str, Any]) -> None:
        self._write(self._stats, line)

    def metric(
        self, step: int, images: int, name: str, value: float | list[float], seconds: float, **more: Any
    ) -> None:
        line = {"step": step, "worker": self._worker, "images": images, "metric": name, "value": value}
        self._write(self._metrics, {**line, "seconds": seconds, **more})

    def _write(self, path: Path, line: dict[str, Any]) -> None:
        """Append a line to a file. A failed write (a full disk) is logged once, and training continues."""
        try:
            _append(path, line)
        except OSError as error:
            if not self._has_said:
                log(f"cannot write to {path}: {error.strerror}; going on without what belongs there")
            self._has_said = True


def _append(path: Path, line: dict[str, Any]) -> None:
    text = json.dumps({key: _finite(value) for key, value in line.items()}) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _finite(value: Any) -> Any:
    """The value for JSON: a float that is not finite becomes null, because JSON has none."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
