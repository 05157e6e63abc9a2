"""A run folder read whole and with tolerance: the folder of a run that died half-way is readable too.

Missing files are empty. Lines that are not JSON objects are skipped and counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from config import Experiment, UsageError, agreed, load, parse
from config.reader import FILE as SETTINGS
from config.reader import PRIVATE
from degan.runs.lines import Tail, read_object
from degan.runs.records import Records, Worker, number, whole

METRICS, STATS = "metrics.jsonl", "stats.jsonl"
MAX_PICTURES = 24
MAX_PICTURE_BYTES = 8_000_000  # all pictures together
_PNG = b"\x89PNG\r\n\x1a\n"


class Shards(NamedTuple):
    """The samples of each class in each worker's shard; a row is empty where only its own host knows the shard."""

    classes: list[str]
    counts: list[list[float]]


class Picture(NamedTuple):
    """A PNG of the run folder; `name` is its file's name without the ending."""

    name: str
    data: bytes

    @property
    def is_reals(self) -> bool:
        """Whether the picture shows real samples."""
        return self.name == "reals"

    @property
    def step(self) -> int | None:
        """The step in its name."""
        found = re.search(r"\d+", self.name)
        return int(found[0]) if found else None

    @property
    def remark(self) -> str:
        """The part of its name after the step."""
        return re.sub(r"^[-_ .]+", "", re.split(r"\d+", self.name, maxsplit=1)[-1]) if self.step is not None else ""


