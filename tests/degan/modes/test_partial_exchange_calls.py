"""The calls of partial exchange to rendezvous, exchange and pair: begin, stop, end, load; the first two stand-ins."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from degan.learners.gan_pair import GanPair
from degan.modes import partial_exchange
from degan.modes.partial_exchange import PartialExchange
from peers.errors import BusError, LeaseExpiredError, MessageError, StalledError
from peers.session.meet import Start
from tests.degan.modes.test_partial_exchange_mode import RATES, SHAPE, close, experiment
from tests.fleets import memory_buses
from tests.learner_views import counters_of, unlabelled, vectors_of


class Meeting:
    """A rendezvous with a start that the test sets."""

    start: Start

    def __init__(self, bus, agreed, lease_s, timeout_s, log, fail):
        self.calls, self.fail = [], fail

    def meet(self, checkpoints, followed):
        self.calls.append(("meet", checkpoints, followed))
        return self.start

    @property
    def lease(self):
        return self

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


class Exchanged:
    """An exchange that notes its calls, and gives the answers of a test."""

    def __init__(self, bus, layout, initial, rules, log):
        self.calls, self.initial, self.rules, self.layout = [], initial.copy(), rules, layout
        self.gate = SimpleNamespace(stop_at=None, members=lambda: (2, 5))
        self.error, self.at = None, 0

    def start(self, start, round, sizes=None, load=None):
        self.calls.append(("start", round, sizes))
        if self.error:
            raise self.error
        return self.at or round

    def load_state(self, arrays, values):
        self.calls.append(("load_state", arrays, values))

    def exchange(self, values, is_sync_point):
        self.calls.append(("exchange", is_sync_point()))
        self.sent = values.copy()
        return self.gives(values)

    def gives(self, values):
        return values

    def finish(self, values):
        self.calls.append(("finish",))
        self.sent = values.copy()
        return self.gives(values)

    def average(self, values):
        return values + 1

    def serve(self, make_state):
        self.calls.append(("serve", make_state))

    def leave(self, is_resumable):
        self.calls.append(("leave", is_resumable))

    def close(self):
        self.calls.append(("close",))


@pytest.fixture
def mode(monkeypatch):
    """A function that makes a mode over stand-ins; `prepare` is called with the exchange before it starts."""

    def make(start, prepare=lambda exchange: None, worker=0, **block):
        monkeypatch.setattr(partial_exchange, "Rendezvous", type("Meeting", (Meeting,), {"start": start}))

        def exchange(*args):
            made = Exchanged(*args)
            prepare(made)
            return made

        monkeypatch.setattr(partial_exchange, "Exchange", exchange)
        settings = experiment(6, **block)
        pair = GanPair(settings, SHAPE, worker, torch.device("cpu"))
        return PartialExchange(settings, pair, memory_buses(6)[worker], {}, lambda line: None), pair

    return make


REAL = unlabelled(torch.zeros(4, *SHAPE))


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
def test_a_saved_state_is_loaded_and_the_exchange_begins_after_its_step(mode, updates):
    made, _ = mode(Start("replay", 8, {1: "b"}), updates=updates)
    saved = {"followed": {"1": ["a", 3, 11], "4": ["c", 1, 6]}}
    loaded = []
    assert made.begin([4, 8], saved, lambda step: loaded.append(step) or ({"x": 1}, {"y": 2})) == 8
    meeting, exchange = made._rendezvous, made._exchange
    followed = {1: ("a", 11), 4: ("c", 6)}
    assert meeting.calls == [("claim", [4, 8]), ("meet", [4, 8], followed)]
    assert loaded == [8]
    assert exchange.calls == [("load_state", {"x": 1}, {"y": 2}), ("start", 8, None)]


def test_peers_that_train_something_else_are_not_understood(mode):
    """Every header has a fingerprint of the agreed settings, eight bytes."""
    marks = [mode(Start("together", 0, {}), slack=slack)[0]._layout.fingerprint for slack in (1, 1, 2)]
    assert marks[0] == marks[1] != marks[2] and len(marks[0]) == 8 and any(marks[0])


def test_a_fresh_start_loads_nothing(mode):
    made, pair = mode(Start("together", 0, {1: "b"}))
    assert made.begin([], {}, None) == 0
    assert made._exchange.calls == [("start", 0, None)]
    np.testing.assert_array_equal(made._exchange.initial, pair.parameters((0, pair.size)))


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
def test_a_joiner_stands_at_the_step_of_its_helper(mode, updates):
    made, pair = mode(Start("join", 0, {1: "b"}, 1), lambda exchange: setattr(exchange, "at", 7), updates=updates)
    assert made.begin([4], {}, None) == 7
    sizes = {name: vector.size for name, vector in vectors_of(pair).items()}
    assert made._exchange.calls == [("start", 0, sizes)]
    assert made._rendezvous.calls[-1] == ("joined", 7)


def test_a_join_that_fails_because_of_ourselves_is_not_tried_again(mode):
    made, _ = mode(Start("join", 0, {1: "b"}, 1), lambda exchange: setattr(exchange, "error", ours))
    ours = StalledError("our own heart")
    made._rendezvous.fail(ours)
    with pytest.raises(StalledError, match="our own heart"):
        made.begin([], {}, None)


@pytest.mark.parametrize("error", [StalledError("x"), BusError("x"), MessageError("malformed", "x")])
def test_a_join_that_fails_is_tried_in_another_incarnation(mode, error):
    made, _ = mode(Start("join", 0, {1: "b"}, 1), lambda exchange: setattr(exchange, "error", error))
    with pytest.raises(LeaseExpiredError, match="x"):
        made.begin([], {}, None)


def test_a_failure_of_the_heartbeat_is_raised_and_ends_every_wait(mode):
    failed, told = BusError("the heart"), []
    made, _ = mode(Start("together", 0, {1: "b"}), lambda exchange: setattr(exchange.gate, "fail", told.append))
    made._rendezvous.claim = lambda checkpoints: made._rendezvous.fail(failed)
    with pytest.raises(BusError, match="the heart"):
        made.begin([], {}, None)
    made._rendezvous.fail(StalledError("later"))
    assert [str(error) for error in told] == ["later"]


def test_after_a_step_others_are_served_and_the_lease_has_the_step(mode):
    made, pair = mode(Start("together", 0, {1: "b"}))
    made.begin([], {}, None)
    losses = made.step(5, lambda: REAL, is_sync_point=False)
    assert set(losses) == {"g_loss", "d_loss"}
    exchanged, (name, make_state) = made._exchange.calls[-2:]
    assert exchanged == ("exchange", False) and name == "serve"
    vectors, counters = make_state()
    assert vectors.keys() == vectors_of(pair).keys() and counters == counters_of(pair) and counters["applied"] == 1
    assert made._rendezvous.calls[-1] == ("progress", 5)
    made.step(6, lambda: REAL, is_sync_point=True)
    assert made._exchange.calls[-2] == ("exchange", True)


def test_the_step_to_stop_after_is_a_sync_point(mode):
    made, _ = mode(Start("together", 0, {1: "b"}))
    made.begin([], {}, None)
    made._exchange.gate.stop_at = 7
    for step, is_sync_point in ((6, False), (7, True), (8, True)):
        made.step(step, lambda: REAL, is_sync_point=False)
        assert made._exchange.calls[-2] == ("exchange", is_sync_point)
        assert made.is_stopping(step) == is_sync_point
    made._exchange.gate.stop_at = None
    assert not made.is_stopping(9)


@pytest.mark.parametrize(("worker", "is_first"), [(0, True), (3, False)])
def test_the_lowest_of_those_that_are_there_is_the_first(mode, worker, is_first):
    made, pair = mode(Start("together", 0, {2: "b"}), worker=worker)
    made.begin([], {}, None)
    assert made.is_first() == is_first
    for is_together in (True, False):
        made.leave(is_together)
        assert made._exchange.calls[-1] == ("leave", is_together) and made._rendezvous.calls[-1] == ("leaving",)
    loaded = []
    pair.statistics, pair.load_statistics = lambda: np.float32([1, 2]), loaded.append
    assert made.synchronise(3)
    np.testing.assert_array_equal(loaded, [[2, 3]])
    made.close()
    assert made._exchange.calls[-1] == ("close",) and made._rendezvous.calls[-1] == ("close",)


@pytest.mark.parametrize("ends", [False, True])
def test_weights_that_the_exchange_gives_are_loaded_and_then_averaged(mode, ends):
    """The weights may be in another array than the pair's."""
    made, pair = mode(Start("together", 0, {1: "b"}), exchange="parameters")
    made.begin([], {}, None)
    made._exchange.gives = lambda values: np.full(values.size, 0.25, np.float32)
    made.finish() if ends else made.step(1, lambda: REAL, is_sync_point=False)
    np.testing.assert_array_equal(pair.parameters((0, pair.size)), np.full(pair.size, 0.25, np.float32))
    first = pair.ema.values.detach().numpy()
    before = GanPair(made._settings, SHAPE, 0, torch.device("cpu")).ema.values.detach().numpy()
    # In the first step the average takes 9 / 11 of the new weights.
    close(first, before if ends else before * 2 / 11 + 0.25 * 9 / 11)
    assert made._rendezvous.calls[-1][0] == ("leaving" if ends else "progress")


