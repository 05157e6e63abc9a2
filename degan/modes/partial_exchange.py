"""Partial exchange (DEGAN, Ako): every worker trains its own replica, and one part is exchanged in each step.

`exchange: gradients`

    gradient of step t -> push into the window -> publish part t mod p -> wait under the SSP bound
    -> collect the peers' windows -> Adam on (own + collected), as mean or sum -> moving average of G

`exchange: parameters`

    gradient of step t -> Adam on it -> publish part t mod p of the weights -> wait under the SSP bound
    -> move the part of step t - slack to the average of what all published then -> moving average of G

What always holds: replicas start from the same weights; each gradient of each worker reaches each
live peer exactly once, at most p - 1 + slack steps late (with slack null, without a bound). With one worker
the mode equals the local mode. With parts 1, slack 0, the raw codec and the mean the mode equals one process
that averages the workers' gradients (or their weights), bit for bit. Under a bound a checkpoint is a
synchronous step (all workers wait for all), so nothing is in flight. With slack null no worker waits, and a
run that is resumed as a whole loses the gradients in flight. Parameters repeat bit by bit under any slack,
and after the last step all workers have the same.

With `updates: alternating` a step is two local steps and one round: the discriminator's gradient is applied, then
the generator's, taken against the updated discriminator, and then the weights of both are exchanged. This needs
`exchange: parameters`, because gradients of the generator would have to wait for the discriminators' exchange.

Sources: Faezi, Bijani, Dolati, "DEGAN", Neurocomputing 419 (2021); Watcharapichat et al., "Ako",
SoCC 2016; Ho et al., NIPS 2013. Departures from the released DEGAN code: common initial weights,
all parameters trained, mean over the members as default, a bound on staleness, nothing lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from config.settings.experiment import Experiment
from degan.data.base import Batch
from degan.learners.casts import torch_cast
from degan.learners.chain import attack, chain
from degan.learners.guard import NonFiniteGuard
from degan.learners.protocols import Counters, Trainable, Vectors
from degan.modes import Context
from degan.modes.connect import agreement, attack_on, fingerprint, open_bus
from degan.modes.needs import Needs, entry_bytes, float_bytes
from peers.bus.door import Bus
from peers.codecs.exact import CODECS
from peers.codecs.exact import build as build_codec
from peers.errors import BusError, LeaseExpiredError, MessageError, StalledError
from peers.exchange.auto import CHOICES, FIRST
from peers.exchange.exchange import Exchange
from peers.exchange.factory import make_rule
from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options
from peers.exchange.outbox import Outbox
from peers.session.meet import Rendezvous, Start
from peers.types import Cursor
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule

# An upper bound of the weights of an honest worker.
RUNAWAY = 1e6
BLOCK_VALUES = 4096


def least_rounds(settings: Experiment) -> int:
    """The rounds that an outbox must keep: under the bound no reader is more than 2 * (slack + 1) rounds behind."""
    mode = settings.mode
    if mode.slack is None:
        return settings.bus.unbounded_backlog
    # With many parts a round is small, and `Outbox` has room for these.
    parts = 1 if mode.parts == "auto" else mode.parts
    return 2 * mode.slack + 3 + parts


def keep_rounds(settings: Experiment, round_bytes: int) -> int:
    """The rounds that an outbox keeps: those for the bound, and those since a checkpoint for replay if they fit."""
    mode, every = settings.mode, settings.checkpoint_every
    needed = least_rounds(settings)
    replay = every + needed if every else 0
    budget_bytes = settings.bus.replay_bytes
    if budget_bytes is None:
        budget_bytes = (512 if mode.slack == 0 else 64) * 2**20
    return max(needed, min(replay, budget_bytes // max(1, round_bytes)))


def layout_of(settings: Experiment, learner: Trainable, fingerprint: bytes = bytes(8)) -> ExchangeLayout:
    """The layout of the exchanged vectors and their slices; the same on every worker."""
    mode = settings.mode
    is_auto = mode.parts == "auto"
    return ExchangeLayout(
        schedule=Schedule(learner.size, FIRST if is_auto else mode.parts),
        codec=build_codec(mode.codec, mode.topk_fraction, mode.rounding, torch_cast),
        state_size=learner.statistics().size,
        fingerprint=fingerprint,
        parts=CHOICES if is_auto else (),
        may_be_whole=mode.exchange == "parameters",
    )


def options_of(settings: Experiment, layout: ExchangeLayout) -> Options:
    """The options of the exchange, from the settings."""
    mode, run = settings.mode, settings.run
    round_bytes = layout.codec.encoded_bytes(layout.largest.size)
    return Options(
        slack=mode.slack,
        exchange=mode.exchange,
        own=mode.own,
        reduce=mode.reduce,
        byzantine=mode.byzantine,
        norm_gate=settings.bus.norm_gate,
        offences=settings.bus.offences,
        keep_rounds=keep_rounds(settings, round_bytes),
        least_rounds=least_rounds(settings),
        min_peers=settings.bus.min_peers,
        sync_periods=tuple(n for n in (settings.checkpoint_every, run.evaluate_every, run.snapshot_every) if n),
        lease_s=settings.bus.lease_s,
        stall_timeout_s=settings.bus.stall_timeout_s,
        finish_timeout_s=settings.bus.finish_timeout_s,
    )


def build(context: Context) -> PartialExchange:
    """The mode of one worker. Raises as `degan.modes.connect.open_bus`."""
    bus = open_bus(context.settings, context.worker, context.log, context.may_take_over)
    return PartialExchange(context.settings, context.learner, bus, context.facts, context.log)


def needs(settings: Experiment, learner: Trainable) -> Needs:
    """The needs of a worker: a full outbox, and the state for one joiner."""
    layout = layout_of(settings, learner)
    options = options_of(settings, layout)
    initial = np.zeros(learner.size, dtype=np.float32)
    shared_vectors = make_rule(options, 0, layout, initial, BufferPool()).shared_sizes()
    outbox = Outbox(options, layout)
    states = outbox.state_entries
    part_bytes = entry_bytes(layout.largest.size, layout.codec)
    statistics_bytes = entry_bytes(layout.state_size, CODECS["raw"]) if states else 0
    outbox_bytes = outbox.entries * part_bytes + states * max(0, statistics_bytes - part_bytes)
    if layout.may_be_whole and not layout.codec.is_exact:
        # Values that are no differences are sent raw: each part once, at the beginning or after a loss.
        outbox_bytes += 4 * learner.size
    return Needs(
        outbox_bytes=outbox_bytes,
        state_bytes=float_bytes(learner.sizes) + float_bytes(shared_vectors),
        step_bytes=layout.codec.encoded_bytes(layout.schedule.slice(1).size),
        vector_bytes=4 * learner.size,
    )


class PartialExchange:
    """See `degan.modes.Mode`.

    Args:
        settings: the experiment.
        learner: the learner that is trained.
        bus: the bus to the peers; closed by `close`.
        facts: values other than settings on which all workers must agree.
        log: called with one line for a person.
    """

    is_shared = False

    def __init__(
        self, settings: Experiment, learner: Trainable, bus: Bus, facts: dict[str, Any], log: Callable[[str], None]
    ):
        self._settings, self._learner, self._bus, self._log = settings, learner, bus, log
        mode = settings.mode
        self._whole, self._sections = (0, learner.size), learner.sections(mode.updates)
        self._exchanges_parameters = mode.exchange == "parameters"
        self._agreed = agreement(settings, learner, facts)
        self._layout = layout_of(settings, learner, fingerprint(self._agreed))
        self._options = options_of(settings, self._layout)
        round_bytes = self._layout.codec.encoded_bytes(self._layout.largest.size)
        log(
            f"{learner.size:,} values in {mode.parts} parts of at most {round_bytes / 1024:,.0f} KiB; "
            f"the outbox keeps {self._options.keep_rounds} rounds; {needs(settings, learner)}"
        )
        self._guard = NonFiniteGuard(learner, log)
        self._attack = attack_on(bus, log)
        self._exchange: Exchange | None = None
        self._failure: BaseException | None = None
        self._rendezvous = Rendezvous(
            bus, self._agreed, self._options.lease_s, settings.connect_timeout_s, log, self._fail
        )

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        if self._exchange is not None:
            self._exchange.gate.fail(error)

    def begin(self, checkpoints, saved, load) -> int:
        cursors = {int(peer): Cursor.from_plain(plain) for peer, plain in saved.get("followed", {}).items()}
        followed = {peer: (cursor.incarnation, cursor.sequence) for peer, cursor in cursors.items()}
        self._rendezvous.claim(checkpoints)
        start = self._rendezvous.meet(checkpoints, followed)
        initial = self._learner.parameters(self._whole)
        self._exchange = Exchange(self._bus, self._layout, initial, self._options, self._log)
        if start.kind == "join":
            try:
                last = self._exchange.start(start, 0, self._learner.sizes, self._take_over)
            except (StalledError, BusError, MessageError) as error:
                if error is self._failure:
                    raise
                # Some peers may wait for this incarnation; only a new incarnation lets them continue.
                raise LeaseExpiredError(str(error)) from None
            self._rendezvous.lease.joined(last)
        else:
            if start.step:
                self._exchange.load_state(*load(start.step))
            last = self._exchange.start(start, start.step)
        if self._failure is not None:
            raise self._failure
        self._log_start(start, last)
        return last

    def _take_over(self, vectors: Vectors, counters: Counters) -> None:
        """Load the state that a peer has given. Raises KeyError, ValueError."""
        self._learner.load(vectors, {name: int(counters[name]) for name in self._learner.state()[1]})

    def _log_start(self, start: Start, step: int) -> None:
        peers = ", ".join(map(str, sorted(start.incarnations))) or "nobody else"
        how = {"together": "begins", "replay": "replays", "join": "joins"}[start.kind]
        self._log(f"{how} at step {step} with worker {peers}")

    def step(self, step: int, next_batch: Callable[[], Batch], is_sync_point: bool) -> dict[str, float]:
        advance = self._step_parameters if self._exchanges_parameters else self._step_gradient
        found = advance(next_batch(), lambda: self._is_sync_point(step, is_sync_point))
        self._exchange.serve(self._learner.state)
        self._rendezvous.lease.progress(step)
        return found

    def _step_gradient(self, batch: Batch, is_sync_point: Callable[[], bool]) -> dict[str, float]:
        """Send the gradient and apply the combined one. An unusable gradient is zeros; the others still count."""
        (section,) = self._sections
        # A copy of the statistics, which only the chain reads.
        context = self._guard.context() if self._attack else None
        gradient, found, is_usable = self._guard.gradients(section, batch)
        if self._attack:
            gradient[:] = chain(*attack(self._attack))(gradient, context)
        combined = self._exchange.exchange(gradient, is_sync_point)
        # With `own: delayed` all replicas apply the same. So only values that all workers have may decide.
        is_fresh = is_usable and self._settings.mode.own == "immediate"
        if self._guard.allows_together(combined) and (is_fresh or _has_any(combined)):
            self._learner.apply(section, combined)
            self._learner.average(section)
        return found

    def _step_parameters(self, batch: Batch, is_sync_point: Callable[[], bool]) -> dict[str, float]:
        """Apply the gradients, send the weights, load the agreed weights. An unusable gradient changes nothing."""
        found, applied = {}, []
        before = self._learner.parameters(self._whole).copy() if self._attack else None
        context = self._guard.context() if self._attack else None
        for section in self._sections:
            gradient, some, is_usable = self._guard.gradients(section, batch)
            found.update(some)
            if is_usable:
                self._learner.apply(section, gradient)
                applied.append(section)
        values = self._learner.parameters(self._whole)
        if before is not None:
            honest = values.copy()
            values[:] = before + chain(*attack(self._attack))(values - before, context)
        together = self._exchange.exchange(values, is_sync_point)
        if before is not None:
            # A byzantine worker must keep training, so its own runaway weights are restored.
            np.copyto(together, honest, where=~(np.abs(together) < RUNAWAY))
        self._learner.load_parameters(self._whole, together)
        for section in applied:
            self._learner.average(section)
        return found

    def _is_sync_point(self, step: int, is_sync_point: bool) -> bool:
        return is_sync_point or self.is_stopping(step)

    def synchronise(self, step: int) -> bool:
        self._learner.load_statistics(self._exchange.average(self._learner.statistics()))
        return True

    def finish(self) -> None:
        self._rendezvous.lease.leaving()
        if self._exchanges_parameters:
            together = self._exchange.finish(self._learner.parameters(self._whole))
            self._learner.load_parameters(self._whole, together)
            return
        combined = self._exchange.finish(np.zeros(self._learner.size, np.float32))
        if combined is not None and self._guard.allows_together(combined):
            self._learner.apply(self._whole, combined)
            self._learner.average(self._whole)

    def leave(self, is_together: bool) -> None:
        self._rendezvous.lease.leaving()
        self._exchange.leave(is_resumable=is_together)

    def ask_to_stop(self, step: int) -> None:
        self._exchange.ask_to_stop(step)

    def is_stopping(self, step: int) -> bool:
        stop_at = self._exchange.gate.stop_at
        return stop_at is not None and step >= stop_at

    def is_first(self) -> bool:
        return all(self._bus.worker < peer for peer in self._exchange.gate.members())

    def state(self):
        return self._exchange.state()

    def stats(self) -> dict[str, Any]:
        found = self._exchange.stats()
        return found | {"dropped": dict(Counter(found["dropped"]) + self._guard.counts)}

    def close(self) -> None:
        try:
            if self._exchange is not None:
                self._exchange.close()
            self._rendezvous.close()
        finally:
            self._bus.close()


def _has_any(values: np.ndarray) -> bool:
    """Whether any value is not zero; mostly the first block has one."""
    return any(values[start : start + BLOCK_VALUES].any() for start in range(0, values.size, BLOCK_VALUES))
