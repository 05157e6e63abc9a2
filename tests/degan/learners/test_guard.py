"""The guard: values that are not finite are neither applied nor sent (fault 14), and a diverged worker stops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import config
from degan.learners.gan_pair import GanPair
from degan.learners.guard import LARGEST, MOST_IN_A_ROW, NonFiniteGuard, is_usable
from degan.modes.connect import attack_on
from degan.modes.local import Local
from degan.modes.partial_exchange import PartialExchange
from peers.chaos.attacks import Attack
from peers.errors import SetupError
from tests.degan.learners.test_step import experiment as small
from tests.degan.learners.test_step import new_pair, reals, train
from tests.degan.modes.test_oracles import SHAPE, assert_equal, batches, experiment, final, train_fleet
from tests.fleets import memory_buses
from tests.learner_views import counters_of, network_of, vectors_of
from tests.multi_discriminators import Fleet
from tests.multi_discriminators import experiment as discriminators


def local(**optimiser):
    settings = config.build(
        {
            "name": "guard",
            "data": {"name": "mnist", "batch_size": 8},
            "model": {"name": "dcgan", "latent": 8, "width": 4},
            "mode": {"name": "local"},
            "optimiser": optimiser,
        }
    )
    return settings, GanPair(settings, SHAPE, 0, torch.device("cpu"))


def spoil(pair, steps, value=np.nan):
    """Spoil the pair's gradients and buffers with a value, in these of the next calls, counted from 1."""
    original, calls = pair.gradients, iter(range(1, 10**9))

    def gradients(section, real):
        gradient, losses = original(section, real)
        if next(calls) in steps:
            gradient[1] = value
            pair.generator.buffers.fill_(value)
        return gradient, losses

    pair.gradients = gradients


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.0, -1.0], True),
        ([1e18] * 400, True),
        ([1e15, np.inf], False),
        ([-np.inf, np.inf], False),
        ([np.nan], False),
        ([LARGEST * 2], False),
    ],
)
def test_a_usable_value_is_finite_and_so_is_its_square(values, found):
    assert is_usable(np.array(values, np.float32)) is found


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_step_whose_gradient_is_not_finite_leaves_everything_as_it_was(value):
    settings, pair = local()
    lines = []
    mode = Local(settings, 0, pair, lines.append)
    for step, real in enumerate(batches(0, 4), start=1):
        mode.step(step, lambda real=real: real, is_sync_point=False)
    before = {**vectors_of(pair), **{name: count for name, count in counters_of(pair).items() if "num_" not in name}}
    spoil(pair, {1}, value)
    mode.step(5, lambda: batches(1, 1)[0], is_sync_point=False)
    after = {**vectors_of(pair), **{name: count for name, count in counters_of(pair).items() if "num_" not in name}}
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    assert mode.stats()["dropped"] == {"own_not_finite": 1}
    assert len(lines) == 1 and "the step is skipped" in lines[0]
    mode.step(6, lambda: batches(1, 1)[0], is_sync_point=False)
    assert any((before[name] != vectors_of(pair)[name]).any() for name in vectors_of(pair))


def test_a_training_that_has_diverged_stops_with_a_line():
    settings, pair = local()
    lines = []
    guard, broken = NonFiniteGuard(pair, lines.append), np.full(3, np.nan, np.float32)
    for _ in range(MOST_IN_A_ROW):
        assert not guard.allows(broken)
    # A good gradient in between begins the count anew; every hundredth is logged.
    assert guard.allows(np.zeros(3, np.float32))
    for _ in range(MOST_IN_A_ROW):
        assert not guard.allows(broken)
    assert len(lines) == 3
    with pytest.raises(config.UsageError, match="the training has diverged"):
        guard.allows(broken)


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_weights_stay_finite_at_any_rate(algorithm):
    settings, pair = local(algorithm=algorithm, generator_lr=1e6, discriminator_lr=1e6)
    mode = Local(settings, 0, pair)
    for step, real in enumerate(batches(0, 30), start=1):
        mode.step(step, lambda real=real: real, is_sync_point=False)
    assert all(np.isfinite(array).all() for array in final(pair).values())


@pytest.mark.parametrize(
    "block",
    [
        {"exchange": "gradients", "parts": 1, "slack": 0, "codec": "raw"},
        {"exchange": "gradients", "parts": 2, "slack": 1, "codec": "int8", "own": "delayed"},
        {"exchange": "parameters", "parts": 2, "slack": 1, "codec": "float16"},
        {"exchange": "parameters", "parts": 1, "slack": 0, "codec": "raw", "updates": "alternating"},
    ],
)
def test_nothing_that_is_not_finite_leaves_a_worker(monkeypatch, block):
    settings, made = experiment(3, **block), []
    original = GanPair.__init__

    def init(pair, settings, shape, worker, device):
        original(pair, settings, shape, worker, device)
        if worker == 1:
            spoil(pair, {2, 3, 5})

    monkeypatch.setattr(GanPair, "__init__", init)
    close = PartialExchange.close

    def note(mode):
        made.append((mode._bus.worker, mode.stats()))
        close(mode)

    monkeypatch.setattr(PartialExchange, "close", note)
    for pair in train_fleet(settings, memory_buses(3), 6):
        assert all(np.isfinite(array).all() for array in final(pair).values())
    dropped = {worker: stats["dropped"] for worker, stats in made}
    assert dropped == {0: {}, 1: {"own_not_finite": 3}, 2: {}}
    assert all(stats["offences"] == {} for _, stats in made)


