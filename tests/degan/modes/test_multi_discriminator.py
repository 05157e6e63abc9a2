"""MD-GAN: its oracles, swaps, faulty answers and bytes; fleets in threads of one process."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest
import torch

from degan.federation.derangement import derangement
from degan.learners.gan_pair import GanPair
from tests.fleets import memory_buses, redis_buses
from tests.learner_views import counters_of, network_of
from tests.multi_discriminators import BATCH, Fleet, assert_like, assert_same, by_hand, experiment, new_pair
from tests.plain_gans import PlainGan
from tests.workers import wait_for

pytestmark = pytest.mark.timeout(120)

RUNS = itertools.count()
FAST = {"generator_lr": 0.001, "discriminator_lr": 0.002, "betas": (0.6, 0.9), "ema_decay": 0.22}
SGD = {"algorithm": "sgd", "generator_lr": 0.5, "discriminator_lr": 0.2}


@pytest.fixture(params=["memory", "redis"])
def buses(request):
    """A function that makes the buses of a fleet, in memory and over a real Redis."""

    def make(workers):
        if request.param == "memory":
            return memory_buses(workers)
        return redis_buses(workers, request.getfixturevalue("redis_url"), f"md{next(RUNS)}")

    return make


# --- oracles -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "steps_of_d", "loss"),
    [
        ("mlp", 1, "non_saturating"),
        ("dcgan", 2, "least_squares"),
        ("dcgan", 1, "hinge"),
        ("lsgan", 1, "wasserstein_gp"),
    ],
)
def test_one_worker_is_plain_alternating_gan_steps(buses, model, steps_of_d, loss):
    """The reference has autograd through D and G at once; running statistics and losses are compared too."""
    settings = experiment(1, model, loss=loss, optimiser=FAST, discriminator_steps=steps_of_d)
    fleet, start = Fleet(settings, buses(1)), PlainGan(settings, new_pair(settings, 0).sample_shape, 0)
    torch.manual_seed(5)  # The seed of lsgan's dropout.
    found = fleet.train(3)
    torch.manual_seed(5)
    (gan,), expected = by_hand(settings, 1, 3)
    for line, losses in zip(found[0], expected, strict=True):
        assert (line["d_loss"], line["g_loss"]) == pytest.approx(losses[0], rel=1e-4)
    assert_like(fleet.pairs[0], gan, gan, start)
    assert fleet.modes[0].stats()["sent_bytes"] > 0, "announced, should somebody come"


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6):
    """Compare two vectors, relative to their norm."""
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def gradient(pair: GanPair) -> np.ndarray:
    """The last gradient of G's optimiser."""
    return pair.generator.gradient.numpy()


@pytest.mark.parametrize(("model", "workers", "batches"), [("mlp", 3, 1), ("dcgan", 4, 2), ("mlp", 5, 3)])
def test_the_generator_follows_the_mean_of_the_discriminators_losses(buses, model, workers, batches):
    """Plain descent steps by the gradient itself; each worker's own losses and discriminator are compared too."""
    settings = experiment(workers, model, batches=batches, optimiser=SGD)
    fleet, start = Fleet(settings, buses(workers)), PlainGan(settings, new_pair(settings, 0).sample_shape, 0)
    found = fleet.train(1)
    gans, (losses,) = by_hand(settings, workers, 1)
    for worker, pair in enumerate(fleet.pairs):
        assert_like(pair, gans[0], gans[worker], start)
        assert (found[worker][0]["d_loss"], found[worker][0]["g_loss"]) == pytest.approx(losses[worker], rel=1e-4)
        assert_same(pair, fleet.pairs[0], ("generator", "ema"))


def test_equal_discriminators_are_one(buses):
    """Workers with the same data hold the same discriminator, and the mean of equal losses is any of them."""
    several = Fleet(experiment(3, "dcgan"), buses(3), seeds=[100] * 3)
    several.train(1)
    alone = Fleet(experiment(1, "dcgan"), memory_buses(1))
    alone.train(1)
    assert_close(gradient(several.pairs[0]), gradient(alone.pairs[0]))
    for pair in several.pairs:
        assert_same(pair, alone.pairs[0], ("discriminator",))


