"""Several run folders side by side: one row and one curve for each run, and the repeats of a setting together.

The figures are those of `degan.runs.facts`. Runs repeat each other when all their settings are the same but the seed,
the name and the settings that are private to a host.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from config import UsageError
from degan.runs import facts
from degan.runs.facts import Point
from degan.runs.folder import Run, check_is_one, read_run

REPEATS = ("name", "seed")


@dataclass(frozen=True)
class Entry:
    """One run as a row.

    `curves` are by the metric's name. `metric` is the metric of the row, which most of the runs have.
    """

    run: Run
    label: str
    settings: dict[str, Any]
    curves: dict[str, list[Point]]
    metric: str | None

    @property
    def points(self) -> list[Point]:
        """The curve of the row's metric; empty where nothing was measured."""
        return self.curves.get(self.metric, []) if self.metric else []

    @property
    def first(self) -> float | None:
        """The metric's first value."""
        return self.points[0].value if self.points else None

    @property
    def last(self) -> float | None:
        """The metric's newest value."""
        return self.points[-1].value if self.points else None

    @property
    def best(self) -> float | None:
        """The metric's best value."""
        best = min if facts.is_lower_better(self.metric or "") else max
        return best((point.value for point in self.points), default=None)

    @property
    def floor(self) -> float | None:
        """The metric's value for real samples."""
        return facts.floor(self.run, self.metric) if self.metric else None

    @property
    def split(self) -> str:
        """The split of the data: `dirichlet 0.5`."""
        block = {key.rpartition(".")[2]: value for key, value in self.settings.items() if key.startswith("data.split.")}
        kind = str(block.pop("kind", ""))
        # The characteristic number of the split; the other settings only bound the split.
        told = [block[key] for key in ("alpha", "per_worker", "even", "magic_num") if block.get(key) is not None]
        return " ".join([kind, *map(str, told)]).strip()


@dataclass(frozen=True)
class Group:
    """Runs that repeat one setting with other seeds.

    `counted` are the runs in the medians: those that reached their last step, or all where none did.
    """

    label: str
    entries: list[Entry]

    @property
    def counted(self) -> list[Entry]:
        return [entry for entry in self.entries if facts.is_whole(entry.run)] or self.entries

    def spread(self, of: Callable[[Entry], float | None]) -> tuple[float, float, float] | None:
        """(median, lowest, highest) of a fact over the counted runs that have the fact."""
        values = [value for entry in self.counted if (value := of(entry)) is not None]
        return (median(values), min(values), max(values)) if values else None


def read(folders: Sequence[Path]) -> list[Entry]:
    """Read run folders, in their order; a repeated folder is read once.

    Raises:
        UsageError: one of them is not a run folder, or there is only one.
    """
    folders = list({path.resolve(): path for path in folders}.values())
    for folder in folders:
        check_is_one(folder)
    if len(folders) < 2:
        raise UsageError(f"only one run ({folders[0]}); name two or more run folders to compare")
    runs = [read_run(folder) for folder in folders]
    names = [facts.measured(run, *facts.PRINCIPAL) for run in runs]
    # The metric that most runs have, so that as many rows as possible can be compared.
    votes = Counter(name for of_run in names for name in of_run)
    return [
        Entry(
            run,
            label,
            run.shared_settings,
            {name: facts.curve(run, name) for name in of_run},
            facts.principal(run, votes),
        )
        for run, of_run, label in zip(runs, names, labels(folders), strict=True)
    ]


def labels(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as make the labels distinct."""
    parts = [path.resolve().parts for path in folders]
    named: list[str] = []
    for own in parts:
        size = next(n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts) == 1)
        named.append("/".join(own[-size:]))
    return named


def groups(entries: Sequence[Entry]) -> list[Group]:
    """The runs by their settings, in the order of their first runs."""
    by_settings: dict[str, list[Entry]] = {}
    for at, entry in enumerate(entries):
        same = {key: value for key, value in entry.settings.items() if key not in REPEATS}
        # A run with unreadable settings is no repeat of another run.
        key = json.dumps(same, sort_keys=True, default=str) if same else f"unread {at}"
        by_settings.setdefault(key, []).append(entry)
    found = list(by_settings.values())
    named = _described([entries[0] for entries in found])
    return [Group(name, entries) for name, entries in zip(named, found, strict=True)]


def differences(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, with each run's value; None where its mode has no such setting."""
    known = [entry for entry in entries if entry.settings]
    keys = {key: None for entry in known for key in entry.settings if key not in REPEATS}
    rows = {key: [entry.settings.get(key) for entry in entries] for key in keys}
    return {
        key: values
        for key, values in rows.items()
        if len({json.dumps(entry.settings.get(key), sort_keys=True, default=str) for entry in known}) > 1
    }


def _described(entries: Sequence[Entry], most: int = 6) -> list[str]:
    """Each setting in a few words: `federated, sampling balanced, weighting kl`.

    The words are the mode and the settings of the mode that differ between its runs. Other settings are added only
    where two descriptions are equal.
    """
    words = [[entry.run.mode] if entry.run.mode else [] for entry in entries]
    for of_mode in (True, False):
        alike: dict[str, list[int]] = {}
        for at, entry in enumerate(entries):
            alike.setdefault(entry.run.mode if of_mode else " ".join(words[at]), []).append(at)
        for group in alike.values():
            # A group of one run has no differences.
            for key in differences([entries[at] for at in group]):
                if key.startswith("mode.") == of_mode:
                    for at in group:
                        words[at] += _word(key, entries[at].settings.get(key))
    told = [", ".join([*each[:most], *(["…"] if len(each) > most else [])]) for each in words]
    # An empty description, or one that is still not unique, gets the run's name.
    return [
        text if text and told.count(text) == 1 else ": ".join(filter(None, (text, entry.label)))
        for text, entry in zip(told, entries, strict=True)
    ]


def _word(key: str, value: Any) -> list[str]:
    last = key.rpartition(".")[2].partition(" ")[0]
    if value is None or isinstance(value, list):
        return []
    return [str(value) if last in ("name", "kind") else f"{last} {value}"]
