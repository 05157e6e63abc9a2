"""How an exchange behaves, and the carry that the rules ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peers.exchange.gradients import GradientRule
from peers.exchange.parameters import ParameterRule
from peers.exchange.rule import ExchangeRule
from peers.vectors import reduce as robust
from peers.vectors.buffers import BufferPool
from peers.vectors.screen import Screen
from peers.wire.message import Layout


@dataclass(frozen=True)
class Rules:
    """How an exchange behaves. Times in seconds.

    Attributes:
        slack: the staleness bound in steps; None for none.
        exchange: gradients or parameters.
        own: for gradients: fresh (our own enters at once) or published (as and when the others' do).
        reduce: mean (of the members), for gradients also sum, or one of the robust rules, which need a bound and,
            for gradients, that `own` is published; see `peers.vectors.reduce`.
        hostile: for the trimmed mean, how many of the workers may be bad.
        norm_gate, strikes: see `peers.vectors.screen.Screen`; 0 for none.
        keep_rounds: how many rounds an outbox keeps for those who lag or replay.
        least_rounds: how many of them where Redis is full; None for all.
        min_peers: with fewer live peers this worker waits until they are back; see `ClockGate`.
        cut_periods: steps between the `state` messages, for sizing the outbox.
        lease_s, stall_timeout_s, finish_timeout_s: as in the settings.
    """

    slack: int | None = 2
    exchange: str = "gradients"
    own: str = "immediate"
    reduce: str = "mean"
    byzantine: int = 1
    norm_gate: float = 10.0
    offences: int = 10
    keep_rounds: int = 64
    least_rounds: int | None = None
    min_peers: int = 0
    sync_periods: tuple[int, ...] = ()
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
        return sum(keep_rounds // period + 2 for period in self.sync_periods) * layout.entries_per_state()


def make_rule(
    rules: Rules,
    worker: int,
    layout: Layout,
    initial: np.ndarray,
    buffers: BufferPool,
    log: Callable[[str], None] = lambda line: None,
) -> ExchangeRule:
    """What is carried, for one worker; see `peers.exchange.exchange.Exchange` for the arguments."""
    is_alike = rules.slack is not None if rules.exchange == "parameters" else rules.own == "delayed"
    screen = Screen(worker, rules.norm_gate, rules.offences, is_alike, log)
    if rules.exchange == "parameters":
        return ParameterRule(
            worker,
            layout,
            initial,
            rules.slack,
            rules.keep_rounds,
            buffers,
            reduce=robust.build(rules.reduce, rules.byzantine),
            measures_norms=rules.reduce == "clipped_mean",
            screen=screen,
        )
    return GradientRule(
        worker,
        layout,
        initial.size,
        lag=rules.slack,
        is_mean=rules.reduce == "mean",
        is_published=rules.own == "delayed",
        buffers=buffers,
        reduce=robust.build(rules.reduce, rules.byzantine) if rules.reduce in robust.RULES else None,
        screen=screen,
    )
