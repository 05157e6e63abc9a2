"""Words and numbers as the pages write them."""

from __future__ import annotations

import re
from collections.abc import Callable

from degan.reports import svg
from degan.runs.facts import FAMILIES, family

DASH = "–"
WORDS = {"fid": "FID", "tv": "TV"}


def many(count: int, what: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def word(name: str) -> str:
    """The word for a metric's family, within a sentence: `FID`, `accuracy`."""
    return WORDS.get(family(name), family(name))


def title(name: str) -> str:
    """The word for a metric's family, at the beginning of a title: `FID`, `Accuracy`."""
    return word(name)[:1].upper() + word(name)[1:]


def pretty(name: str) -> str:
    """`fid5000_classifier` -> `FID (classifier, 5,000 samples)`."""
    found = re.fullmatch(r"([a-z]+)(\d+)_(.+)", name)
    if not found:
        return f"{title(name)} (evaluated)" if name in FAMILIES else name
    return f"{title(name)} ({found[3].replace('_', ' ')}, {int(found[2]):,} samples)"


def or_dash(value: float | None, text: Callable[[float], str] = svg.short) -> str:
    """`text(value)`, or a dash for None."""
    return DASH if value is None else text(value)


def count(value: float) -> str:
    """A count: 12,345."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A share: 25%."""
    return f"{value:.0%}"


def whole_or_short(value: float) -> str:
    """A step: 1,500; a value between two steps with three significant digits."""
    return count(value) if value == int(value) else svg.short(value)


def time_unit(longest_s: float) -> tuple[str, float]:
    """The unit of a time axis, and the seconds in one unit."""
    return next((unit for unit in (("s", 1), ("min", 60)) if longest_s <= 120 * unit[1]), ("h", 3600))
