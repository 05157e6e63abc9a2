"""Reads what was appended to a JSON Lines file since the last look, while someone else writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """One file followed. A last line that is not whole yet waits for its end; a broken line is passed over."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """The objects of the lines that were completed since the last call; none where there is no file."""
        try:
            with open(self._path, "rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows
