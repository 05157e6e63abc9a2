"""The screen: which contributions are used. It refuses those not finite, too large, or of a banned sender.

The norm gate: a contribution whose norm is more than `factor` times the running median of the accepted norms of its
part is left out, once `KNOWN` norms are known. The scale may change for all workers at once (a loss that bursts, a
part that was silent); then the running median is wrong. So the gate compares with the median norm of the other senders
as well, and takes the larger of the two. A norm of zero enters neither median.

An offence of a sender is a contribution that was gated or not finite. After `most_offences` the sender is banned for
the rest of this incarnation: its contributions are not used any more. It is still awaited, so the bound
holds. A message that was refused is an offence as well, but only this worker may have seen it. Where all workers have
to decide alike, it is shown in the statistics and does not ban.

What always holds: where all workers screen the same terms in the same order, they decide alike, if they began
with the same state (`state`, which travels to a joiner and into checkpoints).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peers.types import Received, Slice
from peers.vectors.partition import Schedule

WINDOW = 64
KNOWN = 8


class Screen:
    """The gate and the offences of one worker. Used by one thread, but for `note_refused`.

    Args:
        worker: our number.
        factor: how many running medians a norm may reach; 0 for no gate.
        most_offences: after how many offences a sender is banned; 0 for never.
        is_alike: whether all workers screen the same terms, ours included; else each screens its peers' as they come.
        log: called with one line for a person.

    Attributes:
        counts: contributions that were left out, by reason.
    """

    def __init__(
        self,
        worker: int,
        factor: float = 0.0,
        most_offences: int = 0,
        is_alike: bool = True,
        log: Callable[[str], None] = lambda line: None,
    ):
        self.counts: Counter[str] = Counter()
        self._worker, self._factor, self._most, self._is_alike, self._log = worker, factor, most_offences, is_alike, log
        self._windows: dict[Slice, deque[float]] = {}
        # Per part the newest norm of each sender; only where the terms do not come all at once.
        self._newest: dict[Slice, dict[int, float]] = {}
        self._offences: Counter[int] = Counter()
        self._incarnations: dict[int, str] = {}
        self._refused: deque[tuple[int, str]] = deque()
        # Refused messages per sender that only we may have seen, where all workers have to decide alike.
        self._malformed: Counter[int] = Counter()
        # The parts in force; empty until `reschedule`.
        self._parts: frozenset[Slice] = frozenset()

    @property
    def is_gating(self) -> bool:
        return self._factor > 0

    def usable(self, part: Slice, terms: Sequence[Received], is_gated: bool = True) -> set[int]:
        """The senders whose contribution to a part may be used.

        Args:
            terms: at most one of a sender, in worker order; their norms have been measured.
            is_gated: whether the gate compares the norms; else they only have to be finite.
        """
        self._take_refused()
        norms: dict[int, float] = {}
        for term in terms:
            self._meet(term.sender, term.incarnation)
            if self.is_banned(term.sender):
                self.counts["banned"] += 1
            elif not math.isfinite(term.norm):
                self.counts["not_finite"] += 1
                self._note_offence(term.sender)
            else:
                norms[term.sender] = term.norm
        if not is_gated or not self.is_gating:
            return set(norms)
        known = norms
        if not self._is_alike:
            known = self._newest.setdefault(part, {})
            known.update(norms)
        limits = {sender: self._limit(part, sender, known) for sender in norms}
        accepted = {sender for sender, norm in norms.items() if norm <= limits[sender]}
        for sender, norm in norms.items():
            if sender in accepted:
                self._note(part, norm)
            else:
                self.counts["gated"] += 1
                self._note_offence(sender)
        return accepted

    def note_own(self, part: Slice, norm: float) -> None:
        """Note the norm of our own contribution for the gate; where it is not screened with the others'."""
        if self.is_gating and math.isfinite(norm):
            self._newest.setdefault(part, {})[self._worker] = norm
            self._note(part, norm)

    def reschedule(self, schedule: Schedule) -> None:
        """The parts are others from now on; former ones are forgotten, because a joiner does not know them."""
        self._parts = frozenset(schedule.slices)
        self._windows = {part: window for part, window in self._windows.items() if part in self._parts}

    def note_refused(self, sender: int, incarnation: str) -> None:
        """Note a message of a sender that did not fit; from any thread."""
        self._refused.append((sender, incarnation))

    def _limit(self, part: Slice, sender: int, known: dict[int, float]) -> float:
        window = self._windows.get(part, ())
        others = sorted(norm for other, norm in known.items() if other != sender and norm > 0)
        # A worker with only its own norm has no others to compare with.
        if len(window) < KNOWN or self._is_alike and not others:
            return math.inf
        # The lower median: no larger than an honest one's while fewer than half are bad.
        witness = others[(len(others) - 1) // 2] if others else 0.0
        return self._factor * max(sorted(window)[len(window) // 2], witness)

    def _note(self, part: Slice, norm: float) -> None:
        # As float32, as `state` writes it, so that a worker that loads the state decides alike.
        norm = float(np.float32(min(norm, float(np.finfo(np.float32).max))))
        if norm > 0 and (not self._parts or part in self._parts):
            self._windows.setdefault(part, deque(maxlen=WINDOW)).append(norm)

    # --- offences -----------------------------------------------------------------------------

    def _take_refused(self) -> None:
        while self._refused:
            sender, incarnation = self._refused.popleft()
            self._meet(sender, incarnation)
            if self._is_alike:
                self._malformed[sender] += 1
            elif not self.is_banned(sender):
                self._note_offence(sender)

    def _meet(self, sender: int, incarnation: str) -> None:
        """Note the sender's incarnation; a sender that was started again begins with no offences."""
        if not incarnation:
            return
        if self._incarnations.get(sender, incarnation) != incarnation:
            self._offences.pop(sender, None)
            self._malformed.pop(sender, None)
        self._incarnations[sender] = incarnation

    def is_banned(self, sender: int) -> bool:
        """Whether the sender's contributions are not used any more."""
        return 0 < self._most <= self._offences[sender]

    def _note_offence(self, sender: int) -> None:
        self._offences[sender] += 1
        if self._offences[sender] == self._most:
            for known in self._newest.values():
                known.pop(sender, None)
            who = "this worker" if sender == self._worker else f"worker {sender}"
            self._log(
                f"{who} is banned: {self._most} of its contributions were too large, not finite or malformed; "
                "it is still awaited, but what it sends is not used any more"
            )

    def stats(self) -> dict[str, Any]:
        """For stats.jsonl: offences by worker, and the banned workers."""
        offences = self._offences + self._malformed
        offenders = {sender: count for sender, count in sorted(offences.items()) if count}
        banned = [sender for sender in offenders if self.is_banned(sender)]
        return {"offences": {str(sender): count for sender, count in offenders.items()}, "banned": banned}

    # --- state --------------------------------------------------------------------------------

    def sizes(self, schedule: Schedule, choices: tuple[int, ...]) -> dict[str, int]:
        """Number of values of the vectors of `state` by name, where the number of parts may be one of the choices."""
        return {"norms": WINDOW * max((schedule.parts, *choices))} if self.is_gating else {}

    def state(self, schedule: Schedule, choices: tuple[int, ...]) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
        """The accepted norms of the schedule's parts, `WINDOW` each, filled up with zeros; and everyone's offences."""
        arrays = {name: np.zeros(size, np.float32) for name, size in self.sizes(schedule, choices).items()}
        if self.is_gating:
            for row, part in zip(arrays["norms"].reshape(-1, WINDOW), schedule.slices, strict=False):
                window = self._windows.get(part, ())
                row[: len(window)] = window
        offences = [
            [sender, self._incarnations.get(sender, ""), n] for sender, n in sorted(self._offences.items()) if n
        ]
        return arrays, offences

    def load_state(self, schedule: Schedule, arrays: dict[str, np.ndarray], offences: list[list[Any]]) -> None:
        """The inverse of `state`, from us or another worker. Our own offences are dropped: this is a new incarnation.

        Raises:
            ValueError, TypeError: the state does not fit.
        """
        if "norms" in arrays:
            self._windows = {
                part: deque((float(norm) for norm in row if norm > 0), maxlen=WINDOW)
                for row, part in zip(arrays["norms"].reshape(-1, WINDOW), schedule.slices, strict=False)
            }
        found = {
            int(sender): (str(incarnation), int(n))
            for sender, incarnation, n in offences
            if int(sender) != self._worker
        }
        self._offences = Counter({sender: n for sender, (_, n) in found.items()})
        self._incarnations |= {sender: incarnation for sender, (incarnation, _) in found.items() if incarnation}