@pytest.mark.parametrize("workers", [2, 4])
def test_rounds_with_swaps_are_one_process(buses, workers):
    """There are six rounds with Adam; after every second one the discriminators change hands, with their moments."""
    settings = experiment(workers, batches=2, swap_every=2, optimiser=FAST)
    fleet, start = Fleet(settings, buses(workers)), PlainGan(settings, new_pair(settings, 0).sample_shape, 0)
    fleet.train(6)
    gans, _ = by_hand(settings, workers, 6, epoch=2)
    for worker, pair in enumerate(fleet.pairs):
        assert_like(pair, gans[0], gans[worker], start, 3e-3)
        assert counters_of(pair, "discriminator")["discriminator"] == 6
        assert fleet.modes[worker].stats()["swaps"] == 3


def test_all_hold_the_same_generator_at_a_sync_point(buses):
    """The leaders hold its moments as well."""
    fleet = Fleet(experiment(4, "dcgan", codec="int8", feedback_codec="float16", state_every=2), buses(4))
    fleet.train(5)
    for worker, pair in enumerate(fleet.pairs[1:], start=1):
        assert_same(pair, fleet.pairs[0], ("generator", "ema"))
        if worker < 3:
            np.testing.assert_array_equal(network_of(pair, "generator"), network_of(fleet.pairs[0], "generator"))
            assert counters_of(pair, "generator") == counters_of(fleet.pairs[0], "generator")
    assert len({network_of(pair, "discriminator").tobytes() for pair in fleet.pairs}) == 4, "each keeps its own D"


def test_a_leader_that_does_not_train_gives_the_mean_losses(buses):
    fleet = Fleet(experiment(3, leader_trains=False), buses(3))
    found = fleet.train(3)
    for step in range(3):
        for name in ("d_loss", "g_loss"):
            assert math.isclose(found[0][step][name], (found[1][step][name] + found[2][step][name]) / 2)
    np.testing.assert_array_equal(fleet.discriminators()[0], network_of(new_pair(experiment(1), 0), "discriminator"))
    assert [mode.stats()["cohort"] for mode in fleet.modes] == [2] * 3


# --- swaps --------------------------------------------------------------------


def spy_on_swaps(sent):
    """Note the discriminator that each worker sends, by worker."""

    def change(mode):
        original = mode._rounds.send

        def send(peer, kind, round, content, extras=None):
            if kind == "swap":
                sent[mode._me] = (peer, content.copy())
            original(peer, kind, round, content, extras)

        mode._rounds.send = send

    return change


@pytest.mark.parametrize("has_moments", [True, False])
def test_a_swap_moves_every_discriminator(buses, has_moments):
    workers, sent = 4, {}
    settings = experiment(workers, "dcgan", swap_every=3, swap_optimiser=has_moments)
    fleet = Fleet(settings, buses(workers), change=spy_on_swaps(sent))
    fleet.train(3)
    expected = derangement(settings.seed, 3, range(workers))
    assert {giver: taker for giver, (taker, _) in sent.items()} == expected
    for giver, taker in expected.items():
        held = network_of(fleet.pairs[taker], "discriminator", has_moments)
        np.testing.assert_array_equal(held, sent[giver][1])
        assert not np.array_equal(held, sent[taker][1]), "not the one that it had"
    whole = {network_of(pair, "discriminator").tobytes() for pair in fleet.pairs}
    assert len(whole) == workers
    assert [mode.stats()["swaps"] for mode in fleet.modes] == [1] * workers


@pytest.mark.parametrize("silent", [0, 1])
def test_a_worker_that_gets_none_keeps_its_own_and_the_run_goes_on(buses, silent):
    """Worker `silent` sends no discriminator: its taker misses a swap, and no round."""
    workers, kept = 3, {}
    settings = experiment(workers, swap_every=2, deadline={"floor_s": 3.0, "ceiling_s": 3.0})

    def change(mode):
        if mode._me == silent:
            original = mode._rounds.send
            mode._rounds.send = lambda peer, kind, *rest: None if kind == "swap" else original(peer, kind, *rest)
        original_missed = mode._swaps._give_up

        def give_up():
            kept[mode._me] = network_of(mode._learner, "discriminator")
            original_missed()

        mode._swaps._give_up = give_up

    fleet = Fleet(settings, buses(workers), change=change)
    found = fleet.train(3)
    taker = derangement(settings.seed, 2, range(workers))[silent]
    swaps = [(mode.stats()["swaps"], mode.stats()["swaps_missed"]) for mode in fleet.modes]
    assert swaps == [(0, 1) if worker == taker else (1, 0) for worker in range(workers)]
    assert all(found[worker][step] for worker in range(workers) for step in range(3)), "no round was missed"
    assert f"the discriminator of worker {silent} has not come; this worker keeps its own" in "".join(
        fleet.lines[taker]
    )


