"""MD-GAN by hand with a missing answer, leader or discriminator; and its robust rules."""

from __future__ import annotations

import copy
import itertools
import threading

import numpy as np
import pytest

from degan.modes.multi_discriminator import MultiDiscriminator, batches_of
from peers.chaos.attacks import Attack
from tests import multi_discriminators
from tests.fleets import close, in_threads, memory_buses
from tests.learner_views import counters_of, network_of, unlabelled
from tests.multi_discriminators import BATCH, ByHand, Fleet, assert_like, assert_same, experiment, new_pair
from tests.plain_gans import PlainGan

FAST = {"generator_lr": 0.001, "discriminator_lr": 0.002, "betas": (0.6, 0.9), "ema_decay": 0.22}
SGD = {"algorithm": "sgd", "generator_lr": 0.5, "discriminator_lr": 0.2}
LONG_S = 60.0


def begin_of(settings):
    return PlainGan(settings, new_pair(settings, 0).sample_shape, 0)


def train(fleet, live):
    """Run every worker's `live(worker, mode, next_batch)` in a thread of its own."""
    try:
        return in_threads(
            [lambda w=w: live(w, fleet.modes[w], lambda: next(fleet.data[w])) for w in range(len(fleet.modes))]
        )
    finally:
        close(fleet.modes)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spoilt", "batches"), [(1, 1), (0, 2), (3, 2)])
def test_the_generator_follows_the_mean_over_those_that_answered(spoilt, batches):
    """Each worker answers to the fakes of its place among the asked workers."""
    settings = experiment(4, batches=batches, optimiser=SGD)
    fleet = Fleet(settings, memory_buses(4))
    fleet.modes[spoilt]._attack = Attack("nan")
    fleet.train(2)
    hand = ByHand(settings, 4)
    for _ in range(2):
        hand.round(range(4), [worker for worker in range(4) if worker != spoilt])
    for worker, pair in enumerate(fleet.pairs):
        assert_like(pair, hand.first, hand.gans[worker], begin_of(settings))
    assert fleet.modes[0].stats()["answered"] == 3


def trimmed_by_two(rows):
    """The mean of five without the two largest and two smallest: the median."""
    return rows.sort(0).values[2:-2].mean(0)


def clipped(rows):
    """The mean of three, none of which is longer than the one in the middle."""
    lengths = rows.flatten(1).norm(dim=1)
    factors = (lengths.sort().values[1] / lengths).clamp(max=1)
    return (factors.view(-1, 1, 1, 1, 1) * rows).mean(0)


@pytest.mark.parametrize(
    ("workers", "batches", "rule", "byzantine", "by_rule"),
    [
        (3, 1, "median", 1, lambda rows: rows.sort(0).values[1]),
        # Three workers answer to the first batch; two, whose mean is the only choice, to the second.
        (5, 2, "clipped_mean", 1, clipped),
        (5, 1, "trimmed_mean", 2, trimmed_by_two),
    ],
)
def test_a_robust_rule_stands_for_the_mean_over_the_feedbacks_to_one_batch(workers, batches, rule, byzantine, by_rule):
    settings = experiment(workers, batches=batches, optimiser=SGD, reduce=rule, byzantine=byzantine)
    fleet = Fleet(settings, memory_buses(workers))
    fleet.train(2)
    hand = ByHand(settings, workers)
    for _ in range(2):
        hand.round(range(workers), rule=by_rule)
    assert_like(fleet.pairs[0], hand.first, hand.first, begin_of(settings))


