"""The run as a table: live on a terminal, plain lines elsewhere, and a summary at the end.

`live` and `final` give the columns that fit a mode: `LIVE` and `FINAL`, or where a step is a round that
somebody leads, who leads, who answered in time, and the bytes beside what the mode's formula predicts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launch.board import Board, Row
from launch.voice import Voice, to_nowhere

REDRAW_S = 0.5
UNKNOWN = "-"


@dataclass(frozen=True)
class Column:
    """A title, what a row shows under it, on which side it is aligned, and what a narrow terminal leaves out first."""

    title: str
    show: Callable[[Row], str]
    right: bool = True
    # 0 is always shown; the highest goes first.
    spare: int = 0


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, or a dash."""
    if value is None:
        return UNKNOWN
    # A number such as 999.6 rounds to one digit more. The code prints it as 1000, not as 1e+03.
    return f"{value:.0f}" if 10**digits <= abs(value) + 0.5 and abs(value) < 1e9 else f"{value:.{digits}g}"


def whole(value: float | None) -> str:
    """A count, or a dash."""
    return UNKNOWN if value is None or not abs(value) < float("inf") else f"{value:.0f}"


def size(value_bytes: float | None) -> str:
    """A number of bytes as people read it: 1.5 MiB."""
    if value_bytes is None or not abs(value_bytes) < float("inf"):
        return UNKNOWN
    if abs(value_bytes) < 1024:
        return f"{value_bytes:.0f} B"
    power = min(4, (int(abs(value_bytes)).bit_length() - 1) // 10)
    return f"{value_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def _step(row: Row) -> str:
    return f"{whole(row.number('step') or 0)}/{row.total}"


def _staleness(row: Row) -> str:
    mean, most = row.number("staleness_mean"), row.number("staleness_max")
    return UNKNOWN if mean is None else f"{mean:.1f} (max {whole(most)})"


def _leader(row: Row) -> str:
    number = row.number("leader")
    return UNKNOWN if number is None else f"w{whole(number)}"


def _answered(row: Row) -> str:
    """How many of the cohort answered in time, in the newest round: `3/4`; only who leads has counted them."""
    answered, cohort = row.number("answered"), row.number("cohort")
    if answered is None or row.number("leader") != row.worker:
        return UNKNOWN
    return whole(answered) if cohort is None else f"{whole(answered)}/{whole(cohort)}"


def _struck(row: Row) -> str:
    """Whose contributions this worker could not use and how often, or that it uses them no more: `w2: 3, w7: muted`."""
    offences, banned = row.stats.get("offences"), row.stats.get("banned")
    if not isinstance(offences, dict) or not offences:
        return UNKNOWN
    gone = {str(worker) for worker in banned} if isinstance(banned, list) else set()
    return ", ".join(f"w{worker}: {'muted' if worker in gone else count}" for worker, count in offences.items())


WORKER = Column("worker", lambda row: f"w{row.worker}", right=False)
STATE = Column("state", lambda row: row.state, right=False)
STEP = Column("step", _step)
RATE = Column("steps/s", lambda row: decimal(row.rate))
MEAN_RATE = Column("steps/s", lambda row: decimal(row.mean_rate))
FID = Column("FID", lambda row: decimal(row.fid))
DROPPED = Column("dropped", lambda row: str(row.dropped))
FIDS = (
    Column("FID first", lambda row: decimal(row.first_fid)),
    Column("FID last", lambda row: decimal(row.fid)),
    Column("FID floor", lambda row: decimal(row.floor)),
)
STRUCK = Column("offences", _struck, right=False, spare=1)
SENT = Column("sent", lambda row: size(row.number("sent_bytes")), spare=3)
RECEIVED = Column("received", lambda row: size(row.number("received_bytes")), spare=5)

LIVE = (
    WORKER,
    STATE,
    STEP,
    RATE,
    Column("d_loss", lambda row: decimal(row.number("d_loss")), spare=2),
    Column("g_loss", lambda row: decimal(row.number("g_loss")), spare=1),
    Column("staleness", _staleness, spare=4),
    Column("peers", lambda row: whole(row.number("live_peers")), spare=6),
    SENT,
    RECEIVED,
    FID,
)

FINAL = (WORKER, STATE, STEP, MEAN_RATE, SENT, RECEIVED, DROPPED, *FIDS)

# Where a step is a round that somebody leads. The leader and who answers tell first whether a run is well.
LED_LIVE = (
    WORKER,
    STATE,
    STEP,
    RATE,
    Column("round", lambda row: whole(row.number("round")), spare=10),
    Column("leader", _leader, spare=1),
    Column("answered", _answered, spare=2),
)
LATE = Column("late", lambda row: whole(row.number("late")), spare=5)
LED_END = (
    Column("d_loss", lambda row: decimal(row.number("d_loss")), spare=8),
    Column("g_loss", lambda row: decimal(row.number("g_loss")), spare=7),
    Column("peers", lambda row: whole(row.number("live_peers")), spare=9),
    Column("sent", lambda row: size(row.number("sent_bytes")), spare=4),
    Column("received", lambda row: size(row.number("received_bytes")), spare=6),
    FID,
)
VOID = Column("void", lambda row: whole(row.number("void_rounds")), spare=3)
SWAPS = Column("swaps", lambda row: whole(row.number("swaps")), spare=3)
BYTES = (
    SENT,
    Column("predicted", lambda row: size(row.number("predicted_sent_bytes"))),
    RECEIVED,
    Column("predicted", lambda row: size(row.number("predicted_received_bytes"))),
)


# What a classifier shows in place of a GAN's column of this title.
OF_CLASSIFIER = {
    "d_loss": Column("c_loss", lambda row: decimal(row.number("c_loss")), spare=2),
    "g_loss": Column("accuracy", lambda row: decimal(row.number("accuracy")), spare=1),
    "FID": Column("test accuracy", lambda row: decimal(row.accuracy, 4)),
    "FID first": Column("accuracy first", lambda row: decimal(row.first_accuracy, 4)),
    "FID last": Column("accuracy last", lambda row: decimal(row.accuracy, 4)),
    "FID floor": None,
}


def live(mode: str, is_classifier: bool = False) -> tuple[Column, ...]:
    """The columns while a run of the mode goes on."""
    match mode:
        case "federated":
            columns = (*LED_LIVE, VOID, LATE, *LED_END)
        case "multi_discriminator":
            columns = (*LED_LIVE, SWAPS, LATE, *LED_END)
        case _:
            columns = LIVE
    return _of_learner(columns, is_classifier)


def final(mode: str, is_classifier: bool = False) -> tuple[Column, ...]:
    """The columns of the mode's summary."""
    counted = {"federated": VOID, "multi_discriminator": SWAPS}.get(mode)
    columns = FINAL
    if counted is not None:
        columns = (WORKER, STATE, STEP, MEAN_RATE, counted, LATE, *BYTES, DROPPED, *FIDS)
    return _of_learner(columns, is_classifier)


def _of_learner(columns: tuple[Column, ...], is_classifier: bool) -> tuple[Column, ...]:
    if not is_classifier:
        return columns
    found = (OF_CLASSIFIER.get(column.title, column) for column in columns)
    return tuple(column for column in found if column is not None)


def with_offences(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns, and one for strikes where there are any."""
    return [*columns, *([STRUCK] if any(STRUCK.show(row) != UNKNOWN for row in rows) else [])]


def line(row: Row, columns: Sequence[Column] = LIVE) -> str:
    """One worker as one plain line: `w0 training  step 10/60  steps/s 3.1 ...`; what is unknown is left out."""
    columns = with_offences([row], columns)
    shown = [(column.title, column.show(row)) for column in columns if column not in (WORKER, STATE)]
    known = [f"{title} {text}" for title, text in shown if text != UNKNOWN]
    return "  ".join([f"{WORKER.show(row)} {STATE.show(row)}", *known])


def _widths(rows: Sequence[Row], columns: Sequence[Column]) -> list[int]:
    return [max(len(text) for text in (column.title, *map(column.show, rows))) for column in columns]


def fitting(rows: Sequence[Row], columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit side by side into `width` characters, two between them; the spare ones go first."""
    kept = list(columns)
    while sum(_widths(rows, kept)) + 2 * (len(kept) - 1) > width and any(column.spare for column in kept):
        kept.remove(max(kept, key=lambda column: column.spare))
    return kept


def aligned(rows: Sequence[Row], columns: Sequence[Column] = FINAL) -> str:
    """Rows under their titles, as plain text."""
    columns = with_offences(rows, columns)
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
    """One line a worker when its state changes, and about every `every_s` while it moves."""

    def __init__(self, board: Board, voice: Voice, every_s: float, columns: Sequence[Column] = LIVE) -> None:
        self._board, self._voice, self._every_s, self._columns = board, voice, every_s, columns
        self._shown: dict[int, tuple[str, float | None, float]] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: Any) -> None:
        self.update()

    def update(self) -> None:
        """Read what is new and print what is due."""
        self._board.update()
        now = time.monotonic()
        for row in self._board.rows:
            state, step, since = self._shown.get(row.worker, ("", None, 0.0))
            moved = row.number("step") != step and now - since >= self._every_s
            if row.state != state or moved:
                self._shown[row.worker] = (row.state, row.number("step"), now)
                self._voice.show(line(row, self._columns))


class LiveDisplay:
    """The table on a terminal, drawn anew twice a second; what is said meanwhile scrolls above it."""

    def __init__(self, board: Board, columns: Sequence[Column] = LIVE) -> None:
        from rich.live import Live

        self._board, self._columns, self._drawn = board, columns, 0.0
        # Drawn by this thread only: a refreshing thread would meet the printing of what is said.
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
        """Read what is new and draw, at most every `REDRAW_S`."""
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

        columns = with_offences(self._board.rows, self._columns)
        columns = fitting(self._board.rows, columns, self._live.console.width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
        for row in self._board.rows:
            table.add_row(*(column.show(row) for column in columns))
        return table


def display(
    board: Board, voice: Voice, plain_every_s: float, columns: Sequence[Column] = LIVE
) -> LiveDisplay | PlainDisplay:
    """The live table where standard output is a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(board, columns)
    return PlainDisplay(board, voice, plain_every_s, columns)
