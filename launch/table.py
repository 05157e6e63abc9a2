"""The run as a table: live on a terminal, plain lines elsewhere, and a summary at the end.

A column shows itself where its key is in the workers' records, so the table knows no mode.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from degan.runs import facts
from launch.board import Board, Row
from launch.voice import Voice, to_nowhere

REDRAW_S = 0.5
UNKNOWN = "-"


@dataclass(frozen=True)
class Column:
    """A title, and its text for a row.

    Args:
        needs: the column is shown where a worker's newest line has this key, or this family of metrics was measured;
            "" for always.
        unless: the column is shown only where no worker's newest line has this key.
        right: whether the text is aligned to the right.
        spare: the order in which a narrow terminal leaves columns out, highest first; 0 is always shown.
    """

    title: str
    show: Callable[[Row], str]
    needs: str = ""
    unless: str = ""
    right: bool = True
    spare: int = 0


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, or a dash."""
    if value is None:
        return UNKNOWN
    # A number such as 999.6 rounds to one digit more. The code prints it as 1000, not as 1e+03.
    return f"{value:.0f}" if 10**digits <= abs(value) + 0.5 and abs(value) < 1e9 else f"{value:.{digits}g}"


def whole(value: float | None) -> str:
    """A count, or a dash."""
    return UNKNOWN if value is None or not abs(value) < float("inf") else f"{value:.0f}"


