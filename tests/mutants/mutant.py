"""One mutant: a realistic bug as a replacement of text in one file, and the tests that must fail with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A bug that could have been written.

    Attributes:
        name: the bug in a few words; unique in its table.
        path: the file, relative to the repository.
        old: text that stands exactly once in that file.
        new: the text of the bug in its place.
        tests: pytest's names of the tests that must fail, separated by spaces; part of `make test`.
        harmless: the reason why no test can see this bug, for the few such bugs; empty for all others.
    """

    name: str
    path: str
    old: str
    new: str
    tests: str
    harmless: str = ""

    def apply(self, root: Path) -> None:
        """Write the bug into a copy of the repository.

        Raises:
            ValueError: the old text is not there exactly once.
        """
        file = root / self.path
        text = file.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.path} has {text.count(self.old)} times {self.old!r}; expected once")
        file.write_text(text.replace(self.old, self.new), encoding="utf-8")
