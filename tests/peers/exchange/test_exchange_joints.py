"""The joints of an exchange: inbox and gate, rules and outbox, changing parts and flushed windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import config
from degan.modes.partial_exchange import keep_rounds, layout_of, least_rounds, options_of
from peers.exchange.factory import make_rule
from peers.exchange.gate import furthest_lead
from peers.exchange.inbox import Inbox
from peers.exchange.outbox import Outbox
from peers.exchange.window import Accumulator
from peers.types import Cursor, Entry, Slice
from peers.vectors.buffers import BufferPool
from peers.vectors.partition import Schedule
from peers.wire.encode import encode_vector
from tests.fleets import integers, make_layout
from tests.lockstep import Lockstep, rules

SIZE = 10
ZEROS = np.zeros(SIZE, np.float32)


class Waits(Exception):
    """Raised in place of a wait."""


def never_wait(exchange):
    def until(is_done, describe, timeout_s=None):
        if not is_done():
            raise Waits(describe())

    exchange.gate.until = until


# --- inbox and gate -----------------------------------------------------------------------------


class WatchedGate:
    """A gate that looks at the inbox when a clock is noted."""

    def __init__(self, accumulator, proposals):
        self.accumulator, self.proposals, self.seen = accumulator, proposals, []

    def note(self, peer, round):
        items = self.accumulator.take(10**6)
        self.seen.append((peer, round, [(item.sender, item.round) for item in items], list(self.proposals.said)))


class Proposals:
    def __init__(self):
        self.said = []

    def note(self, worker, round, proposal):
        self.said.append((worker, round, proposal))


def test_a_noted_clock_has_its_contribution_and_its_proposal():
    """A worker that passes the bound because of that clock must find the contribution for which it waited."""
    layout, accumulator, proposals = make_layout(SIZE, "auto"), Accumulator(), Proposals()
    gate = WatchedGate(accumulator, proposals)
    inbox = Inbox(0, layout, accumulator, gate, proposals)
    inbox.expect_after(1, Cursor("a", 0, 0))
    part = layout.schedule.slice(1)
    entries = encode_vector(layout, "part", 1, part, np.ones(part.size, np.float32), extras={"w": 4.0})
    for number, (header, payload) in enumerate(entries, start=1):
        inbox.feed(Entry(1, "a", number, True, header, bytes(payload)))
    assert gate.seen == [(1, 1, [(1, 1)], [(1, 1, 4.0)])]


def test_the_number_of_the_last_entry_goes_with_a_contribution():
    """The number becomes a part of a cursor: a joiner, or a resumed worker, begins to read there."""
    layout = make_layout(SIZE, state_size=2)
    accumulator = Accumulator()
    inbox = Inbox(0, layout, accumulator, WatchedGate(Accumulator(), Proposals()))
    inbox.expect_after(1, Cursor("a", 4, 0))
    ((header, payload),) = encode_vector(layout, "part", 5, Slice(0, SIZE), np.ones(SIZE, np.float32))
    inbox.feed(Entry(1, "a", 17, True, header, bytes(payload)))
    (item,) = accumulator.take(5)
    assert (item.sender, item.incarnation, item.round, item.last_sequence) == (1, "a", 5, 17)
    assert item.squares == SIZE and not item.is_whole


# --- the rounds of an outbox --------------------------------------------------------------------


def experiment(slack=2, parts=4, updates="simultaneous", workers=2, bus=None, run=None, **mode):
    return config.build(
        {
            "name": "joints",
            "peers": workers,
            "data": {"name": "mnist", "batch_size": 4},
            "model": {"name": "mlp", "latent": 4, "hidden": 8, "image_size": 8},
            "mode": {"name": "partial_exchange", "slack": slack, "parts": parts, "updates": updates, **mode},
            "bus": bus or {},
            "run": {"checkpoint_every": 10} | (run or {}),
        }
    )


MIB = 2**20


@pytest.mark.parametrize(
    ("settings", "round_bytes", "least", "kept"),
    [
        # The rounds are 2 x slack + 3 + parts, and as many of the steps between two checkpoints as fit into
        # replay_bytes.
        ({}, 1, 11, 21),
        ({"slack": 5, "parts": 2}, 1, 15, 25),
        ({"updates": "alternating"}, 1, 11, 21),
        ({"parts": "auto"}, 1, 8, 18),
        ({"slack": 0, "parts": 1}, 1, 4, 14),
        ({"run": {"checkpoint_every": 0}}, 1, 11, 11),
        ({"bus": {"replay_bytes": 0}}, 1, 11, 11),
        ({"bus": {"replay_bytes": 1500}}, 100, 11, 15),
        ({"bus": {"replay_bytes": 1500}}, 1000, 11, 11),
        # The default of replay_bytes is 64 MiB, and 512 MiB where slack is 0.
        ({}, 4 * MIB, 11, 16),
        ({"slack": 0, "parts": 1, "run": {"checkpoint_every": 1000}}, 4 * MIB, 4, 128),
        ({"slack": None, "bus": {"unbounded_backlog": 30}}, 1, 30, 40),
    ],
)
def test_how_many_rounds_are_kept(settings, round_bytes, least, kept):
    found = experiment(**settings)
    assert least_rounds(found) == least
    assert keep_rounds(found, round_bytes) == kept


def test_the_options_of_an_outbox_come_from_the_settings():
    found = experiment(2, 4, run={"checkpoint_every": 10, "evaluate_every": 7, "snapshot_every": 3})
    settings = options_of(found, layout_of(found, Pair()))
    assert (settings.least_rounds, settings.keep_rounds, settings.sync_periods) == (11, 21, (10, 7, 3))
    found = experiment(2, 4, run={"checkpoint_every": 0, "evaluate_every": 7, "snapshot_every": 0})
    assert options_of(found, layout_of(found, Pair())).sync_periods == (7,)


def test_the_layout_comes_from_the_settings():
    found = layout_of(experiment(codec="topk", topk_fraction=0.25, exchange="gradients"), Pair(), b"eight...")
    assert (found.state_size, found.fingerprint, found.parts, found.may_be_whole) == (3, b"eight...", (), False)
    assert found.codec.encoded_bytes(8) == 2 * 6 and found.schedule.parts == 4
    assert found.schedule.whole == Slice(0, SIZE)
    found = layout_of(experiment(parts="auto", codec="int8", rounding="stochastic", exchange="parameters"), Pair())
    assert found.may_be_whole and found.codec._is_stochastic
    assert (found.schedule.parts, found.parts) == (8, (1, 2, 4, 8, 16, 32, 64))


def test_the_largest_part_is_the_largest_wherever_it_lies():
    assert [Schedule(7, parts).largest for parts in (2, 3)] == [(3, 7), (4, 7)]


def test_without_a_bound_as_many_rounds_are_remembered_as_an_outbox_keeps():
    rule = make_rule(rules(slack=None, exchange="parameters", keep_rounds=7), 0, make_layout(SIZE), ZEROS, BufferPool())
    for round in range(1, 20):
        list(rule.encoder.encode(rule.offer(round, Slice(0, SIZE), ZEROS), {}))
    assert sorted(rule._outgoing._published) == list(range(13, 20))


class Pair:
    """The pair as its layout sees it."""

    size = SIZE

    def statistics(self):
        return np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("exchange", "slack", "parts", "codec", "updates"),
    [
        ("gradients", 40, 1, "raw", "simultaneous"),
        ("gradients", 0, 40, "raw", "simultaneous"),
        ("gradients", 20, 2, "raw", "simultaneous"),
        ("parameters", 20, 2, "raw", "alternating"),
        ("parameters", 40, 2, "int8", "simultaneous"),
        ("parameters", 3, 40, "raw", "simultaneous"),
    ],
)
def test_a_worker_that_reads_nothing_for_as_long_as_possible_loses_nothing(
    monkeypatch, exchange, slack, parts, codec, updates
):
    """A worker publishes up to its bound and hears nothing.

    The other goes on up to its own bound, and even finishes.
    """
    found = experiment(slack, parts, updates, exchange=exchange, codec=codec, bus={"replay_bytes": 0})
    layout = layout_of(found, Pair())
    settings = options_of(found, layout)
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, replace(settings, norm_gate=0.0))
    ahead, behind = fleet.exchanges
    never_wait(ahead)
    never_wait(behind)

    def step(exchange):
        exchange.exchange(np.zeros(SIZE, np.float32))

    fleet.deaf = {1}
    with pytest.raises(Waits):
        for _ in range(slack + 1):
            step(behind)
    # These are the last steps of a run: nobody awaits the other worker, and the rest of its window leaves.
    for _ in range(2 * slack + 1):
        step(ahead)
    ahead.gate.leave(1)
    ahead.finish(np.zeros(SIZE, np.float32))
    published = ahead._round
    assert published >= 2 * slack + parts - 1
    fleet.deaf = set()
    fleet.deliver()
    assert behind._inbox.dropped() == {}
    assert behind.gate.clock(0) == published


def test_the_outbox_of_a_run():
    """Entries of the parts, the states of every sync point, and a few small messages."""
    layout = make_layout(SIZE, 2, state_size=3)
    settings = rules(keep_rounds=20, sync_periods=(5, 10))
    # The states are 20 // 5 + 2 and 20 // 10 + 2.
    outbox = Outbox(settings, layout)
    assert (outbox.state_entries, outbox.entries, outbox.least_entries) == (6 + 4, 20 + 10 + 16, 46)
    least = replace(settings, least_rounds=10)
    outbox = Outbox(least, layout)
    assert (outbox.entries, outbox.least_entries) == (46, 10 + (10 // 5 + 2) + (10 // 10 + 2) + 16)
    assert outbox.payload_bytes == layout.largest_payload_bytes()
    auto = make_layout(SIZE, "auto", state_size=3)
    assert Outbox(settings, auto).entries == 20 + 64 + 10 + 16
    assert furthest_lead(settings, layout) == 2 + 2 + 2
    assert furthest_lead(settings, auto) == 2 + 2 + 64 and furthest_lead(rules(slack=None), auto) is None


# --- changing parts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "steps", "flushed", "slack", "own"),
    [
        (4, 15, 7, 1, "immediate"),
        (4, 16, 4, 1, "immediate"),
        (4, 19, 4, 1, "immediate"),
        (4, 20, 3, 1, "immediate"),
        (4, 24, 3, 1, "immediate"),
        (4, 16, 4, 1, "delayed"),
        (1, 18, 0, 0, "immediate"),
        (16, 16, 16, 1, "immediate"),
        (16, 17, 16, 1, "delayed"),
    ],
)
def test_everything_leaves_wherever_in_a_run_the_parts_change(monkeypatch, own, slack, after, steps, flushed):
    """The parts change from eight after step 16. Gathered values leave in the new parts, at the end at the latest."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE, "auto"), SIZE, rules(slack=slack, own=own, reduce="sum"))
    for exchange in fleet.exchanges:
        exchange._auto.measure = lambda *args: None
        exchange._auto._proposal = after if exchange._bus.worker else 1
    gradients = integers(np.random.default_rng(0), steps * 2 * SIZE).reshape(steps, 2, SIZE)

    def job(worker, exchange):
        got, parts = np.zeros(SIZE), []
        for some in gradients:
            got += exchange.exchange(some[worker].copy())
            parts.append(exchange.stats()["parts"])
        return got, parts

    results = fleet.together(job)
    for (got, parts), left in zip(results, fleet.finish(), strict=True):
        assert parts == ([8] * 15 + [after] * 100)[:steps]
        np.testing.assert_array_equal(got + left, gradients.sum(axis=(0, 1)))
    # The exchange sends no part that cannot have anything in it.
    assert [exchange._round for exchange in fleet.exchanges] == [steps + flushed] * 2
    assert fleet.dropped() == [{}] * 2