def test_alternating_updates_are_two_local_steps_and_one_exchange_of_all_weights(mode):
    made, pair = mode(Start("together", 0, {1: "b"}), updates="alternating")
    made.begin([], {}, None)
    border, steps, apply = pair.generator.size, [], pair.apply

    def noting(section, gradient):
        steps.append((section, pair.parameters((0, pair.size)).copy()))
        apply(section, gradient)

    pair.apply = noting
    assert set(made.step(1, lambda: REAL, is_sync_point=False)) == {"g_loss", "d_loss"}
    assert [section for section, _ in steps] == [(border, pair.size), (0, border)]
    first, second = (weights for _, weights in steps)
    assert (first[:border] == second[:border]).all() and (first[border:] != second[border:]).any()
    assert [call for call in made._exchange.calls if call[0] == "exchange"] == [("exchange", False)]
    np.testing.assert_array_equal(made._exchange.sent[border:], second[border:])
    assert (made._exchange.sent[:border] != second[:border]).any()
    assert counters_of(pair)["applied"] == 1


@pytest.mark.parametrize("exchange", ["gradients", "parameters"])
def test_at_the_end_weights_are_flushed_or_zeros(mode, exchange):
    made, pair = mode(Start("together", 0, {1: "b"}), exchange=exchange)
    made.begin([], {}, None)
    weights = pair.parameters((0, pair.size)).copy()
    made.finish()
    np.testing.assert_array_equal(made._exchange.sent, weights if exchange == "parameters" else np.zeros(pair.size))
    assert made._rendezvous.calls[-1] == ("leaving",)


