"""Whose contributions are used: not those that are not finite, far longer than usual, or of a sender that is muted.

The norm gate: a contribution whose norm is more than `factor` times the running median of the accepted norms of its
part is left out, and not before `KNOWN` norms are known. A scale may change for everybody (a loss that bursts, a
part that was silent), and then it is the yardstick that is off: the median norm of the other senders counts as
well, whichever is larger. Who sends nothing says nothing: a norm of zero is no yardstick.

A strike against a sender is a contribution that was gated or not finite. After `most_strikes` it is muted for the
rest of this life (its incarnation): its contributions are not used any more. It is awaited as ever, so the bound
holds. A message that was refused is a strike as well, but only this worker may have seen it: where all have to decide
alike it is shown and does not mute.

What always holds: where everyone judges the same terms in the same order, everyone decides alike, if they began
with the same state (`state`, which travels to a joiner and into checkpoints).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from peers.types import Slice
from peers.vectors.partition import Schedule

WINDOW = 64
KNOWN = 8


class Term(NamedTuple):
    """What is judged of a contribution: who sent it, in which life (empty: ours, or not known), and its norm."""

    sender: int
    life: str
    norm: float


class Judge:
    """The gate and the strikes of one worker. Used by one thread, but for `note_refused`.

    Args:
        worker: our number.
        factor: of the running median that is still accepted; 0 for no gate.
        most_strikes: after how many a sender is muted; 0 for never.
        is_alike: everyone judges the same terms, ours included; else each those of its peers, as they come.
        say: called with one line for a person.

    Attributes:
        counts: what was left out, by reason.
    """

    def __init__(
        self,
        worker: int,
        factor: float = 0.0,
        most_strikes: int = 0,
        is_alike: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.counts: Counter[str] = Counter()
        self._worker, self._factor, self._most, self._is_alike, self._say = worker, factor, most_strikes, is_alike, say
        self._windows: dict[Slice, deque[float]] = {}
        # Per part the newest norm of each sender; only where they do not come all at once.
        self._newest: dict[Slice, dict[int, float]] = {}
        self._strikes: Counter[int] = Counter()
        self._lives: dict[int, str] = {}
        self._refused: deque[tuple[int, str]] = deque()
        # Messages of theirs that only we may have seen, where all have to decide alike.
        self._malformed: Counter[int] = Counter()
        # The parts in force; empty until `reschedule`.
        self._parts: frozenset[Slice] = frozenset()

    @property
    def is_gating(self) -> bool:
        return self._factor > 0

    def judge(self, part: Slice, terms: list[Term], is_gated: bool = True) -> set[int]:
        """The senders whose term for a part may be used.

        Args:
            terms: at most one of a sender, in worker order.
            is_gated: whether the norms are such as the gate compares; else they only have to be finite.
        """
        self._take_refused()
        norms: dict[int, float] = {}
        for term in terms:
            self._meet(term.sender, term.life)
            if self.is_muted(term.sender):
                self.counts["muted"] += 1
            elif not math.isfinite(term.norm):
                self.counts["not_finite"] += 1
                self._strike(term.sender)
            else:
                norms[term.sender] = term.norm
        if not is_gated or not self.is_gating:
            return set(norms)
        known = norms
        if not self._is_alike:
            known = self._newest.setdefault(part, {})
            known.update(norms)
        limits = {sender: self._limit(part, sender, known) for sender in norms}
        accepted = {sender for sender, length in norms.items() if length <= limits[sender]}
        for sender, length in norms.items():
            if sender in accepted:
                self._note(part, length)
            else:
                self.counts["gated"] += 1
                self._strike(sender)
        return accepted

    def note_own(self, part: Slice, length: float) -> None:
        """What we have sent ourselves is a yardstick for the others'; where we are not judged with them."""
        if self.is_gating and math.isfinite(length):
            self._newest.setdefault(part, {})[self._worker] = length
            self._note(part, length)

    def reschedule(self, schedule: Schedule) -> None:
        """The parts are others from now on; former ones are forgotten, because a joiner knows nothing of them."""
        self._parts = frozenset(schedule.slices)
        self._windows = {part: window for part, window in self._windows.items() if part in self._parts}

    def note_refused(self, sender: int, life: str) -> None:
        """A message that did not fit; from any thread."""
        self._refused.append((sender, life))

    def _limit(self, part: Slice, sender: int, known: dict[int, float]) -> float:
        window = self._windows.get(part, ())
        others = sorted(length for other, length in known.items() if other != sender and length > 0)
        # Who is alone with its own has nobody to protect.
        if len(window) < KNOWN or self._is_alike and not others:
            return math.inf
        # The lower median: no larger than an honest one's while fewer than half are bad.
        witness = others[(len(others) - 1) // 2] if others else 0.0
        return self._factor * max(sorted(window)[len(window) // 2], witness)

    def _note(self, part: Slice, length: float) -> None:
        # As it is written into a state, so that whoever loads that decides alike.
        length = float(np.float32(min(length, float(np.finfo(np.float32).max))))
        if length > 0 and (not self._parts or part in self._parts):
            self._windows.setdefault(part, deque(maxlen=WINDOW)).append(length)

    # --- strikes ------------------------------------------------------------------------------

    def _take_refused(self) -> None:
        while self._refused:
            sender, life = self._refused.popleft()
            self._meet(sender, life)
            if self._is_alike:
                self._malformed[sender] += 1
            elif not self.is_muted(sender):
                self._strike(sender)

    def _meet(self, sender: int, life: str) -> None:
        """A sender that was started again begins with no strikes."""
        if not life:
            return
        if self._lives.get(sender, life) != life:
            self._strikes.pop(sender, None)
            self._malformed.pop(sender, None)
        self._lives[sender] = life

    def is_muted(self, sender: int) -> bool:
        """Whether nothing that the sender says is used any more."""
        return 0 < self._most <= self._strikes[sender]

    def _strike(self, sender: int) -> None:
        self._strikes[sender] += 1
        if self._strikes[sender] == self._most:
            for known in self._newest.values():
                known.pop(sender, None)
            who = "this worker" if sender == self._worker else f"worker {sender}"
            self._say(
                f"{who} is muted: {self._most} of its contributions were too long, not finite or malformed; "
                "it is still awaited, but what it sends is not used any more"
            )

    def stats(self) -> dict[str, Any]:
        """For stats.jsonl: strikes by worker, and who is muted."""
        strikes = self._strikes + self._malformed
        struck = {sender: count for sender, count in sorted(strikes.items()) if count}
        muted = [sender for sender in struck if self.is_muted(sender)]
        return {"strikes": {str(sender): count for sender, count in struck.items()}, "muted": muted}

    # --- state --------------------------------------------------------------------------------

    def sizes(self, schedule: Schedule, choices: tuple[int, ...]) -> dict[str, int]:
        """Number of values of the vectors of `state` by name, where the number of parts may be one of the choices."""
        return {"norms": WINDOW * max((schedule.parts, *choices))} if self.is_gating else {}

    def state(self, schedule: Schedule, choices: tuple[int, ...]) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
        """The accepted norms of the schedule's parts, `WINDOW` each, filled up with zeros; and everyone's strikes."""
        arrays = {name: np.zeros(size, np.float32) for name, size in self.sizes(schedule, choices).items()}
        if self.is_gating:
            for row, part in zip(arrays["norms"].reshape(-1, WINDOW), schedule.slices, strict=False):
                window = self._windows.get(part, ())
                row[: len(window)] = window
        strikes = [[sender, self._lives.get(sender, ""), n] for sender, n in sorted(self._strikes.items()) if n]
        return arrays, strikes

    def load_state(self, schedule: Schedule, arrays: dict[str, np.ndarray], strikes: list[list[Any]]) -> None:
        """The inverse of `state`, as we or another worker has written it. Our own strikes stay behind: a new life.

        Raises:
            ValueError, TypeError: it does not fit.
        """
        if "norms" in arrays:
            self._windows = {
                part: deque((float(length) for length in row if length > 0), maxlen=WINDOW)
                for row, part in zip(arrays["norms"].reshape(-1, WINDOW), schedule.slices, strict=False)
            }
        found = {int(sender): (str(life), int(n)) for sender, life, n in strikes if int(sender) != self._worker}
        self._strikes = Counter({sender: n for sender, (_, n) in found.items()})
        self._lives |= {sender: life for sender, (life, _) in found.items() if life}