# --- statistics ---------------------------------------------------------------------------------


def test_staleness_is_in_steps_and_since_the_last_look(monkeypatch):
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=3))

    def step(worker):
        fleet.exchanges[worker].exchange(np.ones(SIZE, np.float32))

    for _ in range(3):
        step(0)
    # Worker 0 is in step 3. Worker 1 takes of its rounds, step by step, those that are not in its own future.
    for _ in range(2):
        step(1)
        stats = fleet.exchanges[1].stats()
        assert (stats["staleness_mean"], stats["staleness_max"]) == (0.0, 0)
    step(0)
    # Rounds 1 and 2 of worker 1 in step 4 are three steps and two steps old.
    stats = fleet.exchanges[0].stats()
    assert (stats["staleness_mean"], stats["staleness_max"]) == (2.5, 3)
    stats = fleet.exchanges[0].stats()
    assert (stats["staleness_mean"], stats["staleness_max"]) == (0.0, 0)
    assert (stats["live_peers"], stats["parts"]) == (1, 1)
    assert stats["sent_bytes"] == fleet.buses[0].sent_bytes > stats["received_bytes"] == fleet.buses[0].received_bytes


class Clock:
    """A clock whose seconds pass only in a test."""

    def __init__(self):
        self.now_s = 100.0

    def monotonic(self):
        return self.now_s

    def after(self, function, seconds):
        def timed(*args, **kwargs):
            self.now_s += seconds
            return function(*args, **kwargs)

        return timed


def test_waiting_time_is_told_from_working_time(monkeypatch):
    clock = Clock()
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE, "auto"), SIZE, rules(slack=4))
    monkeypatch.setattr("peers.exchange.exchange.time", clock)
    monkeypatch.setattr("peers.session.session.time", clock)
    exchange, measured = fleet.exchanges[0], []
    exchange._left_at = clock.now_s
    exchange.gate.wait = clock.after(exchange.gate.wait, 5.0)
    exchange._rule.offer = clock.after(exchange._rule.offer, 1.0)
    exchange._rule.collect = clock.after(exchange._rule.collect, 2.0)
    exchange._auto.measure = lambda schedule, computed_s, *rest: measured.append(computed_s)
    for _ in range(3):
        # The time of the caller between two rounds is its own work.
        clock.now_s += 10.0
        exchange.exchange(np.ones(SIZE, np.float32))
    assert (exchange.wait_s, exchange.exchange_s) == (15.0, 9.0)
    assert exchange.stats()["wait_s"] == 15.0 and exchange.stats()["exchange_s"] == 9.0
    assert measured == [10.0, 20.0, 30.0]
