"""The keys of older run folders in today's words: applied to every line of statistics that is read.

A key that is renamed gets a row here, so that every run folder stays readable.
"""

from __future__ import annotations

from typing import Any

# Keys of stats.jsonl, old to new.
STATS = {"strikes": "offences", "muted": "banned"}
# Reasons in the counts of `dropped`, old to new.
REASONS = {"muted": "banned", "seal": "mac"}


def in_todays_words(line: dict[str, Any]) -> dict[str, Any]:
    """A copy of a line of stats.jsonl with today's keys; a new key that is already in the line is kept."""
    found = dict(line)
    for old, new in STATS.items():
        if old in found:
            found.setdefault(new, found.pop(old))
    if isinstance(found.get("dropped"), dict):
        found["dropped"] = {REASONS.get(reason, reason): count for reason, count in found["dropped"].items()}
    return found