def test_a_step_that_is_no_number_leaves_the_discriminator_and_its_statistics_as_they_were():
    """In round 2 the reals of worker 1 are no numbers, in round 3 its feedback is none and counts as zeros."""
    settings = experiment(2, "dcgan", optimiser=SGD)

    def change(mode):
        if mode._me == 1:

            def feedback(fake, own=mode._learner.feedback):
                found, loss = own(fake)
                return found * np.float32("inf" if mode._step == 3 else 1), loss

            mode._learner.feedback = feedback

    def spoiled(batches):
        for at, real in enumerate(batches, start=1):
            yield unlabelled(real.samples * float("nan")) if at == 2 else real

    fleet = Fleet(settings, memory_buses(2), change=change)
    fleet.data[1] = spoiled(fleet.data[1])
    fleet.train(4)
    hand = ByHand(settings, 2)
    for step in range(1, 5):
        hand.round(range(2), skipping=1 if step == 2 else None, silent=1 if step == 3 else None)
    for worker, pair in enumerate(fleet.pairs):
        assert_like(pair, hand.first, hand.gans[worker], begin_of(settings), 3e-3)
    assert fleet.modes[0].stats()["answered"] == 2 and fleet.modes[1].stats()["dropped"] == {"own_not_finite": 2}


def test_a_gradient_of_the_generator_that_is_no_number_is_not_applied():
    settings = experiment(2)

    def change(mode):
        mode._learner.generator_gradient = lambda *words, own=mode._learner.generator_gradient: (
            own(*words) * np.float32("nan")
        )

    fleet = Fleet(settings, memory_buses(2), change=change)
    fleet.train(1)
    for pair in fleet.pairs:
        assert_same(pair, new_pair(settings, 0), ("generator", "ema"))
    stats = fleet.modes[0].stats()
    assert (stats["dropped"], stats["answered"], stats["void_rounds"]) == ({"not_finite": 1}, 2, 0)


# --- swaps ----------------------------------------------------------------------------------------


def test_discriminators_change_hands_every_so_many_epochs_of_the_mean_shard():
    """Shards have 40, 80 and 60 samples in batches of 8: an epoch is 7.5 rounds, and half of it 4."""
    rounds = []

    def change(mode):
        def send(peer, kind, round, *rest, own=mode._rounds.send):
            if kind == "swap":
                rounds.append((mode._me, round))
            own(peer, kind, round, *rest)

        mode._rounds.send = send

    fleet = Fleet(experiment(3, swap_every=0.5), memory_buses(3), samples=[40, 80, 60], change=change)
    fleet.train(9)
    assert sorted(rounds) == [(worker, step) for worker in range(3) for step in (4, 8)]
    assert [mode.stats()["swaps"] for mode in fleet.modes] == [2] * 3


# --- another leader, another incarnation ----------------------------------------------------------


def test_the_next_leader_goes_on_from_the_newest_state_of_the_generator():
    """G's later steps are lost, its moments and average are those of the state, and no discriminator is lost."""
    settings = experiment(3, state_every=2, batches=2, discriminator_steps=2, optimiser=FAST, leaders=3)
    fleet = Fleet(settings, memory_buses(3))

    def live(worker, mode, next_batch):
        mode.begin([], {}, None)
        for step in (1, 2, 3, 4, 5):
            mode.step(step, next_batch, step == 5)
            if worker == 0 and step == 3:
                return mode.leave(is_together=False)
            if worker == 2 and step == 4:
                assert mode.state()[1]["version"] == (2, 3, 1), "what the new leader begins with"
        assert mode.synchronise(5)
        mode.finish()
        assert mode.stats()["leader"] == 1 and mode.stats()["cohort"] == 2

    train(fleet, live)
    hand = ByHand(settings, 3)
    old, new = hand.gans[0], hand.gans[1]
    for step in (1, 2, 3):
        hand.round(range(3))
        if step == 2:
            new.g, new.average, new.averaged = copy.deepcopy(old.g), copy.deepcopy(old.average), old.averaged
            new.g_adam.weights, new.g_adam.steps = list(new.g.parameters()), old.g_adam.steps
            new.g_adam.first, new.g_adam.second = list(old.g_adam.first), list(old.g_adam.second)
    hand.first = new
    for _ in (4, 5):
        hand.round([1, 2])
    for worker in (1, 2):
        assert_like(fleet.pairs[worker], new, hand.gans[worker], begin_of(settings), 3e-3)
    assert_same(fleet.pairs[1], fleet.pairs[2], ("generator", "ema"))
    np.testing.assert_array_equal(network_of(fleet.pairs[1], "generator"), network_of(fleet.pairs[2], "generator"))
    assert counters_of(fleet.pairs[2], "generator")["generator"] == 4


