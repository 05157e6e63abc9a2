"""The run folder: created, filled, and restored when the start fails, so that nothing half-written is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from config import UsageError
from degan.runs.folder import SETTINGS


class RunFolder:
    """The run folder with the name that a person gave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []
        self._before: dict[Path, bytes | None] = {}

    @property
    def settings(self) -> Path:
        """The resolved settings."""
        return self.path / SETTINGS

    def open(self) -> None:
        """Create the folder where it is missing, and check that it can be written.

        Raises:
            UsageError: the folder cannot be created or written.
        """
        try:
            self._make(self.path)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            self.discard()
            raise UsageError(f"cannot write to {self.path}: {error.strerror or error}; choose another --out") from None

    def worker(self, number: int) -> Path:
        """Worker `number`'s folder, created where it is missing."""
        return self.folder(f"w{number}")

    def folder(self, name: str) -> Path:
        """A folder inside the run folder, created where it is missing."""
        self._make(self.path / name)
        return self.path / name

    def write(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        path = self.path / name
        self.track(name)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def track(self, name: str) -> Path:
        """Remember the present content of file `name`, for `discard`."""
        path = self.path / name
        if path not in self._before:
            self._before[path] = path.read_bytes() if path.is_file() else None
        return path

    def discard(self) -> None:
        """Restore the state before `open`, as far as possible."""
        with contextlib.suppress(OSError):
            for path, before in self._before.items():
                if before is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(before)
        for made in reversed(self._made):
            if made == self.path or self.path in made.parents:
                shutil.rmtree(made, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    made.rmdir()
        self._made.clear()
        self._before.clear()

    def _make(self, path: Path) -> None:
        missing = []
        while not path.exists():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir()
            self._made.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(20, "not a folder")
