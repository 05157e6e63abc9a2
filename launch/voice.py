"""The launcher's output: printed at once, and logged in the run folder's log.txt as soon as the folder exists."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO


def to_nowhere(stream: TextIO) -> None:
    """Redirect a stream to /dev/null after its reader has gone (`| head`, a closed terminal): each write would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Voice:
    """The one place for all output of the launcher; a closed pipe on the other end never ends a run."""

    def __init__(self) -> None:
        self._log: Path | None = None
        self._unwritten: list[str] = []

    def log_to(self, path: Path) -> None:
        """Append all output to `path` as well, earlier output included."""
        self._log = path
        earlier, self._unwritten = self._unwritten, []
        self._append("".join(earlier))

    def forget_log(self) -> None:
        """Print only from now on, because the log file is about to be removed."""
        self._log = Path(os.devnull)

    def log(self, text: str) -> None:
        """Print `text` and log it."""
        self.show(text)
        self.note(text)

    def show(self, text: str) -> None:
        """Print `text` only: for progress, which other files record."""
        self._print(text, sys.stdout)

    def note(self, text: str) -> None:
        """Log `text` only."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._append("".join(f"{now} {line}\n" for line in text.splitlines()))

    def error(self, text: str) -> None:
        """Print `text` to standard error, after all earlier output, and log it."""
        self._print(text, sys.stderr)
        self.note(text)

    def _append(self, lines: str) -> None:
        if self._log is None:
            self._unwritten.append(lines)
            return
        try:
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            # Printed once. On a full disk the workers report their own errors.
            self._log = Path(os.devnull)
            self._print(f"cannot write the launcher's log: {error}", sys.stderr)

    @staticmethod
    def _print(text: str, stream: TextIO) -> None:
        try:
            print(text, file=stream, flush=True)
        except OSError:
            to_nowhere(stream)
