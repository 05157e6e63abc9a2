"""How an exchange behaves, and the carry that the rules ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peers.exchange.carry import Carry
from peers.exchange.gradients import GradientCarry
from peers.exchange.parameters import ParameterCarry
from peers.vectors import reduce as robust
from peers.vectors.buffers import Spares
from peers.vectors.screen import Judge
from peers.wire.message import Layout


@dataclass(frozen=True)
class Rules:
    """How an exchange behaves. Times in seconds.

    Attributes:
        slack: the staleness bound in steps; None for none.
        carry: gradients or parameters.
        own: for gradients: fresh (our own enters at once) or published (as and when the others' do).
        reduce: mean (of the members), for gradients also sum, or one of the robust rules, which need a bound and,
            for gradients, that `own` is published; see `peers.vectors.reduce`.
        hostile: for the trimmed mean, how many of the workers may be bad.
        norm_gate, strikes: see `peers.vectors.screen.Judge`; 0 for none.
        keep_rounds: how many rounds an outbox keeps for those who lag or replay.
        least_rounds: how many of them where Redis is full; None for all.
        min_peers: with fewer live peers this worker waits until they are back; see `ClockGate`.
        cut_periods: steps between the `state` messages, for sizing the outbox.
        lease_s, stall_timeout_s, finish_timeout_s: as in the settings.
    """

    slack: int | None = 2
    carry: str = "gradients"
    own: str = "fresh"
    reduce: str = "mean"
    hostile: int = 1
    norm_gate: float = 10.0
    strikes: int = 10
    keep_rounds: int = 64
    least_rounds: int | None = None
    min_peers: int = 0
    cut_periods: tuple[int, ...] = ()
    lease_s: float = 30.0
    stall_timeout_s: float = 600.0
    finish_timeout_s: float = 60.0

    def furthest_lead(self, layout: Layout) -> int | None:
        """How many rounds a peer that awaits us can be ahead: the bound, and what it sends after its last step."""
        most_parts = max(layout.parts, default=layout.schedule.parts)
        return None if self.slack is None else self.slack + 2 + most_parts

    def outbox(self, layout: Layout) -> tuple[int, int, int]:
        """What `Bus.configure` is to know: how many entries are kept, the largest payload, how many are enough."""
        least = self.keep_rounds if self.least_rounds is None else self.least_rounds
        return self._entries(layout, self.keep_rounds), layout.largest_payload_bytes(), self._entries(layout, least)

    def outbox_entries(self, layout: Layout) -> int:
        """How many entries an outbox keeps."""
        return self._entries(layout, self.keep_rounds)

    def state_entries(self, layout: Layout) -> int:
        """How many of these belong to `state` messages."""
        return self._state_entries(layout, self.keep_rounds)

    def _entries(self, layout: Layout, keep_rounds: int) -> int:
        # Where the parts find themselves a round may also be a small one of very many.
        small = max(layout.parts, default=0)
        return keep_rounds * layout.entries_per_round() + small + self._state_entries(layout, keep_rounds) + 16

    def _state_entries(self, layout: Layout, keep_rounds: int) -> int:
        return sum(keep_rounds // period + 2 for period in self.cut_periods) * layout.entries_per_state()


def make_carry(
    rules: Rules,
    worker: int,
    layout: Layout,
    initial: np.ndarray,
    spares: Spares,
    say: Callable[[str], None] = lambda line: None,
) -> Carry:
    """What is carried, for one worker; see `peers.exchange.exchange.Exchange` for the arguments."""
    is_alike = rules.slack is not None if rules.carry == "parameters" else rules.own == "published"
    judge = Judge(worker, rules.norm_gate, rules.strikes, is_alike, say)
    if rules.carry == "parameters":
        return ParameterCarry(
            worker,
            layout,
            initial,
            rules.slack,
            rules.keep_rounds,
            spares,
            reduce=robust.build(rules.reduce, rules.hostile),
            measures_lengths=rules.reduce == "clipped_mean",
            judge=judge,
        )
    return GradientCarry(
        worker,
        layout,
        initial.size,
        lag=rules.slack,
        is_mean=rules.reduce == "mean",
        is_published=rules.own == "published",
        spares=spares,
        reduce=robust.build(rules.reduce, rules.hostile) if rules.reduce in robust.RULES else None,
        judge=judge,
    )