@dataclass
class Run(Records):
    """The content of a run folder.

    `experiment` is None where its file is missing or does not load. `plain` is the readable part of that file even
    then, and `settings` its text without passwords. `unreadable` counts lines by file.
    """

    folder: Path = Path()
    experiment: Experiment | None = None
    settings: str = ""
    plain: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    shards: Shards | None = None
    pictures: list[Picture] = field(default_factory=list)
    pictures_left_out: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The keys of the records, and the names of the other parts that the folder has."""
        return super().keys | {
            part for part in ("settings", "environment", "shards", "pictures") if getattr(self, part)
        }

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's."""
        return self.experiment.name if self.experiment else self.folder.resolve().name

    @property
    def mode(self) -> str:
        """The mode's name; "" where it is not known."""
        if self.experiment:
            return self.experiment.mode.__struct_config__.tag
        block = self.plain.get("mode")
        return str(block.get("name", "")) if isinstance(block, dict) else ""

    @property
    def seed(self) -> Any:
        """The seed, where the settings could be read."""
        return self.experiment.seed if self.experiment else self.plain.get("seed")

    @property
    def size(self) -> int:
        """How many workers the run has."""
        return self.experiment.workers if self.experiment else len(self.workers)

    @property
    def planned_steps(self) -> int | None:
        """How many steps the run should have."""
        return self.experiment.run.steps if self.experiment else self._of_run("steps")

    @property
    def log_every(self) -> int:
        """Steps between two lines of a worker; 0 where it is not known."""
        return self.experiment.run.log_every if self.experiment else self._of_run("log_every") or 0

    @property
    def shared_settings(self) -> dict[str, Any]:
        """The settings that define a run, flat: `{"mode.slack": 2, ...}`; never those private to a host."""
        if self.experiment is not None:
            return agreed(self.experiment)
        flat = dict(_flat(self.plain))
        peers = flat.get("peers", 1)
        kept = {key: value for key, value in flat.items() if key not in PRIVATE}
        return {**kept, "peers (how many)": len(peers) if isinstance(peers, list) else peers} if kept else {}

    def _of_run(self, key: str) -> int | None:
        """A value from settings that do not load: those of another version of degan, for example."""
        block = self.plain.get("run")
        return whole(block.get(key)) if isinstance(block, dict) else None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UsageError: the folder is missing, or has no file of a run.
    """
    if not folder.is_dir():
        raise UsageError(f"no run folder {folder}")
    stats = {int(path.parent.name[1:]): path for path in folder.glob(f"w*/{STATS}") if _is_worker(path.parent.name)}
    if not (stats or (folder / SETTINGS).is_file() or (folder / METRICS).is_file()):
        raise UsageError(f"{folder} is no run folder: it has no {SETTINGS}, {METRICS} or w0/{STATS}")
    run = Run(folder=folder)
    _read_settings(run)
    known = range(min(run.experiment.workers, 1024) if run.experiment else 0)
    run.workers = {index: Worker(index) for index in sorted({*known, *stats})}
    for index, path in sorted(stats.items()):
        _read_lines(run, path, run.workers[index].add)
    _read_lines(run, folder / METRICS, run.add_metric)
    run.workers = dict(sorted(run.workers.items()))
    run.environment = read_object(folder / "environment.json")
    run.shards = _shards(read_object(folder / "shards.json"))
    run.pictures, run.pictures_left_out = _pictures(folder)
    return run


def check_is_one(folder: Path) -> None:
    """Refuse a folder of run folders.

    Raises:
        UsageError: the message shows how to name the runs in the folder.
    """
    try:
        inside = sorted(path.parent for path in folder.glob(f"*/{SETTINGS}"))
    except OSError:
        inside = []
    if inside and not (folder / SETTINGS).exists() and not any(folder.glob(f"w*/{STATS}")):
        raise UsageError(f"{folder} is no run folder but holds {len(inside)}; name them: {folder}/*")


def _read_settings(run: Run) -> None:
    path = run.folder / SETTINGS
    if not path.is_file():
        return
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        text = ""
    # Reports are sent around, so they must not contain the passwords of Redis URLs.
    run.settings = re.sub(r"(rediss?://[^:@/\s]*:)[^@\s]*@", r"\1***@", text)
    try:
        plain = parse(text)
        run.plain = plain if isinstance(plain, dict) else {}
        run.experiment = load(path)
    except UsageError:
        run.unreadable[SETTINGS] = 1


def _read_lines(run: Run, path: Path, add: Any) -> None:
    tail = Tail(path)
    without_step = sum(not add(row) for row in tail.read(is_ended=True))
    if tail.unreadable + without_step:
        run.unreadable[str(path.relative_to(run.folder))] = tail.unreadable + without_step


def _flat(block: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in block.items():
        inner = f"{path}.{key}" if path else str(key)
        found += _flat(value, inner) if isinstance(value, dict) else [(inner, value)]
    return found


def _is_worker(name: str) -> bool:
    return re.fullmatch(r"w[0-9]{1,6}", name) is not None


def _shards(data: dict[str, Any]) -> Shards | None:
    classes, counts = data.get("classes"), data.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list) or not classes or not counts:
        return None
    rows = [[number(value) or 0.0 for value in row] if isinstance(row, list) else [] for row in counts]
    if not any(rows) or any(len(row) not in (0, len(classes)) for row in rows):
        return None
    return Shards([str(name) for name in classes], rows)


def _pictures(folder: Path) -> tuple[list[Picture], int]:
    """The reals and the fakes in order of their steps; evenly thinned out if they are many or large."""

    def order(path: Path) -> tuple[int, str]:
        step = Picture(path.stem, b"").step
        return (-1 if step is None else step, path.stem)

    def whole_png(path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except OSError:
            return b""
        return data if data.startswith(_PNG) and b"IEND" in data[-16:] and len(data) <= MAX_PICTURE_BYTES else b""

    fakes = sorted(folder.glob("fakes*.png"), key=order)
    sizes = [path.stat().st_size for path in fakes]
    keep = min(len(fakes), MAX_PICTURES)
    if fakes and sum(sizes) > 0:
        keep = min(keep, max(2, int(MAX_PICTURE_BYTES * len(fakes) / sum(sizes))))
    chosen = [fakes[round(i * (len(fakes) - 1) / max(1, keep - 1))] for i in range(keep)]
    found = [Picture(path.stem, whole_png(path)) for path in [folder / "reals.png", *chosen]]
    return [picture for picture in found if picture.data], len(fakes) - keep
