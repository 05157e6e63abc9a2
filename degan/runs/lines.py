"""A JSON Lines file, whole or as it grows: the only parser of a run folder's lines.

A line that is not a JSON object (after a crash or a full disk) is left out and counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The objects of the lines, and the number of other lines, without empty ones."""
    lines = [line for line in data.decode("utf-8", errors="replace").split("\n") if line.strip()]
    rows = [row for line in lines if isinstance(row := _json(line), dict)]
    return rows, len(lines) - len(rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a whole file.

    Raises:
        OSError: the file cannot be read.
    """
    return parse(path.read_bytes())[0]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is missing or has other content."""
    try:
        found = _json(path.read_bytes().decode("utf-8", errors="replace"))
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}


class Tail:
    """Follows a file that another process appends to.

    A file that became shorter is read from its beginning. `unreadable` counts the lines that were left out.

    Args:
        from_end: begin at the present end of the file.
    """

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self.unreadable = 0

    def read(self, is_ended: bool = False) -> list[dict[str, Any]]:
        """The objects of the lines that were completed since the last call; none where the file is missing.

        Args:
            is_ended: whether to read a last line without a line end too; otherwise such a line is read later.
        """
        try:
            with open(self._path, "rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        data = data if is_ended else data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        rows, unreadable = parse(data)
        self.unreadable += unreadable
        return rows


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