def test_states_of_the_generator_are_kept_as_long_as_somebody_may_fetch_them():
    """The two newest states are kept, and that of the newest sync point, here after the second round."""
    fleet, seen = Fleet(experiment(2, state_every=1), memory_buses(2)), []

    def live(worker, mode, next_batch):
        mode.begin([], {}, None)
        for step in range(1, 6):
            mode.step(step, next_batch, False)
            if step == 2:
                assert mode.synchronise(step)
            if worker == 0:
                mode._rounds.drain()
                names = {name.partition(":")[0] for name in fleet.buses[0]._hub.states[0, "life-0"]}
                seen.append(sorted(name for name in names if name.startswith("g")))
                assert names - {"hello"} == {*seen[-1], *(f"o{name[1:]}" for name in seen[-1])}
        mode.finish()

    train(fleet, live)
    assert seen == [
        ["g1.1"],
        ["g1.1", "g1.2"],
        ["g1.2", "g1.3"],
        ["g1.2", "g1.3", "g1.4"],
        ["g1.2", "g1.4", "g1.5"],
    ]


@pytest.mark.parametrize("leader_trains", [True, False])
def test_a_joiner_begins_with_the_discriminator_of_one_that_trains(leader_trains):
    """The discriminator is that after the step before; the joiner has the newest state of the generator, too."""
    settings = experiment(3, state_every=1, leader_trains=leader_trains, optimiser=FAST)
    fleet, after, has_joined = Fleet(settings, memory_buses(3)), {}, threading.Event()

    def note(worker, step):
        after[worker, step] = network_of(fleet.pairs[worker], "discriminator")

    def live(worker, mode, next_batch):
        mode.begin([], {}, None)
        last = None
        for step in itertools.count(1):
            mode.step(step, next_batch, False)
            if worker == 2 and step == 2:
                mode._rounds.drain()
                mode.close()
                try:
                    return live_again()
                finally:
                    # The others stop whether or not the joiner failed.
                    has_joined.set()
            note(worker, step)
            if has_joined.is_set() and worker == 0 and last is None:
                mode.ask_to_stop(step)
                last = step
            if mode.is_stopping(step):
                break
        assert mode.synchronise(step)
        mode.leave(is_together=True)

    def live_again():
        bus = fleet.buses[2]._hub.bus(2, (0, 1), "another")
        pair = fleet.pairs[2] = new_pair(settings, 2)
        mode = MultiDiscriminator(settings, pair, bus, {}, {"samples": BATCH}, fleet.lines[2].append)
        fleet.modes.append(mode)
        step = mode.begin([], {}, None)
        given = [line for line in fleet.lines[2] if "begins with the discriminator" in line]
        giver = int(given[0].rsplit(" ", 1)[1])
        assert giver == 1 or leader_trains
        found = network_of(pair, "discriminator")
        assert any(np.array_equal(found, values) for (who, _), values in after.copy().items() if who == giver)
        assert counters_of(pair, "discriminator")["discriminator"] >= 1
        # The state is that of the announcement after which the joiner begins; after the first round there is none.
        assert mode.state()[1]["version"] == ((1, step - 1, 0) if step > 1 else None)
        has_joined.set()
        batches = multi_discriminators.reals(settings, 7)
        while not mode.is_stopping(step):
            step += 1
            mode.step(step, lambda: next(batches), False)
        assert mode.synchronise(step)
        mode.leave(is_together=True)

    train(fleet, live)
    for pair in fleet.pairs[1:]:
        assert_same(pair, fleet.pairs[0], ("generator", "ema"))


# --- agreed values --------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "expected"), [(1, 1), (2, 1), (7, 1), (8, 2), (20, 2), (21, 3)])
def test_batches_by_the_logarithm_are_its_floor_and_at_least_one(workers, expected):
    assert batches_of(experiment(workers, batches="log")) == expected
    assert workers < 8 or batches_of(experiment(workers, batches=5)) == 5
