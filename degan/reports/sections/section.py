"""A section: a part of a run's page, with the keys that it needs."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from degan.runs.folder import Run


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: its template is `sections/NAME.html`.
        needs: keys of the records, or parts of the folder: the section is for runs that have any of these. Empty for
            every run.
        content: the values of the template; None where there are none.
    """

    name: str
    content: Callable[[Run], dict[str, Any] | None]
    needs: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """The template's name."""
        return f"sections/{self.name}.html"

    def is_for(self, keys: Set[str]) -> bool:
        """Whether a run with these keys has the section."""
        return not self.needs or not keys.isdisjoint(self.needs)
