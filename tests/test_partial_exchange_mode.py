"""A step of partial exchange, from gradients to weights: Adam, the exchange and the moving average by hand in numpy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import config
from degan.modes import partial_exchange
from degan.modes.partial_exchange import PartialExchange
from degan.pair import GanPair
from peers.errors import BusError, LapsedError, MessageError, StalledError
from peers.rendezvous import Start
from peers.types import Lease
from tests.fleets import in_threads, memory_buses

SHAPE, STEPS, WORKERS = (1, 8, 8), 5, 3
RATES, BETAS, DECAY, EPSILON = (1e-2, 3e-2), (0.5, 0.9), 0.4, 1e-8


def experiment(workers=WORKERS, **mode):
    return config.build(
        {
            "name": "mode",
            "peers": workers,
            "data": {"name": "mnist", "batch_size": 4},
            "model": {"name": "mlp", "latent": 4, "hidden": 8, "image_size": 8},
            "optimiser": {
                "generator_lr": RATES[0],
                "discriminator_lr": RATES[1],
                "betas": list(BETAS),
                "ema_decay": DECAY,
            },
            "mode": {"name": "partial_exchange", **mode},
            "bus": {"norm_gate": 0},
        }
    )


class Adam:
    """Of one worker, by hand: what a gradient adds to the weights."""

    def __init__(self, border, size):
        self.first, self.second, self.steps = np.zeros(size), np.zeros(size), 0
        self.rate = np.where(np.arange(size) < border, *RATES)

    def __call__(self, gradient):
        self.steps += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        mean = self.first / (1 - BETAS[0] ** self.steps)
        square = self.second / (1 - BETAS[1] ** self.steps)
        return -self.rate * mean / (np.sqrt(square) + EPSILON)


class Watched(GanPair):
    """A pair that remembers at which weights which gradient was taken; that of step `spoils` cannot be used."""

    def __init__(self, *args):
        super().__init__(*args)
        self.taken: list[tuple[np.ndarray, np.ndarray]] = []
        self.spoils = 0

    def gradients(self, section, real):
        at = self.parameters((0, self.size)).copy()
        gradient, found = super().gradients(section, real)
        if len(self.taken) + 1 == self.spoils:
            gradient[7] = np.nan
        self.taken.append((at, gradient.copy()))
        return gradient, found


def train(monkeypatch, settings, cut=4, spoils=0):
    """Train every worker for `STEPS` steps in a thread; returns pairs, and weights and averages after each step."""
    buses = memory_buses(WORKERS)
    for bus in buses:
        bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 600.0, lambda old: True)
    monkeypatch.setattr(partial_exchange, "Rendezvous", Together)
    pairs = [Watched(settings, SHAPE, worker, torch.device("cpu")) for worker in range(WORKERS)]
    pairs[-1].spoils = spoils
    modes = [
        PartialExchange(settings, pair, bus, {}, lambda line: None) for pair, bus in zip(pairs, buses, strict=True)
    ]

    def live(worker):
        mode, pair, found = modes[worker], pairs[worker], []
        assert mode.begin([], {}, None) == 0
        generator = torch.Generator().manual_seed(worker)
        for step in range(1, STEPS + 1):
            mode.step(step, lambda: torch.rand(4, *SHAPE, generator=generator) * 2 - 1, is_cut=step == cut)
            found.append((pair.parameters((0, pair.size)).copy(), pair.ema.values.detach().numpy().copy()))
        mode.finish()
        found.append((pair.parameters((0, pair.size)).copy(), pair.ema.values.detach().numpy().copy()))
        return found, mode.stats()["dropped"]

    try:
        return pairs, in_threads([lambda w=w: live(w) for w in range(WORKERS)])
    finally:
        for mode in modes:
            mode.close()


class Together:
    """A rendezvous at which all have met already."""

    def __init__(self, bus, *args):
        self.start = Start("together", 0, {peer: f"life-{peer}" for peer in range(WORKERS) if peer != bus.worker})

    def meet(self, checkpoints, followed):
        return self.start

    def __getattr__(self, name):
        return lambda *args: None


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


class Averages:
    """The moving averages of the generators, by hand: the decay is warmed up."""

    def __init__(self, weights):
        self.values, self.steps = weights.copy(), [0] * len(weights)

    def follow(self, worker, weights):
        self.steps[worker] += 1
        decay = min(DECAY, (1 + self.steps[worker]) / (10 + self.steps[worker]))
        self.values[worker] = decay * self.values[worker] + (1 - decay) * weights


def test_parameters_step_by_step(monkeypatch, spoils=3):
    """Two parts, one step of delay: our own Adam step, then part t of all is averaged in step t + 1."""
    settings = experiment(carry="parameters", parts=2, slack=1, codec="raw")
    pairs, results = train(monkeypatch, settings, spoils=spoils)
    border, size = pairs[0].generator.size, pairs[0].size
    weights = np.array([pair.taken[0][0] for pair in pairs], np.float64)
    np.testing.assert_array_equal(weights[0], weights[1])
    adams, averages = [Adam(border, size) for _ in pairs], Averages(weights[:, :border])
    halves = slice(0, size // 2), slice(size // 2, size)
    published, done = {}, 0
    for step in range(1, STEPS + 1):
        before = weights.copy()
        for worker, pair in enumerate(pairs):
            at, gradient = pair.taken[step - 1]
            close(at, weights[worker])
            # A step whose gradient cannot be used changes nothing.
            if np.isfinite(gradient).all():
                weights[worker] += adams[worker](gradient)
        change, part = weights - before, halves[(step - 1) % 2]
        published[step] = part, weights[:, part].copy()
        for at in range(done + 1, step + (step == 4)):
            there, said = published[at]
            since = change[:, there] if at < step else 0
            weights[:, there] = said.mean(axis=0) + since
            done = at
        for worker, pair in enumerate(pairs):
            if np.isfinite(pair.taken[step - 1][1]).all():
                averages.follow(worker, weights[worker, :border])
            close(results[worker][0][step - 1][0], weights[worker])
            close(results[worker][0][step - 1][1], averages.values[worker])
    part, said = published[STEPS]
    # At the end all have the mean; nothing but the weights is loaded then.
    for worker, (found, dropped) in enumerate(results):
        close(found[-1][0], weights.mean(axis=0))
        close(found[-1][1], averages.values[worker])
        assert dropped == ({"own_not_finite": 1} if spoils and worker == WORKERS - 1 else {})


@pytest.mark.parametrize(("own", "slack", "spoils"), [("fresh", 0, 3), ("published", 0, 3), ("published", 1, 1)])
def test_gradients_step_by_step(monkeypatch, own, slack, spoils):
    """Two parts: Adam steps on what the exchange gives, the mean of all; and after the last step on what is left.

    Where nothing has come yet, as in the first steps of `published`, nobody steps: neither who could use its own
    gradient nor who could not, so that all stay alike.
    """
    settings = experiment(carry="gradients", own=own, parts=2, slack=slack, codec="raw", reduce="mean")
    pairs, results = train(monkeypatch, settings, spoils=spoils)
    border, size = pairs[0].generator.size, pairs[0].size
    weights = np.array([pair.taken[0][0] for pair in pairs], np.float64)
    adams, averages = [Adam(border, size) for _ in pairs], Averages(weights[:, :border])
    halves, gathered = (slice(0, size // 2), slice(size // 2, size)), np.zeros((WORKERS, size))
    lumps, done = {}, 0

    def apply(step, combined):
        for worker in range(WORKERS):
            if combined[worker].any():
                weights[worker] += adams[worker](combined[worker])
                averages.follow(worker, weights[worker, :border])
            close(results[worker][0][step - 1][0], weights[worker])
            close(results[worker][0][step - 1][1], averages.values[worker])

    def take(through):
        nonlocal done
        total = np.zeros((WORKERS, size))
        for at in range(done + 1, through + 1):
            part, said = lumps[at]
            for worker in range(WORKERS):
                others = [w for w in range(WORKERS) if w != worker or own == "published"]
                total[worker, part] += said[others].sum(axis=0)
        done = max(done, through)
        return total

    for step in range(1, STEPS + 1):
        gradients = np.zeros((WORKERS, size))
        for worker, pair in enumerate(pairs):
            at, gradient = pair.taken[step - 1]
            close(at, weights[worker])
            # What cannot be used is sent as nothing; what the others sent is applied.
            if np.isfinite(gradient).all():
                gradients[worker] = gradient
        gathered += gradients
        part = halves[(step - 1) % 2]
        lumps[step] = part, gathered[:, part].copy()
        gathered[:, part] = 0
        total = take(step if step == 4 else step - slack)
        apply(step, (total + (gradients if own == "fresh" else 0)) / WORKERS)
    part = halves[STEPS % 2]
    lumps[STEPS + 1] = part, gathered[:, part]
    apply(STEPS + 1, take(STEPS + 1) / WORKERS)
    for worker, (_, dropped) in enumerate(results):
        assert dropped == ({"own_not_finite": 1} if spoils and worker == WORKERS - 1 else {})


# --- beginning, stopping and ending, with stand-ins ---------------------------------------------


class Meeting:
    """A rendezvous that finds what a test says."""

    start: Start

    def __init__(self, bus, agreed, lease_s, timeout_s, say, fail):
        self.calls, self.fail = [], fail

    def meet(self, checkpoints, followed):
        self.calls.append(("meet", checkpoints, followed))
        return self.start

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


class Exchanged:
    """An exchange that says how it was called, and answers as a test wants."""

    def __init__(self, bus, layout, initial, rules, say):
        self.calls, self.initial, self.rules, self.layout = [], initial.copy(), rules, layout
        self.gate = SimpleNamespace(stop_at=None, is_astray=False, members=lambda: (2, 5))
        self.error, self.at = None, 0

    def start(self, start, round, sizes=None, load=None):
        self.calls.append(("start", round, sizes))
        if self.error:
            raise self.error
        return self.at or round

    def load_state(self, arrays, values):
        self.calls.append(("load_state", arrays, values))

    def exchange(self, values, is_cut):
        self.calls.append(("exchange", is_cut()))
        return values

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
    """Makes a mode over stand-ins; `prepare` is called with the exchange before it starts."""

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


REAL = torch.zeros(4, *SHAPE)


@pytest.mark.parametrize(("updates", "rounds"), [("simultaneous", 1), ("alternating", 2)])
def test_what_is_saved_is_loaded_and_the_exchange_begins_after_the_rounds_of_its_step(mode, updates, rounds):
    made, _ = mode(Start("replay", 8, {1: "b"}), updates=updates)
    saved = {"followed": {"1": ["a", [3, 4][:rounds], [11, 9][:rounds]], "4": ["c", [1, 2][:rounds], [6, 7][:rounds]]}}
    loaded = []
    assert made.begin([4, 8], saved, lambda step: loaded.append(step) or ({"x": 1}, {"y": 2})) == 8
    meeting, exchange = made._rendezvous, made._exchange
    followed = {1: ("a", 9 if rounds == 2 else 11), 4: ("c", 6)}
    assert meeting.calls == [("claim", [4, 8]), ("meet", [4, 8], followed)]
    assert loaded == [8]
    assert exchange.calls == [("load_state", {"x": 1}, {"y": 2}), ("start", 8 * rounds, None)]


def test_a_fresh_start_loads_nothing(mode):
    made, pair = mode(Start("together", 0, {1: "b"}))
    assert made.begin([], {}, None) == 0
    assert made._exchange.calls == [("start", 0, None)]
    np.testing.assert_array_equal(made._exchange.initial, pair.parameters((0, pair.size)))


def test_who_joins_stands_at_the_step_of_its_helper(mode):
    made, pair = mode(
        Start("join", 0, {1: "b"}, 1), lambda exchange: setattr(exchange, "at", 14), updates="alternating"
    )
    assert made.begin([4], {}, None) == 7
    sizes = {name: vector.size for name, vector in pair.vectors().items()}
    assert made._exchange.calls == [("start", 0, sizes)]
    assert made._rendezvous.calls[-1] == ("joined", 7)


@pytest.mark.parametrize("error", [StalledError("x"), BusError("x"), MessageError("malformed", "x")])
def test_a_join_that_fails_is_tried_in_another_life(mode, error):
    made, _ = mode(Start("join", 0, {1: "b"}, 1), lambda exchange: setattr(exchange, "error", error))
    with pytest.raises(LapsedError, match="x"):
        made.begin([], {}, None)


def test_a_failure_of_the_heartbeat_is_raised_and_ends_every_wait(mode):
    failed, told = BusError("the heart"), []
    made, _ = mode(Start("together", 0, {1: "b"}), lambda exchange: setattr(exchange.gate, "fail", told.append))
    made._rendezvous.claim = lambda checkpoints: made._rendezvous.fail(failed)
    with pytest.raises(BusError, match="the heart"):
        made.begin([], {}, None)
    made._rendezvous.fail(StalledError("later"))
    assert [str(error) for error in told] == ["later"]


def test_after_a_step_others_are_served_and_the_lease_says_where_we_are(mode):
    made, pair = mode(Start("together", 0, {1: "b"}))
    made.begin([], {}, None)
    made._exchange.gate.is_astray = True
    losses = made.step(5, lambda: REAL, is_cut=False)
    assert set(losses) == {"g_loss", "d_loss"}
    exchanged, (name, make_state) = made._exchange.calls[-2:]
    assert exchanged == ("exchange", False) and name == "serve"
    vectors, counters = make_state()
    assert vectors.keys() == pair.vectors().keys() and counters == pair.counters() and counters["applied"] == 1
    assert made._rendezvous.calls[-1] == ("progress", 5, True)
    made.step(6, lambda: REAL, is_cut=True)
    assert made._exchange.calls[-2] == ("exchange", True)


def test_the_step_to_stop_after_is_a_cut(mode):
    made, _ = mode(Start("together", 0, {1: "b"}))
    made.begin([], {}, None)
    made._exchange.gate.stop_at = 7
    for step, is_cut in ((6, False), (7, True), (8, True)):
        made.step(step, lambda: REAL, is_cut=False)
        assert made._exchange.calls[-2] == ("exchange", is_cut)
        assert made.is_stopping(step) == is_cut
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
    before = pair.statistics()
    assert made.settle(3)
    np.testing.assert_array_equal(pair.statistics(), before + 1)
    made.close()
    assert made._exchange.calls[-1] == ("close",) and made._rendezvous.calls[-1] == ("close",)
