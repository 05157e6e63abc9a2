"""Exchange of gradients: each gradient reaches every peer exactly once, in parts.

    offer: window += gradient, one part of it leaves        collect: gradient + received parts, mean or sum

With `own: immediate` a worker's own gradient enters at once and in full, those of the others when they come, as in
the sources. With `own: delayed` a worker's own gradient enters as the others read it, and at the same time as theirs:
all workers apply the same messages in the same rounds (round t - slack in round t). So the replicas stay equal bit by
bit under any parts, slack and codec, and a run repeats; the price is that a worker's own gradient is as old as the
others'. A robust rule needs `own: delayed`, because it compares vectors of the same kind.

The contributions that the screen does not accept are left out of the sum and of the divisor of a mean.

What always holds (conservation): every gradient pushed into the window leaves exactly once; the values that a lossy
codec drops stay behind as error feedback; so after the flush, delivered + kept = produced, but for the
contributions that the screen refused. (A robust rule does not conserve: values that it takes for bad are gone.)

Sources: Watcharapichat et al., "Ako", SoCC 2016, section 3; the released DEGAN code is `reduce: sum`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from peers.exchange.encoder import GradientEncoder
from peers.exchange.layout import ExchangeLayout
from peers.exchange.rule import Leaving, Owner, State
from peers.exchange.window import GradientWindow
from peers.types import Received, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from peers.vectors.reduce import Reduce, norm
from peers.vectors.screen import Screen
from peers.wire.header import MAX_ROUND

BLOCK_VALUES = 64 * 1024


class GradientRule:
    """See `peers.exchange.rule.ExchangeRule`.

    Args:
        worker: our number; a sum goes in worker order, so that every worker gets the same.
        layout: the agreement of all workers.
        size: number of values in the vector.
        lag: the staleness bound in rounds, None for none.
        is_mean: divide by the number of workers that share; else sum.
        is_published: our own gradient enters as and when the others' do; needs a bound.
        buffers: the buffer pool for leaving parts.
        reduce: a robust rule instead of mean or sum; needs `is_published`.
        screen: decides which contributions are used.
    """

    def __init__(
        self,
        worker: int,
        layout: ExchangeLayout,
        size: int,
        lag: int | None,
        is_mean: bool,
        is_published: bool = False,
        buffers: BufferPool | None = None,
        reduce: Reduce | None = None,
        screen: Screen | None = None,
    ):
        self.screen = screen or Screen(worker, is_alike=is_published)
        self.counts: Counter[str] = self.screen.counts
        self._reduce = reduce
        self._measures_own = self.screen.is_gating and not is_published
        self._worker, self._layout = worker, layout
        self._lag, self._is_mean, self._is_published = lag, is_mean, is_published
        self.encoder = GradientEncoder(worker, layout, size, is_published, self._measures_own)
        self._outgoing, self._lossy = self.encoder.outgoing, self.encoder.lossy
        self._has_applied = False
        self._buffers = buffers
        self._window = GradientWindow(size, buffers)
        self._schedule = layout.schedule
        self._newest = self._applied = 0

    def begin(self, round: int) -> None:
        self._newest = self._applied = round
        self.encoder.begin(round)

    def offer(self, round: int, part: Slice, values: np.ndarray) -> Leaving:
        self._newest = round
        is_lent = self._lag == 0 and part.size == values.size and not self._window.is_dirty
        if is_lent:
            # All of it leaves before the others' parts enter, so it need not be copied.
            return Leaving(round, part, values, {}, owner=Owner.CALLER)
        owner = Owner.RULE if self._is_published and self._layout.codec.is_exact else Owner.POOL
        return Leaving(round, part, self._window.pass_through(part, values), {}, owner=owner)

    def through(self, round: int, is_synchronous: bool) -> int:
        # Without a bound there is no round to wait for, and a faster peer's message of any round may enter.
        if self._lag is None:
            return MAX_ROUND
        return round - self._lag if self._is_published and not is_synchronous else round

    def is_ready(self, through: int) -> bool:
        if self._is_published:
            return self._outgoing.newest >= min(through, self._newest)
        return not self._measures_own or self._lag is None or self.encoder.measured >= self._newest - self._lag

    def collect(self, through: int, values: np.ndarray, items: list[Received], sharers: int) -> np.ndarray:
        if self._is_published:
            return self._collect_alike(through, values, items)
        self._note_own()
        everyone = {item.sender for item in items}
        items = self._usable(items)
        # The mean is among the senders whose contributions are used.
        sharers = max(0, sharers - len(everyone - {item.sender for item in items}))
        whole = self._schedule.whole
        if all(item.slice == whole for item in items) and len({item.sender for item in items}) == len(items):
            sum_in_order(self._worker, values, items, 1 + sharers if self._is_mean else 1)
            return values
        for item in items:
            values[item.slice.start : item.slice.stop] += item.values
        if self._is_mean and sharers:
            values /= np.float32(1 + sharers)
        return values

    def _note_own(self) -> None:
        # The norm is measured while the part is encoded, and noted as late as the bound allows: so the progress of the
        # encoding changes no decision.
        norms = self.encoder.norms
        while norms and (self._lag is None or norms[0][0] <= self._newest - self._lag):
            _, part, own_norm = norms.popleft()
            self.screen.note_own(part, own_norm)

    def _collect_alike(self, through: int, values: np.ndarray, items: list[Received]) -> np.ndarray:
        """Round by round the parts that all workers published, ourselves included, in worker order."""
        mine = self._outgoing.take(through)
        values[:] = 0
        rounds = sorted(mine.keys() | {item.round for item in items})
        self._has_applied = bool(rounds)
        for round in rounds:
            terms = [item for item in items if item.round == round]
            if round in mine:
                terms.append(mine[round])
            terms = self._usable(sorted(terms, key=lambda term: term.sender))
            if self._reduce is not None:
                for part in dict.fromkeys(term.slice for term in terms):
                    alike = self._reduce([term.values for term in terms if term.slice == part])
                    values[part.start : part.stop] += alike
                continue
            share = np.float32(1 / max(1, len(terms)) if self._is_mean else 1)
            for term in terms:
                values[term.slice.start : term.slice.stop] += term.values * share
        self._applied = max(self._applied, through)
        return values

    def _usable(self, items: list[Received]) -> list[Received]:
        """Those of the items that the screen accepts, in the same order."""
        accepted: dict[tuple[int, Slice], set[int]] = {}
        for key in dict.fromkeys((item.round, item.slice) for item in items):
            alike = [item for item in items if (item.round, item.slice) == key]
            for item in alike:
                item.norm = norm(item.values, item.squares)
            accepted[key] = self.screen.usable(key[1], alike)
        return [item for item in items if item.sender in accepted[item.round, item.slice]]

    def reschedule(self, schedule: Schedule) -> None:
        self.screen.reschedule(schedule)
        self._schedule = schedule

    def begin_flush(self) -> int:
        # Every part but the one that left last; right after a change of parts every one.
        parts = self._schedule.parts
        return parts - (self._newest - self._schedule.since >= parts)

    def has_rest(self) -> bool:
        return self._has_applied

    # --- state --------------------------------------------------------------------------------

    def state(self) -> tuple[State, dict[str, Any]]:
        arrays = {"window": self._window.state(), "kept": self._lossy.state()}
        screened, offences = self.screen.state(self._schedule, self._layout.parts)
        return arrays | screened, {"offences": offences}

    def load_state(self, arrays: State, values: dict[str, Any]) -> None:
        self._window.load_state(arrays["window"])
        self._lossy.load_state(arrays["kept"])
        self.screen.load_state(self._schedule, arrays, values.get("offences", []))

    def shared_sizes(self) -> dict[str, int]:
        return self.screen.sizes(self._schedule, self._layout.parts)

    def applied(self, round: int) -> int:
        if self._is_published and self._lag is not None:
            return max(self._applied, round - self._lag)
        return round

    def shared(self) -> tuple[State, dict[str, Any]]:
        arrays, offences = self.screen.state(self._schedule, self._layout.parts)
        return arrays, {"offences": offences}

    def load_shared(self, arrays: State, values: dict[str, Any], helper: int, round: int, applied: int) -> None:
        self.begin(round)
        self._applied = applied
        self.screen.load_state(self._schedule, arrays, values.get("offences", []))


def sum_in_order(worker: int, own: np.ndarray, items: list[Received], divisor: int) -> None:
    """own = (own + all the others) / divisor, added in worker order; the items' values are used as scratch.

    In blocks that stay in the processor's cache, so that memory is read and written once.
    """
    by_worker = [(item.sender, item.values) for item in items] + [(worker, own)]
    vectors = [vector for _, vector in sorted(by_worker, key=lambda pair: pair[0])]
    # Multiplying is exact where the divisor is a power of two, and then faster.
    share = np.float32(1 / divisor) if divisor & (divisor - 1) == 0 else None
    for start in range(0, own.size, BLOCK_VALUES):
        mine = own[start : start + BLOCK_VALUES]
        total = None
        for vector in vectors:
            term = mine if vector is own else vector[start : start + BLOCK_VALUES]
            if total is None:
                total = term
                continue
            target = mine if term is mine or total is mine else total
            np.add(total, term, out=target)
            total = target
        if share is None:
            mine /= np.float32(divisor)
        elif divisor > 1:
            mine *= share