def size(value_bytes: float | None) -> str:
    """A readable number of bytes: 1.5 MiB."""
    if value_bytes is None or not abs(value_bytes) < float("inf"):
        return UNKNOWN
    if abs(value_bytes) < 1024:
        return f"{value_bytes:.0f} B"
    power = min(4, (int(abs(value_bytes)).bit_length() - 1) // 10)
    return f"{value_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def _step(row: Row) -> str:
    return f"{whole(row.record.step or 0)}/{row.total}"


def _staleness(row: Row) -> str:
    mean, most = row.record.newest("staleness_mean"), row.record.newest("staleness_max")
    return UNKNOWN if mean is None else f"{mean:.1f} (max {whole(most)})"


def _leader(row: Row) -> str:
    number = row.record.newest("leader")
    return UNKNOWN if number is None else f"w{whole(number)}"


def _answered(row: Row) -> str:
    """How many of the cohort answered in time, in the newest round: `3/4`; only the leader's row has these."""
    answered, cohort = row.record.newest("answered"), row.record.newest("cohort")
    if answered is None or row.record.newest("leader") != row.worker:
        return UNKNOWN
    return whole(answered) if cohort is None else f"{whole(answered)}/{whole(cohort)}"


def _offences(row: Row) -> str:
    """The offences that the worker has counted by peer, and the peers that it has banned: `w2: 3, w7: banned`."""
    offences, banned = facts.offences(row.record), facts.banned(row.record)
    told = [f"w{peer}: {'banned' if peer in banned else count}" for peer, count in offences.items()]
    return ", ".join(told) or UNKNOWN


def _number(title: str, key: str, text: Callable[[float | None], str], spare: int = 0, unless: str = "") -> Column:
    """The column of one key of the workers' statistics."""
    return Column(title, lambda row: text(row.record.newest(key)), needs=key, unless=unless, spare=spare)


def _metric(title: str, family: str, end: int) -> Column:
    """The column of a worker's first (`end` 0) or newest (1) value of the metric of a family."""

    def show(row: Row) -> str:
        name = facts.principal(row.records, families=(family,))
        return decimal(facts.of_worker(row.records, name, row.worker)[end])

    return Column(title, show, needs=family)


def _floor(row: Row) -> str:
    return decimal(facts.floor(row.records, facts.principal(row.records) or ""))


WORKER = Column("worker", lambda row: f"w{row.worker}", right=False)
STATE = Column("state", lambda row: row.state, right=False)
STEP = Column("step", _step)
OFFENCES = Column("offences", _offences, needs="offences", right=False, spare=1)
ROUNDS = (
    _number("void", "void_rounds", whole, spare=3),
    _number("swaps", "swaps", whole, spare=3),
    _number("late", "late", whole, spare=6),
)
LIVE = (
    WORKER,
    STATE,
    STEP,
    Column("steps/s", lambda row: decimal(facts.rate(row.record, facts.RECENT))),
    _number("round", "round", whole, spare=9),
    # The leader and the answers are the first signs of trouble in a run with rounds.
    Column("leader", _leader, needs="leader", spare=1),
    Column("answered", _answered, needs="answered", spare=2),
    *ROUNDS,
    _number("loss", "loss", decimal, spare=3),
    _number("d_loss", "d_loss", decimal, spare=4),
    _number("g_loss", "g_loss", decimal, spare=3),
    Column("staleness", _staleness, needs="staleness_mean", unless="leader", spare=6),
    _number("peers", "live_peers", whole, spare=8),
    _number("sent", "sent_bytes", size, spare=5),
    _number("received", "received_bytes", size, spare=7),
    _metric("FID", "fid", 1),
    _metric("accuracy", "accuracy", 1),
    OFFENCES,
)
FINAL = (
    WORKER,
    STATE,
    STEP,
    Column("steps/s", lambda row: decimal(facts.rate(row.record))),
    *ROUNDS,
    _number("sent", "sent_bytes", size, spare=3),
    _number("predicted", "predicted_sent_bytes", size),
    _number("received", "received_bytes", size, spare=5),
    _number("predicted", "predicted_received_bytes", size),
    Column("dropped", lambda row: str(facts.dropped(row.record)), needs="dropped"),
    _metric("FID first", "fid", 0),
    _metric("FID last", "fid", 1),
    Column("FID floor", _floor, needs="fid"),
    _metric("accuracy first", "accuracy", 0),
    _metric("accuracy last", "accuracy", 1),
    OFFENCES,
)


def shown(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns whose keys the rows have."""
    keys = {key for row in rows for line in row.record.lines[-1:] for key in line}
    keys |= {facts.family(name) for row in rows[:1] for name in facts.measured(row.records, *facts.PRINCIPAL)}
    # The key exists from the start, and has no meaning as long as no worker has an offence.
    if not any(facts.offences(row.record) for row in rows):
        keys.discard("offences")
    return [column for column in columns if (not column.needs or column.needs in keys) and column.unless not in keys]


def line(row: Row, columns: Sequence[Column] = LIVE) -> str:
    """One worker as one plain line: `w0 training  step 10/60  steps/s 3.1 ...`; unknown values are left out."""
    cells = [(column.title, column.show(row)) for column in shown([row], columns) if column not in (WORKER, STATE)]
    known = [f"{title} {text}" for title, text in cells if text != UNKNOWN]
    return "  ".join([f"{WORKER.show(row)} {STATE.show(row)}", *known])


def _widths(rows: Sequence[Row], columns: Sequence[Column]) -> list[int]:
    return [max(len(text) for text in (column.title, *map(column.show, rows))) for column in columns]


def fitting(rows: Sequence[Row], columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit side by side into `width` characters, two between them; spare columns are dropped first."""
    kept = list(columns)
    while sum(_widths(rows, kept)) + 2 * (len(kept) - 1) > width and any(column.spare for column in kept):
        kept.remove(max(kept, key=lambda column: column.spare))
    return kept


def aligned(rows: Sequence[Row], columns: Sequence[Column] = FINAL) -> str:
    """Rows under their titles, as plain text."""
    columns = shown(rows, columns)
    widths = _widths(rows, columns)
    cells = [[column.title for column in columns], *([column.show(row) for column in columns] for row in rows)]
    lines = []
    for row in cells:
        padded = zip(row, widths, columns, strict=True)
        lines.append(
            "  ".join(text.rjust(width) if column.right else text.ljust(width) for text, width, column in padded)
        )
    return "\n".join(text.rstrip() for text in lines)


class PlainDisplay:
    """One line for a worker when its state changes, and about every `every_s` seconds while its step advances."""

    def __init__(self, board: Board, voice: Voice, every_s: float) -> None:
        self._board, self._voice, self._every_s = board, voice, every_s
        self._shown: dict[int, tuple[str, float | None, float]] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: Any) -> None:
        self.update()

    def update(self) -> None:
        """Read the new lines and print the due ones."""
        self._board.update()
        now = time.monotonic()
        for row in self._board.rows:
            state, step, since = self._shown.get(row.worker, ("", None, 0.0))
            moved = row.record.step != step and now - since >= self._every_s
            if row.state != state or moved:
                self._shown[row.worker] = (row.state, row.record.step, now)
                self._voice.show(line(row))


class LiveDisplay:
    """The table on a terminal, drawn twice a second; log lines scroll above the table."""

    def __init__(self, board: Board) -> None:
        from rich.live import Live

        self._board, self._drawn = board, 0.0
        # Only this thread draws: a refreshing thread would collide with the printing of log lines.
        self._live = Live(auto_refresh=False, transient=True)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._board.update()
        try:
            self._live.stop()
        except OSError:
            to_nowhere(sys.__stdout__)

    def update(self) -> None:
        """Read the new lines and draw, at most every `REDRAW_S` seconds."""
        now = time.monotonic()
        if now - self._drawn < REDRAW_S:
            return
        self._drawn = now
        self._board.update()
        try:
            self._live.update(self._table(), refresh=True)
        except OSError:
            # The terminal was closed; the workers still have to save.
            to_nowhere(sys.__stdout__)

    def _table(self) -> Any:
        from rich.table import Table

        rows = self._board.rows
        columns = fitting(rows, shown(rows, LIVE), self._live.console.width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(column.show(row) for column in columns))
        return table


def display(board: Board, voice: Voice, plain_every_s: float) -> LiveDisplay | PlainDisplay:
    """The live table where standard output is a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(board)
    return PlainDisplay(board, voice, plain_every_s)
