"""The exchange rule that the options ask for, with its screen and its reduction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peers.exchange.gradients import GradientRule
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.exchange.parameters import ParameterRule
from peers.exchange.rule import ExchangeRule
from peers.vectors import reduce as robust
from peers.vectors.buffers import BufferPool
from peers.vectors.screen import Screen


def make_rule(
    options: Options,
    worker: int,
    layout: ExchangeLayout,
    initial: np.ndarray,
    buffers: BufferPool,
    log: Callable[[str], None] = lambda line: None,
) -> ExchangeRule:
    """The rule of one worker; see `peers.exchange.exchange.Exchange` for the arguments."""
    is_alike = options.slack is not None if options.exchange == "parameters" else options.own == "delayed"
    screen = Screen(worker, options.norm_gate, options.offences, is_alike, log)
    if options.exchange == "parameters":
        return ParameterRule(
            worker,
            layout,
            initial,
            options.slack,
            options.keep_rounds,
            buffers,
            reduce=robust.build(options.reduce, options.byzantine),
            measures_norms=options.reduce == "clipped_mean",
            screen=screen,
        )
    return GradientRule(
        worker,
        layout,
        initial.size,
        lag=options.slack,
        is_mean=options.reduce == "mean",
        is_published=options.own == "delayed",
        buffers=buffers,
        reduce=robust.build(options.reduce, options.byzantine) if options.reduce in robust.RULES else None,
        screen=screen,
    )
