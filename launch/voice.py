"""What the launcher says: to the person at once, and into the run folder's log.txt from when there is one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO


def to_nowhere(stream: TextIO) -> None:
    """Lead a stream whose reader has gone (`| head`, a closed terminal) to nowhere; it would fail for ever."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Voice:
    """One door for all that is said; a closed pipe on the other end never ends a run."""

    def __init__(self) -> None:
        self._log: Path | None = None
        self._unwritten: list[str] = []

    def log_to(self, path: Path) -> None:
        """From now on, and for all that was said before: append to `path` as well."""
        self._log = path
        earlier, self._unwritten = self._unwritten, []
        self._append("".join(earlier))

    def forget_log(self) -> None:
        """The log is about to be unmade: say things to the person only."""
        self._log = Path(os.devnull)

    def log(self, text: str) -> None:
        """Print `text` and log it."""
        self.show(text)
        self.note(text)

    def show(self, text: str) -> None:
        """Print `text` only: progress, whose record is elsewhere."""
        self._print(text, sys.stdout)

    def note(self, text: str) -> None:
        """Log `text` only."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._append("".join(f"{now} {line}\n" for line in text.splitlines()))

    def error(self, text: str) -> None:
        """Print `text` to standard error, after all that was said, and log it."""
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
            # Said once: a full disk is the workers' to report, in their own words.
            self._log = Path(os.devnull)
            self._print(f"cannot write the launcher's log: {error}", sys.stderr)

    @staticmethod
    def _print(text: str, stream: TextIO) -> None:
        try:
            print(text, file=stream, flush=True)
        except OSError:
            to_nowhere(stream)