def test_a_discriminator_that_is_not_finite_is_not_taken(buses):
    settings = experiment(2, swap_every=1)

    def change(mode):
        if mode._me == 1:
            own = mode._learner.state
            mode._learner.state = lambda names: (
                {n: v * np.float32("nan") for n, v in own(names)[0].items()},
                own(names)[1],
            )

    fleet = Fleet(settings, buses(2), change=change)
    fleet.train(1, at_sync_point=False)
    assert [mode.stats()["swaps"] for mode in fleet.modes] == [0, 1]
    assert np.isfinite(network_of(fleet.pairs[0], "discriminator")).all()
    assert "cannot be used" in "".join(fleet.lines[0])


def test_without_a_value_swaps_come_once_an_epoch():
    for workers, samples, expected in ((3, 5 * BATCH, [5, 10]), (1, 5 * BATCH, []), (2, BATCH, list(range(1, 13)))):
        settings = experiment(workers, swap_every=None)
        fleet = Fleet(settings, memory_buses(workers), samples=samples)
        found = [step for step in range(1, 13) if fleet.modes[0]._is_swap(step, list(range(workers)))]
        for mode in fleet.modes:
            mode.close()
        assert found == expected


# --- faulty answers ----------------------------------------------------------------------------


def spoil(worker, at_step):
    """Worker `worker` answers round `at_step` with values that are no numbers, past its own guard."""

    def change(mode):
        if mode._me == worker:
            original = mode._learner.feedback

            def feedback(fake):
                gradient, loss = original(fake)
                return gradient, math.nan if mode._step == at_step else loss

            mode._learner.feedback = feedback
            mode._attack = lambda gradient: gradient * np.float32("nan" if mode._step == at_step else 1)

    return change


@pytest.mark.parametrize("worker", [0, 2])
def test_a_feedback_that_is_not_finite_is_left_out(buses, worker):
    fleet = Fleet(experiment(3), buses(3), change=spoil(worker, 2))
    fleet.train(3)
    assert np.isfinite(network_of(fleet.pairs[0], "generator")).all()
    assert fleet.modes[0].stats()["dropped"].get("not_finite") == 1
    assert fleet.modes[0].stats()["void_rounds"] == 0
    assert f"the feedback of worker {worker} is not finite" in "".join(fleet.lines[0])


def test_under_the_quorum_a_round_is_void(buses):
    """One of two answers is spoilt, and the quorum is both: G and its average stay as they were."""
    settings = experiment(2, quorum=1.0)
    fleet = Fleet(settings, buses(2), change=spoil(1, 1))
    fleet.train(1)
    assert_same(fleet.pairs[0], new_pair(settings, 0), ("generator", "ema"))
    assert fleet.modes[0].stats()["void_rounds"] == 1
    assert fleet.modes[0].stats()["answered"] == 1 and fleet.modes[0].stats()["cohort"] == 2


# --- bytes -------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_formula(buses):
    """With swaps, states and a sync point, headers are less than a fiftieth."""
    settings = experiment(3, "dcgan", batch=64, codec="float16", feedback_codec="float16", swap_every=2, state_every=3)
    fleet = Fleet(settings, buses(3), samples=64)
    fleet.train(4)
    for mode, bus in zip(fleet.modes, fleet.buses, strict=True):
        stats = mode.stats()
        for measured, way in ((bus.sent_bytes, "sent"), (bus.received_bytes, "received")):
            assert stats[f"predicted_{way}_bytes"] <= measured <= 1.02 * stats[f"predicted_{way}_bytes"], way


