"""A JSON Lines file, whole or as it grows: the one place where a line of a run folder is parsed.

A line that is no JSON object (a crash cut it off, a disk was full) is left out and counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The objects of the lines, and how many other lines there are; empty lines do not count."""
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
    """The JSON object that a file holds; empty where the file is missing or holds something else."""
    try:
        found = _json(path.read_bytes().decode("utf-8", errors="replace"))
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}


class Tail:
    """Follows a file that another process appends to.

    A file that became shorter is read from its beginning. `unreadable` counts the lines that were left out.

    Args:
        from_end: leave out what the file holds now.
    """

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self.unreadable = 0

    def read(self, is_ended: bool = False) -> list[dict[str, Any]]:
        """The objects of the lines that were completed since the last call; none where the file is missing.

        Args:
            is_ended: a last line without its end is taken too; otherwise it waits for its end.
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
