"""Several run folders side by side, as numbers: one curve a run, one row a run, and the repeats of a setting together.

What holds everywhere on the comparison's pages:

* A run's FID at a step is the worst (the largest) over the workers that measured at that step; its coverage is the
  lowest. A value that was no finite number, from a generator that diverged, is worse than any: infinity.
* Bytes and images are those of all workers together so far; the time is that of the slowest worker that got there.
* Runs repeat each other when all their settings are the same but the seed, the name and what is private to a host.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from config import UsageError, agreed
from degan.reports.faults import behind
from degan.runs.records import Run, is_of, read_run

# What two repeats may differ in, of the settings that could be read but do not load (a loaded file knows its own).
PRIVATE = ("peers", "connect_timeout_s", "device", "data.root", "data.download", "run.log_every", "security.folder")
REPEATS = ("name", "seed")


@dataclass(frozen=True)
class Point:
    """One evaluation of a run: when it was, in four ways, and what came out; `fid` may be infinite."""

    step: int
    seconds: float | None
    sent_bytes: float | None
    images: float | None
    fid: float


@dataclass(frozen=True)
class Entry:
    """One run as a row; None is what nobody wrote down.

    `curves` are by the metric's name; `fid` is the one that the row shows, and that most of the runs have.
    """

    run: Run
    label: str
    settings: dict[str, Any]
    curves: dict[str, list[Point]]
    fid: str | None

    @property
    def points(self) -> list[Point]:
        """The curve of the row's FID; empty where nothing was measured."""
        return self.curves.get(self.fid, []) if self.fid else []

    @property
    def first(self) -> float | None:
        """The first FID."""
        return self.points[0].fid if self.points else None

    @property
    def last(self) -> float | None:
        """The newest FID."""
        return self.points[-1].fid if self.points else None

    @property
    def best(self) -> float | None:
        """The lowest FID."""
        return min((point.fid for point in self.points), default=None)

    @property
    def floor(self) -> float | None:
        """What real samples reach."""
        return self.run.floor(self.fid) if self.fid else None

    @property
    def coverage(self) -> float | None:
        """The lowest coverage over the workers at the newest step at which it was measured."""
        name = next((name for name in self.run.measured() if is_of("coverage", name)), None)
        found = [point for line in self.run.metrics.get(name, {}).values() for point in line] if name else []
        newest = max((step for step, _, _ in found), default=None)
        return min((value for step, _, value in found if step == newest and value is not None), default=None)

    @property
    def workers(self) -> int:
        """How many workers the run has."""
        return self.run.experiment.workers if self.run.experiment else len(self.run.workers)

    @property
    def seed(self) -> Any:
        """The seed, where the settings could be read."""
        return self.run.experiment.seed if self.run.experiment else self.run.plain.get("seed")

    @property
    def steps(self) -> int | None:
        """The step that the furthest worker has reached."""
        return max((worker.lines[-1]["step"] for worker in self.run.workers.values() if worker.lines), default=None)

    @property
    def is_whole(self) -> bool:
        """Whether the run reached its last step; where that is not known it is taken to have."""
        return self.run.planned_steps is None or (self.steps or 0) >= self.run.planned_steps

    @property
    def seconds(self) -> float | None:
        """The training time of the worker that trained longest."""
        known = [worker.last("time_s") for worker in self.run.workers.values()]
        return max((value for value in known if value is not None), default=None)

    @property
    def sent_bytes(self) -> float | None:
        """Of all workers."""
        return self._sum("sent_bytes", wants_all=False)

    @property
    def predicted_bytes(self) -> float | None:
        """What the mode's formula says for `sent_bytes`; None unless every worker that sent anything says it."""
        return self._sum("predicted_sent_bytes", wants_all=True)

    @property
    def images(self) -> float | None:
        """Images that the workers have trained on, together."""
        return self._sum("images", wants_all=False)

    @property
    def images_per_s(self) -> float | None:
        """Over the whole run."""
        return self.images / self.seconds if self.images is not None and self.seconds else None

    @property
    def dead(self) -> int:
        """Workers that fell silent before the others."""
        return len(behind(self.run))

    @property
    def restarts(self) -> int:
        """How often a worker went back to an earlier step."""
        return sum(len(worker.restarts) for worker in self.run.workers.values())

    @property
    def dropped(self) -> int:
        """Messages that were not applied; late answers of a round are counted apart (`Run.late`)."""
        told_apart = {"late"} if self.run.late is not None else set()
        drops = [item for worker in self.run.workers.values() for item in worker.dropped.items()]
        return int(sum(count for reason, count in drops if reason not in told_apart))

    @property
    def split(self) -> str:
        """How the data is cut: `dirichlet 0.5`."""
        block = {key.rpartition(".")[2]: value for key, value in self.settings.items() if key.startswith("data.split.")}
        kind = str(block.pop("kind", ""))
        # The one number that makes it what it is; the others bound it.
        told = [block[key] for key in ("alpha", "per_worker", "even", "magic_num") if block.get(key) is not None]
        return " ".join([kind, *map(str, told)]).strip()

    def _sum(self, key: str, wants_all: bool) -> float | None:
        values = [worker.last(key) for worker in self.run.workers.values() if worker.last("sent_bytes") is not None]
        known = [value for value in values if value is not None]
        return sum(known) if known and (len(known) == len(values) or not wants_all) else None