def test_the_bytes_of_a_round_are_those_of_the_specification(buses):
    """Without sync points, states and swaps: down k b d, up b d, of two bytes a value; the leader gets (n - 1) b d."""
    rounds, values = 3, 64 * 32 * 32
    settings = experiment(3, "dcgan", batch=64, batches=2, codec="float16", feedback_codec="float16")
    fleet = Fleet(settings, buses(3))
    fleet.train(rounds, at_sync_point=False)
    stats = [mode.stats() for mode in fleet.modes]
    for worker in (1, 2):
        assert stats[worker]["predicted_received_bytes"] == rounds * 2 * values * 2
        assert stats[worker]["predicted_sent_bytes"] == rounds * values * 2
    assert stats[0]["predicted_sent_bytes"] == rounds * 2 * values * 2
    assert stats[0]["predicted_received_bytes"] == rounds * 2 * values * 2
    for line, bus in zip(stats, fleet.buses, strict=True):
        assert line["predicted_sent_bytes"] <= bus.sent_bytes <= 1.02 * line["predicted_sent_bytes"]
        assert line["predicted_received_bytes"] <= bus.received_bytes <= 1.02 * line["predicted_received_bytes"]


@pytest.mark.parametrize("power", [0, -45, 40])
@pytest.mark.parametrize(("codec", "tolerance"), [("float16", 2**-10), ("bfloat16", 2**-7), ("int8", 0.02)])
def test_a_lossy_feedback_comes_close_wherever_its_values_lie(codec, tolerance, power):
    """The values may be far outside of float16's own range as well."""

    def change(mode):
        def feedback(fake, own=mode._learner.feedback):
            found, loss = own(fake)
            return np.ldexp(found, power), loss

        mode._learner.feedback = feedback

    fleets = [Fleet(experiment(2, feedback_codec=c), memory_buses(2), change=change) for c in ("raw", codec)]
    for fleet in fleets:
        fleet.train(1)
    # A gradient that is smaller by 2^45 does not move the weights, but the optimiser has it.
    exact, lossy = (np.ldexp(gradient(fleet.pairs[0]), -power) for fleet in fleets)
    assert not np.array_equal(exact, lossy)
    assert_close(lossy, exact, tolerance)


# --- slow workers ------------------------------------------------------------------------------


def test_a_worker_that_is_behind_goes_on_with_the_newest_round(buses):
    """Worker 2 answers round 2 only when round 4 has begun: it is too late, leaves round 3 out, and is back for 4."""
    settings = experiment(3, deadline={"floor_s": 2.0, "ceiling_s": 2.0})

    def change(mode):
        def feedback(fake, own=mode._learner.feedback):
            if mode._me == 2 and mode._step == 2:
                wait_for(lambda: mode._rounds.newest()[1].round >= 4, "the leader to go on")
            return own(fake)

        mode._learner.feedback = feedback

    fleet = Fleet(settings, buses(3), change=change)
    found = fleet.train(6)
    assert [step for step, line in enumerate(found[2], start=1) if line] == [1, 2, 4, 5, 6]
    assert fleet.modes[0].stats()["late"] >= 1 and fleet.modes[0].stats()["void_rounds"] == 0
    assert_same(fleet.pairs[2], fleet.pairs[0], ("generator", "ema"))


def test_a_slow_swap_is_taken_between_two_later_rounds(buses):
    """Worker 1's discriminator of round 2 leaves only when its taker has begun round 3 with its own."""
    settings = experiment(3, swap_every=2, deadline={"floor_s": 4.0, "ceiling_s": 4.0})
    taker = derangement(settings.seed, 2, range(3))[1]
    has_gone_on = threading.Event()

    def change(mode):
        def feedback(fake, own=mode._learner.feedback):
            if mode._me == taker and mode._step == 3:
                assert mode.stats()["swaps"] == 0
                has_gone_on.set()
            return own(fake)

        def send(peer, kind, *rest, own=mode._rounds.send):
            if mode._me == 1 and kind == "swap" and mode._step == 2:
                threading.Thread(target=lambda: has_gone_on.wait(30) and own(peer, kind, *rest)).start()
            else:
                own(peer, kind, *rest)

        mode._learner.feedback, mode._rounds.send = feedback, send

    fleet = Fleet(settings, buses(3), change=change)
    found = fleet.train(5)
    assert all(found[worker][step] for worker in range(3) for step in range(5)), "no round was missed"
    swaps = [(mode.stats()["swaps"], mode.stats()["swaps_missed"]) for mode in fleet.modes]
    assert swaps == [(2, 0)] * 3