def test_a_peer_that_sends_no_numbers_is_left_out(monkeypatch):
    monkeypatch.setenv("DEGAN_FAULTS", "w2:attack:nan")
    settings = experiment(3, exchange="parameters", parts=2, slack=1, codec="float16", reduce="median")
    pairs = train_fleet(settings, memory_buses(3), 8)
    assert all(np.isfinite(array).all() for pair in pairs for array in final(pair).values())
    assert_equal(final(pairs[0]), final(pairs[1]), but=("running", "num_", "ema"))


def gated_fleet(monkeypatch, gate, attack=""):
    """Train three workers, worker 1 with an attack; returns their weights, and the counts of drops and offences."""
    block = {"name": "partial_exchange", "exchange": "parameters", "parts": 1, "slack": 1, "codec": "float16"}
    settings = small(peers=3, mode=block, bus={"norm_gate": gate})
    with monkeypatch.context() as patch:
        if attack:
            patch.setenv("DEGAN_FAULTS", f"w1:attack:{attack}")
        pairs, buses = [new_pair(settings, worker) for worker in range(3)], memory_buses(3)
        modes = [PartialExchange(settings, pairs[w], buses[w], {}, lambda line: None) for w in range(3)]
    train(modes, [reals(settings, worker) for worker in range(3)], 10)
    found = [(mode.stats()["dropped"], mode.stats()["offences"]) for mode in modes]
    return [pair.parameters((0, pair.size)).copy() for pair in pairs], found


def test_the_gate_changes_nothing_without_an_attacker_and_leaves_an_attacker_out(monkeypatch):
    free, gated = (gated_fleet(monkeypatch, gate) for gate in (0.0, 10.0))
    assert free[1] == gated[1] == [({}, {})] * 3
    for first, second in zip(free[0], gated[0], strict=True):
        np.testing.assert_array_equal(first, second)
    # The same two gates, and one worker with steps a hundred times as long.
    free, gated = (gated_fleet(monkeypatch, gate, "scale") for gate in (0.0, 10.0))
    assert free[1] == [({}, {})] * 3
    for dropped, offences in gated[1]:
        # Three rounds of three norms are known before the gate works.
        assert set(dropped) == {"gated"} and dropped["gated"] >= 4
        assert offences == {"1": dropped["gated"]}
    assert np.linalg.norm(gated[0][0] - free[0][0]) > 0


def test_a_byzantine_worker_logs_its_attack(monkeypatch):
    monkeypatch.setenv("DEGAN_FAULTS", "w1:attack:sign_flip")
    lines = []
    first, second = memory_buses(2)
    assert attack_on(first, lines.append) is None and not lines
    assert attack_on(second, lines.append).name == "sign_flip" and "byzantine" in lines[0]
    monkeypatch.setenv("DEGAN_FAULTS", "w1:attack:sign")
    with pytest.raises(SetupError, match="unknown attack 'sign'"):
        attack_on(second, lines.append)


# --- multi-discriminator ------------------------------------------------------------------------


def test_a_discriminator_whose_gradient_is_not_finite_stays_and_sends_what_can_be_used():
    def change(mode):
        if mode._me == 1:
            spoiled = mode._learner.discriminator_gradient

            def gradient(real, fake):
                found, loss = spoiled(real, fake)
                found[0] = np.nan
                return found, math.nan

            mode._learner.discriminator_gradient = gradient

    fleet = Fleet(discriminators(3), memory_buses(3), change=change)
    before = network_of(fleet.pairs[1], "discriminator")
    fleet.train(3)
    np.testing.assert_array_equal(network_of(fleet.pairs[1], "discriminator"), before)
    assert fleet.modes[1].stats()["dropped"] == {"own_not_finite": 3}
    assert fleet.modes[0].stats()["answered"] == 3
    assert np.isfinite(network_of(fleet.pairs[0], "generator")).all()


@pytest.mark.parametrize("attack", ["scale", "sign_flip"])
def test_a_robust_rule_bears_a_byzantine_feedback(attack):
    """With the rule the generator's step is nearer to the clean one than with the mean."""
    found = {}
    for name, byzantine, reduce in (("clean", False, "mean"), ("mean", True, "mean"), ("median", True, "median")):

        def change(mode, byzantine=byzantine):
            if byzantine and mode._me == 3:
                mode._attack = Attack(attack)

        sgd = {"algorithm": "sgd", "generator_lr": 0.1}
        fleet = Fleet(discriminators(4, optimiser=sgd, reduce=reduce), memory_buses(4), change=change)
        fleet.train(2)
        found[name] = network_of(fleet.pairs[0], "generator")
    away = {name: float(np.linalg.norm(found[name] - found["clean"])) for name in ("mean", "median")}
    assert away["median"] < 0.7 * away["mean"]