def test_without_anything_left_no_gradient_is_applied(mode):
    made, pair = mode(Start("together", 0, {1: "b"}), exchange="gradients")
    made.begin([], {}, None)
    before = pair.parameters((0, pair.size)).copy()
    made._exchange.gives = lambda values: None
    made.finish()
    np.testing.assert_array_equal(pair.parameters((0, pair.size)), before)
    assert counters_of(pair)["applied"] == 0 and made._guard.counts == {}


@pytest.mark.parametrize("ends", [False, True])
def test_a_gradient_that_is_no_number_when_it_comes_is_not_applied(mode, ends):
    made, pair = mode(Start("together", 0, {1: "b"}), exchange="gradients")
    made.begin([], {}, None)
    before = pair.parameters((0, pair.size)).copy()
    made._exchange.gives = lambda values: np.full(values.size, np.nan, np.float32)
    made._exchange.stats = lambda: {"dropped": {"late": 2}}
    made.finish() if ends else made.step(1, lambda: REAL, is_sync_point=False)
    np.testing.assert_array_equal(pair.parameters((0, pair.size)), before)
    assert counters_of(pair)["applied"] == 0
    assert made.stats()["dropped"] == {"late": 2, "not_finite": 1}


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
def test_an_attacker_sends_the_attack_in_place_of_its_step_and_does_not_run_away(mode, updates):
    made, pair = mode(Start("together", 0, {1: "b"}), exchange="parameters", updates=updates)
    made.begin([], {}, None)
    made._attack = lambda change: -3 * change
    before = pair.parameters((0, pair.size)).copy()
    given = {}

    def gives(values):
        given["weights"] = np.where(np.arange(values.size) % 2, np.float32(2e6), np.float32(7))
        return given["weights"].copy()

    made._exchange.gives = gives
    made.step(1, lambda: REAL, is_sync_point=False)
    after = pair.parameters((0, pair.size))
    # Adam's first step moves every weight with a gradient by its rate.
    rates = np.where(np.arange(pair.size) < pair.generator.size, *RATES)
    honest = before - (made._exchange.sent - before) / 3
    moved = np.abs(honest - before)
    assert (np.isclose(moved, rates, rtol=1e-2) | (moved < rates)).all() and np.isclose(moved, rates, rtol=1e-2).any()
    close(after[::2], np.full(after[::2].size, 7))
    close(after[1::2], honest[1::2])