@dataclass(frozen=True)
class Group:
    """Runs that repeat one setting with other seeds.

    `counted` are those that a median is over: the ones that reached their last step, or all where none did.
    """

    label: str
    entries: list[Entry]

    @property
    def counted(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.is_whole] or self.entries

    def spread(self, what: str) -> tuple[float, float, float] | None:
        """(median, lowest, highest) of a property of `Entry` over the counted runs that know it."""
        values = [value for entry in self.counted if (value := getattr(entry, what)) is not None]
        return (median(values), min(values), max(values)) if values else None


def read(folders: Sequence[Path]) -> list[Entry]:
    """Read run folders, in their order; a folder that is named twice is read once.

    Raises:
        UsageError: one of them is no run folder, or there is only one.
    """
    folders = list({path.resolve(): path for path in folders}.values())
    for folder in folders:
        _check(folder)
    if len(folders) < 2:
        raise UsageError(f"only one run ({folders[0]}); name two or more run folders to compare")
    runs = [read_run(folder) for folder in folders]
    fids = [[name for name in run.measured() if is_of("fid", name)] for run in runs]
    # The FID that most runs have, so that as many rows as possible can be held against each other.
    votes = Counter(name for names in fids for name in names)
    entries = []
    for run, names, label in zip(runs, fids, labels(folders), strict=True):
        chosen = max(names, key=lambda name: (votes[name], "classifier" in name), default=None)
        entries.append(Entry(run, label, _settings(run), {name: curve(run, name) for name in names}, chosen))
    return entries


def _check(folder: Path) -> None:
    try:
        inside = sorted(path.parent for path in folder.glob("*/experiment.yaml"))
    except OSError:
        inside = []
    if inside and not (folder / "experiment.yaml").exists() and not any(folder.glob("w*/stats.jsonl")):
        raise UsageError(f"{folder} is no run folder but holds {len(inside)}; name them: {folder}/*")


def labels(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as it takes to tell them apart."""
    parts = [path.resolve().parts for path in folders]
    named: list[str] = []
    for own in parts:
        size = next(n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts) == 1)
        named.append("/".join(own[-size:]))
    return named


def curve(run: Run, name: str) -> list[Point]:
    """The run's worst value of a metric at each step at which anybody measured."""
    at: dict[int, list[float]] = {}
    for line in run.metrics[name].values():
        for step, _, value in line:
            at.setdefault(step, []).append(math.inf if value is None else value)
    return [
        Point(
            step, _seconds_at(run, name, step), _all_at(run, "sent_bytes", step), _all_at(run, "images", step), max(v)
        )
        for step, v in sorted(at.items())
    ]


def _seconds_at(run: Run, name: str, step: int) -> float | None:
    """Of the slowest worker that has got to `step`; of those that measured there where no line reaches it yet."""
    there = [worker for worker in run.workers.values() if worker.lines and worker.lines[-1]["step"] >= step]
    if not there:
        measured = [index for index, line in run.metrics[name].items() if any(at == step for at, _, _ in line)]
        there = [run.workers[index] for index in measured]
    known = [worker.seconds_at(step) for worker in there]
    return max((value for value in known if value is not None), default=None)


def _all_at(run: Run, key: str, step: int) -> float | None:
    known = [value for worker in run.workers.values() if (value := worker.count_at(key, step)) is not None]
    return sum(known) if known else None


def _settings(run: Run) -> dict[str, Any]:
    """The settings that make a run what it is, flat: `{"mode.slack": 2, ...}`; never the Redis URLs."""
    if run.experiment is not None:
        return agreed(run.experiment)
    flat = dict(_flat(run.plain))
    peers = flat.get("peers", 1)
    kept = {key: value for key, value in flat.items() if key not in PRIVATE}
    return {**kept, "peers (how many)": len(peers) if isinstance(peers, list) else peers} if kept else {}


def _flat(block: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in block.items():
        inner = f"{path}.{key}" if path else str(key)
        found += _flat(value, inner) if isinstance(value, dict) else [(inner, value)]
    return found


def groups(entries: Sequence[Entry]) -> list[Group]:
    """The runs by their settings, in the order of their first runs."""
    by_settings: dict[str, list[Entry]] = {}
    for at, entry in enumerate(entries):
        same = {key: value for key, value in entry.settings.items() if key not in REPEATS}
        # A run whose settings could not be read repeats nobody.
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

    The mode, what differs between the runs of that mode, and only where that does not tell two apart the rest.
    """
    words = [[entry.run.mode] if entry.run.mode else [] for entry in entries]
    for of_mode in (True, False):
        alike: dict[str, list[int]] = {}
        for at, entry in enumerate(entries):
            alike.setdefault(entry.run.mode if of_mode else " ".join(words[at]), []).append(at)
        for group in alike.values():
            # Of one alone there is nothing to tell.
            for key in differences([entries[at] for at in group]):
                if key.startswith("mode.") == of_mode:
                    for at in group:
                        words[at] += _word(key, entries[at].settings.get(key))
    told = [", ".join([*each[:most], *(["…"] if len(each) > most else [])]) for each in words]
    # What is left the same, or could not be told at all, goes by the run's name.
    return [
        text if text and told.count(text) == 1 else ": ".join(filter(None, (text, entry.label)))
        for text, entry in zip(told, entries, strict=True)
    ]


def _word(key: str, value: Any) -> list[str]:
    last = key.rpartition(".")[2].partition(" ")[0]
    if value is None or isinstance(value, list):
        return []
    return [str(value) if last in ("name", "kind") else f"{last} {value}"]
