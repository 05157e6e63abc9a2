"""How an exchange behaves: its rule, bound, reduction and patience, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How an exchange behaves. Times in seconds.

    Attributes:
        slack: the staleness bound in steps; None for none.
        exchange: gradients or parameters.
        own: for gradients: immediate (our own enters at once) or delayed (as and when the others' do).
        reduce: mean (of the members), for gradients also sum, or one of the robust rules, which need a bound and,
            for gradients, that `own` is delayed; see `peers.vectors.reduce`.
        byzantine: for the trimmed mean, how many of the workers may be byzantine.
        norm_gate, offences: see `peers.vectors.screen.Screen`; 0 for none.
        keep_rounds: how many rounds an outbox keeps for peers that lag or replay.
        least_rounds: how many of them where Redis is full; None for all.
        min_peers: with fewer live peers this worker waits until they are back; see `ClockGate`.
        sync_periods: steps between the `state` messages, for sizing the outbox.
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
