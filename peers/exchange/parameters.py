"""Exchange of parameters: part k of the weights becomes the average of the parts that the live workers published.

    offer: my weights of the part, as a difference to the last agreed weights (the reference), through the codec
    collect, `slack` rounds later:   mine += average of published - my own published weights
                                     reference += average of the published differences

So local progress since is kept, and replicas cannot drift apart. A part may be published again before its
last average has come (slack at least as large as parts). Then the published weights lack the corrections that
have been made meanwhile; these are subtracted, or the same difference would be corrected twice and more, and
weights would swing up. The delay is the bound itself, and not the time that the wire happened to need: every worker
applies round t - slack in round t, so a run repeats bit by bit under any slack, and all workers have the same
reference when they encode.

What always holds: an application moves the workers' weights towards each other and leaves their mean where
it is, because the corrections of all workers add up to zero. Values that the codec drops do not change this: they
stay in the worker's own weights and leave with the next difference (error feedback by construction). After the
flush, in which every part is sent whole, all live workers hold the same weights: the mean (agreement).

`reduce` chooses the average: the mean, or a robust rule. Every worker screens and reduces the same messages,
its own as the others read it, so all move to the same weights. With a robust rule, or where a contribution was left
out, the workers' mean moves too: to the rule's average. The norm gate measures the published difference. An exact
codec publishes the weights themselves, so there the gate measures their distance to the last agreed weights of the
part, which is the same for all workers. (The median of the round's terms would be as well, at the price of sorting
every value.)

The checksum of the reference travels with each part. Workers whose references differ (because they received different
last messages of a dying peer) all notice, and send that part whole the next time; then the references agree again. An
exact codec needs no reference and sends the weights themselves.

Without a bound (slack None) there is no round at which all workers apply. Each contribution is applied when it has
come, against our own published weights of the same round: `mine += (theirs - mine then) / n`. With a codec
for the weights themselves (raw, float16, bfloat16) that leaves the mean in place as well.

Sources: Douillard et al., "Streaming DiLoCo", 2025 (one fragment at a time, with overlap); Wang et al.,
"SlowMo"/"Overlap Local-SGD", 2020 (the pull-back with delay); Koloskova et al., "CHOCO-SGD", ICML 2019 and
Karimireddy et al., ICML 2019 (compressed differences; the worker keeps the dropped values).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from peers.codecs.base import as_bytes
from peers.codecs.checksum import checksum
from peers.exchange.encoder import ParameterEncoder
from peers.exchange.layout import ExchangeLayout
from peers.exchange.rule import Leaving, Owner, State
from peers.types import Received, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from peers.vectors.reduce import Reduce, distance, is_finite, mean, norm
from peers.vectors.screen import Screen

# Sums of weights with a smaller norm are finite.
HUGE = 1e37


class ParameterRule:
    """See `peers.exchange.rule.ExchangeRule`.

    Args:
        worker: our number.
        layout: the agreement of all workers.
        initial: the weights with which every worker begins, float32 (size,); copied.
        lag: the staleness bound in rounds, None for none.
        backlog: without a bound, how many rounds of our own are remembered.
        buffers: the buffer pool for leaving parts.
        reduce: the average of several vectors; with a bound.
        measures_norms: whether `reduce` needs differences; it gets those to the last agreed weights.
        screen: decides which contributions are used.
    """

    def __init__(
        self,
        worker: int,
        layout: ExchangeLayout,
        initial: np.ndarray,
        lag: int | None,
        backlog: int = 64,
        buffers: BufferPool | None = None,
        reduce: Reduce = mean,
        measures_norms: bool = False,
        screen: Screen | None = None,
    ):
        self._buffers = buffers or BufferPool()
        self.screen = screen or Screen(worker)
        self.counts: Counter[str] = self.screen.counts
        self._reduce, self._measures_norms = reduce, measures_norms
        # An exact codec sends the array itself; without a bound the rule changes the array while it is being sent.
        self._owner = Owner.RULE if layout.codec.is_exact and lag is not None else Owner.POOL
        self._worker, self._layout, self._lag = worker, layout, lag
        self._schedule = layout.schedule
        # The last agreed weights. With an exact codec they encode no part, but norms are measured from them.
        is_wanted = lag is not None and (not layout.codec.is_exact or self.screen.is_gating or measures_norms)
        self._agreed = initial.astype(np.float32, copy=True) if is_wanted else None
        self._reference = None if layout.codec.is_exact else self._agreed
        self.encoder = ParameterEncoder(worker, layout, backlog if lag is None else None)
        self._outgoing = self.encoder.outgoing
        self._newest = self._applied = 0
        # Per round that has been published and not applied: our corrections of its slice since, and the reference's.
        self._shifts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # The parts of the rounds that have left and have not been applied.
        self._away: dict[int, Slice] = {}
        # Slices whose references differ between workers, and the round in which these last became equal.
        self._broken: set[Slice] = set()
        self._made_whole: dict[Slice, int] = {}
        self._is_flushing = False
        # The helper whose replica we took, and its round then: its parts stand for ours in the rounds up to that one.
        self._origin: tuple[int, int] | None = None

    def begin(self, round: int) -> None:
        self._newest = self._outgoing.newest = self._applied = round

    def offer(self, round: int, part: Slice, values: np.ndarray) -> Leaving:
        self._newest = round
        if self._lag is not None:
            self._away[round] = part
        here = values[part.start : part.stop]
        leaving = self._buffers.take(part.size)
        if self._reference is None:
            leaving[:] = here
            return Leaving(round, part, leaving, {}, self._is_flushing, self._owner)
        is_whole = self._is_flushing or any(_overlap(part, broken) for broken in self._broken)
        if is_whole:
            self._broken = {broken for broken in self._broken if not _overlap(part, broken)}
            leaving[:] = here
            return Leaving(round, part, leaving, {}, True, self._owner)
        # The reference is read here and not on the sender thread: it is the main thread's.
        reference = self._reference[part.start : part.stop]
        base = float(checksum(as_bytes(reference)))
        np.subtract(here, reference, out=leaving)
        return Leaving(round, part, leaving, {"b": base}, False, self._owner)

    def through(self, round: int, is_synchronous: bool) -> int:
        if self._lag is None:
            # The sender thread may be behind; a round that is not encoded yet is applied in the next one.
            return self._outgoing.newest
        return round if is_synchronous else round - self._lag

    def is_ready(self, through: int) -> bool:
        return self._outgoing.newest >= min(through, self._newest)

    def collect(self, through: int, values: np.ndarray, items: list[Received], sharers: int) -> np.ndarray:
        if self._lag is None and not self._is_flushing:
            self._apply_singly(values, items, sharers)
            return values
        published = self._outgoing.take(through)
        for round in sorted(published.keys() | {item.round for item in items}):
            self._apply(round, values, published.get(round), [item for item in items if item.round == round])
        self._applied = max(self._applied, through)
        return values

    def _apply(self, round: int, values: np.ndarray, mine: Received | None, items: list[Received]) -> None:
        self._away.pop(round, None)
        found = {item.sender: item for item in items}
        if mine is not None:
            found[self._worker] = mine
        elif self._origin is not None and round <= self._origin[1]:
            # Our weights were the helper's then: its published part is ours.
            mine = next((item for item in items if item.sender == self._origin[0]), None)
        if mine is None:
            self.counts["late"] += len(items)
            return
        part = mine.slice
        fitting = {}
        for worker, one in sorted(found.items()):
            if one.slice != part:
                self.counts["misaligned"] += 1
                continue
            is_other = not one.is_whole and one.extras.get("b") != mine.extras.get("b")
            if self._reference is not None and is_other and not mine.is_whole and round > self._made_whole.get(part, 0):
                self.counts["diverged"] += 1
                self._broken.add(part)
            fitting[worker] = one
        usable, longest = self._usable(part, fitting)
        terms = [(one.values, one.is_whole) for one in usable]
        # Our own weights are not finite any more: take the average of the others.
        is_lost = not any(one is mine for one in usable) and not is_finite(mine.values)
        here = values[part.start : part.stop]
        reference = None if self._reference is None else self._reference[part.start : part.stop]
        are_weights = reference is None or all(is_whole for _, is_whole in terms)
        if are_weights:
            average = self._average([term for term, _ in terms], part)
        else:
            changes = [term - reference if is_whole else term for term, is_whole in terms]
            average = self._reduce(changes) if changes else None
        if average is None or longest * len(terms) > HUGE and not is_finite(average):
            # All workers find this alike: each keeps its own weights.
            self._shifts.pop(round, None)
            return
        if are_weights:
            if self._agreed is not None:
                self._agreed[part.start : part.stop] = average
            if reference is not None:
                self._made_whole[part] = self._newest
            if is_lost or round == self._newest or self._is_flushing and mine.is_whole:
                # Our weights of the part are as they were published: agree to the last bit.
                here[:] = average
                self._shifts.pop(round, None)
            else:
                self._correct(round, part, here, average - mine.values, None)
            return
        own = mine.values - reference if mine.is_whole else mine.values
        if is_lost:
            here[:], own = reference, np.float32(0)
        self._correct(round, part, here, average - own, average)

    def _usable(self, part: Slice, found: dict[int, Received]) -> tuple[list[Received], float]:
        """The contributions of a round that the screen accepts, in worker order; and the greatest norm."""
        terms = list(found.values())
        for one in terms:
            is_difference = self._reference is not None and not one.is_whole
            if is_difference or self._agreed is None:
                one.norm = norm(one.values, one.squares)
            else:
                one.norm = distance(one.values, self._agreed[part.start : part.stop])
        accepted = self.screen.usable(part, terms, is_gated=self._agreed is not None)
        usable = [one for one in terms if one.sender in accepted]
        return usable, max((one.norm for one in usable), default=0.0)

    def _average(self, terms: list[np.ndarray], part: Slice) -> np.ndarray | None:
        """The average of the weights of a part."""
        if not terms:
            return None
        if not self._measures_norms or self._agreed is None:
            return self._reduce(terms)
        last = self._agreed[part.start : part.stop]
        return last + self._reduce([term - last for term in terms])

    def _correct(self, round: int, part: Slice, here: np.ndarray, change: np.ndarray, move: np.ndarray | None) -> None:
        """Correct our weights of a part, and its reference, less their corrections since the round left.

        Args:
            here: our weights of the part, changed in place.
            change: the average less our own published weights; float32 (part.size,).
            move: the average of the published differences; None where the reference needs no correction.
        """
        shift = self._shifts.pop(round, None)
        if shift is not None:
            change -= shift[0]
            if move is not None:
                move -= shift[1]
        here += change
        if move is not None and self._reference is not None:
            self._reference[part.start : part.stop] += move
        for later in range(round + 1, self._newest + 1):
            other = self._away.get(later)
            if other is None or not _overlap(other, part):
                continue
            if later not in self._shifts:
                nothing = np.zeros(other.size, np.float32)
                self._shifts[later] = (nothing, nothing.copy())
            start, stop = max(part.start, other.start), min(part.stop, other.stop)
            mine, its = (
                slice(start - part.start, stop - part.start),
                slice(start - other.start, stop - other.start),
            )
            self._shifts[later][0][its] += change[mine]
            if move is not None:
                self._shifts[later][1][its] += move[mine]

    def _apply_singly(self, values: np.ndarray, items: list[Received], sharers: int) -> None:
        for item in items:
            mine = self._outgoing.get(item.round)
            if mine is None or mine.slice != item.slice:
                self.counts["late" if mine is None else "misaligned"] += 1
                continue
            item.norm = distance(item.values, mine.values)
            if not self.screen.usable(item.slice, [item]):
                continue
            here = values[item.slice.start : item.slice.stop]
            change = (item.values - mine.values) / np.float32(1 + max(1, sharers))
            here += change
            for later in range(item.round + 1, self._newest + 1):
                # Our later published parts lack this correction, as with a bound.
                other = self._outgoing.get(later)
                if other is not None and other.slice == item.slice:
                    np.add(other.values, change, out=other.values)

    def reschedule(self, schedule: Schedule) -> None:
        self.screen.reschedule(schedule)
        self._schedule = schedule

    def begin_flush(self) -> int:
        """Publish every part once more, whole, so that all workers end with the same weights."""
        self._is_flushing = True
        return self._schedule.parts

    def has_rest(self) -> bool:
        return True

    # --- state --------------------------------------------------------------------------------

    def state(self) -> tuple[State, dict[str, Any]]:
        """The reference and the screen: at a sync point every round has been applied, so no round need be saved."""
        arrays, offences = self.screen.state(self._schedule, self._layout.parts)
        if self._agreed is not None:
            arrays["reference"] = self._agreed.copy()
        return arrays, {"broken": [list(part) for part in self._broken], "offences": offences}

    def load_state(self, arrays: State, values: dict[str, Any]) -> None:
        # A checkpoint made without a screen has none; then all workers measure from the first weights.
        if self._agreed is not None and ("reference" in arrays or self._reference is not None):
            self._agreed[:] = arrays["reference"]
        self.screen.load_state(self._schedule, arrays, values.get("offences", []))
        self._broken = {Slice(*part) for part in values.get("broken", ())}

    def shared_sizes(self) -> dict[str, int]:
        sizes = self.screen.sizes(self._schedule, self._layout.parts)
        return sizes if self._agreed is None else sizes | {"reference": self._agreed.size}

    def applied(self, round: int) -> int:
        return round if self._lag is None else max(self._applied, round - self._lag)

    def shared(self) -> tuple[State, dict[str, Any]]:
        return self.state()

    def load_shared(self, arrays: State, values: dict[str, Any], helper: int, round: int, applied: int) -> None:
        self.load_state(arrays, values)
        self._newest = self._outgoing.newest = round
        self._applied = applied
        self._origin = (helper, round)


def _overlap(one: Slice, other: Slice) -> bool:
    return one.start < other.stop and other.start < one.stop
