"""Exchange of gradients against the whole rule, written by hand in numpy: the gradient of each worker in each round."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fleets import integers, make_layout
from tests.lockstep import QUANTISE, Lockstep, close, rules

SIZE = 10
# The bounds of the parts of ten values, by hand.
CUTS = {1: [(0, 10)], 3: [(0, 3), (3, 6), (6, 10)], 4: [(0, 2), (2, 5), (5, 7), (7, 10)]}


class ByHand:
    """The rule of Ako and DEGAN for a few workers that step one at a time and read all delayed_hand rounds at once.

    Args:
        parts: the number of parts.
        slack: the bound in rounds; None for no bound.
        is_mean: divide by the number of sharers; otherwise sum.
        quantise: the result of a lossy codec for a vector.
    """

    def __init__(self, workers, parts, slack, is_mean, quantise=lambda values: values):
        self.cuts, self.slack, self.is_mean, self.quantise = CUTS[parts], slack, is_mean, quantise
        self.round = dict.fromkeys(range(workers), 0)
        self.gathered = {worker: np.zeros(SIZE) for worker in self.round}
        # The delayed_hand lumps: worker, round, and the lump at its place in the vector.
        self.said: list[tuple[int, int, np.ndarray]] = []
        self.read = {worker: set() for worker in self.round}

    def leave(self, worker, gradient):
        """Gather a gradient, and publish one part of the gathered sum."""
        self.round[worker] += 1
        start, stop = self.cuts[(self.round[worker] - 1) % len(self.cuts)]
        self.gathered[worker] += gradient
        lump = np.zeros(SIZE)
        lump[start:stop] = self.quantise(self.gathered[worker][start:stop])
        # The dropped error stays, and leaves with the next lump of the part.
        self.gathered[worker][start:stop] -= lump[start:stop]
        self.said.append((worker, self.round[worker], lump))

    def unread(self, worker, through):
        """The sum of the others' lumps up to a round that this worker has not read."""
        total = np.zeros(SIZE)
        for index, (sender, round, lump) in enumerate(self.said):
            if sender != worker and index not in self.read[worker] and round <= through:
                self.read[worker].add(index)
                total += lump
        return total

    def step(self, worker, gradient, sharers):
        """Returns the gradient of the optimiser; `sharers` counts this worker too."""
        self.leave(worker, gradient)
        through = np.inf if self.slack is None else self.round[worker]
        total = gradient + self.unread(worker, through)
        return total / sharers if self.is_mean else total


# The worker of each step. With slack 1 no worker may lead another worker's delayed_hand round by two.
ONE_AHEAD = [0, 1, 2, 0, 2, 1, 1, 2, 0, 2, 0, 1, 1, 0, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1]
FAR_AHEAD = [0, 0, 0, 1, 2, 0, 1, 1, 1, 2, 2, 2, 0, 0, 1, 1, 2, 2, 2, 0, 0, 1, 1, 0, 2, 2, 1]
ANYHOW = [0, 0, 0, 0, 0, 0, 1, 0, 1, 2, 2, 2, 0, 1, 0, 0, 2, 1, 2, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(("parts", "reduce"), [(1, "mean"), (3, "sum"), (4, "mean")])
@pytest.mark.parametrize(("slack", "order"), [(1, ONE_AHEAD), (3, FAR_AHEAD), (None, ANYHOW)])
def test_each_round_is_the_own_gradient_and_the_received_lumps(monkeypatch, slack, order, parts, reduce):
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, parts), SIZE, rules(slack=slack, reduce=reduce))
    hand, rng = ByHand(3, parts, slack, reduce == "mean"), np.random.default_rng(0)
    for worker in order:
        gradient = integers(rng, SIZE)
        expected = hand.step(worker, gradient, 3)
        close(fleet.exchanges[worker].exchange(gradient), expected)
    if reduce == "mean" and order is ANYHOW:
        # The number of sharers of the last mean depends on the order of the goodbyes.
        return
    # All gathered values leave, once, and all unread lumps are read.
    left = fleet.finish()
    for worker in range(3):
        for _ in range(parts - 1):
            hand.leave(worker, np.zeros(SIZE))
    for worker in range(3):
        rest = hand.unread(worker, np.inf)
        close(left[worker], rest / 3 if reduce == "mean" else rest)
        assert not hand.gathered[worker].any()
    assert fleet.dropped() == [{}] * 3


def test_the_orders_above_end_where_all_are_alike():
    for order in (ONE_AHEAD, FAR_AHEAD):
        assert len({order.count(worker) for worker in range(3)}) == 1


@pytest.mark.parametrize("slack", [0, 1, 2, 5])
def test_nobody_is_waited_for_within_the_bound_and_everybody_beyond_it(monkeypatch, slack):
    """The number of rounds that one worker takes while the other publishes nothing."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=slack))
    first, waits = fleet.exchanges[0], []

    class Waits(Exception):
        pass

    def until(is_done, describe, timeout_s=None):
        if not is_done():
            waits.append(describe())
            raise Waits

    first.gate.until = until
    for round in range(1, slack + 1):
        first.exchange(np.ones(SIZE, np.float32))
        assert first.gate.clock(1) == 0 and not waits, round
    with pytest.raises(Waits):
        first.exchange(np.ones(SIZE, np.float32))
    assert waits == [f"worker 1 (its clock is 0, this is round {slack + 1})"]


@pytest.mark.parametrize("own", ["immediate", "delayed"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_dead_and_absent_workers_change_the_divisor_of_a_mean(monkeypatch, own, reduce):
    """The last of four workers never comes, and the third dies after round 2. Slack 0, one part."""
    four = rules(slack=0, reduce=reduce, own=own)
    fleet = Lockstep(monkeypatch, 4, make_layout(SIZE), SIZE, four, first=[0, 1, 2])
    gradients = np.random.default_rng(0).integers(-9, 10, (5, 4, SIZE)).astype(np.float32)

    def job(worker, exchange):
        found = []
        for step in range(5):
            if step == 2:
                if worker == 2:
                    return found
                exchange.gate.drop(2, "its lease has expired")
            found.append(exchange.exchange(gradients[step, worker].copy()))
        return found

    results = fleet.together(job, [0, 1, 2])
    for worker, found in enumerate(results):
        for step, values in enumerate(found):
            there = 3 if step < 2 else 2
            total = gradients[step, :there].sum(axis=0)
            close(values, total / there if reduce == "mean" else total)
        assert len(found) == (5 if worker < 2 else 2)


def test_a_finished_worker_shares_the_mean_of_its_own_rounds(monkeypatch):
    """Under slack 2 the others go on for two rounds after a goodbye, and its last rounds are still to be read."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE), SIZE, rules(slack=2))
    ones = np.ones(SIZE, np.float32)
    for worker in (0, 1, 2):
        fleet.exchanges[worker].exchange(ones * (worker + 1))
    fleet.deaf = {0}
    for worker in (1, 2):
        fleet.exchanges[worker].exchange(ones * (10 * worker + 10))
    fleet.exchanges[2].leave()
    fleet.deaf = set()
    fleet.deliver()
    # All three share round 2. The lumps delayed_hand after worker 0 had read come with it.
    close(fleet.exchanges[0].exchange(ones * 4), ones * (4 + 2 + 3 + 20 + 30) / 3)
    # Two workers are left in round 3. Worker 1 has read the first rounds, and not the second rounds of the two others.
    close(fleet.exchanges[0].exchange(ones * 100), ones * 100 / 2)
    close(fleet.exchanges[1].exchange(ones * 200), ones * (200 + 4 + 30 + 100) / 2)


# --- own: delayed -----------------------------------------------------------------------------


class Delayed:
    """The lumps of every round by worker: in round t all get the sum or mean of round t - slack."""

    def __init__(self, workers, parts, slack, is_mean, quantise=lambda values: values):
        self.hand = ByHand(workers, parts, slack, is_mean, quantise)
        self.slack, self.is_mean, self.applied, self.round = slack, is_mean, 0, 0

    def step(self, gradients, is_sync_point=False):
        """The gradient that all workers get; `gradients` is by worker."""
        self.round += 1
        for worker, gradient in gradients.items():
            self.hand.leave(worker, gradient)
        return self.through(self.round if is_sync_point else self.round - self.slack)

    def through(self, last):
        total = np.zeros(SIZE)
        for round in range(self.applied + 1, last + 1):
            lumps = [lump for _, at, lump in self.hand.said if at == round]
            total += sum(lumps) / (len(lumps) if self.is_mean else 1)
        self.applied = max(self.applied, last)
        return total


@pytest.mark.parametrize(("parts", "reduce"), [(1, "mean"), (3, "mean"), (4, "sum")])
@pytest.mark.parametrize("slack", [0, 1, 3])
def test_with_own_delayed_everyone_gets_the_rounds_of_slack_rounds_ago(monkeypatch, slack, parts, reduce):
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, parts), SIZE, rules(slack=slack, reduce=reduce, own="delayed"))
    gradients = integers(np.random.default_rng(0), 9 * 3 * SIZE).reshape(9, 3, SIZE)
    hand, cut = Delayed(3, parts, slack, reduce == "mean"), 6
    expected = [hand.step(dict(enumerate(some)), step == cut) for step, some in enumerate(gradients, start=1)]

    def job(worker, exchange):
        return [exchange.exchange(g[worker].copy(), lambda s=s: s == cut) for s, g in enumerate(gradients, start=1)]

    for found in fleet.together(job):
        close(found, expected)
    for _ in range(parts - 1):
        for worker in range(3):
            hand.hand.leave(worker, np.zeros(SIZE))
    rest = hand.through(9 + parts - 1)
    for left in fleet.finish():
        close(left, rest)
    assert fleet.dropped() == [{}] * 3


@pytest.mark.parametrize(("own", "parts"), [("immediate", 3), ("delayed", 1)])
@pytest.mark.parametrize("codec", [name for name in QUANTISE if name != "raw"])
def test_a_dropped_error_leaves_with_the_next_lump_of_its_part(monkeypatch, codec, parts, own):
    """The others get the decoded values. The own gradient enters in full, or as the others read it."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, parts, codec), SIZE, rules(slack=1, own=own))
    gradients = np.random.default_rng(0).standard_normal((9, 3, SIZE)).astype(np.float32)
    immediate_hand, delayed_hand = (kind(3, parts, 1, True, QUANTISE[codec]) for kind in (ByHand, Delayed))
    for some in gradients:
        # The workers step one after the other: the first has the others' lumps of the round before.
        if own == "delayed":
            expected = [delayed_hand.step(dict(enumerate(some)))] * 3
        else:
            expected = [immediate_hand.step(worker, some[worker], 3) for worker in range(3)]
        found = [fleet.exchanges[worker].exchange(some[worker].copy()) for worker in range(3)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        if own == "delayed":
            np.testing.assert_array_equal(found, found[:1] * 3, "alike to the last bit")
    kept = (delayed_hand.hand if own == "delayed" else immediate_hand).gathered
    for worker in range(3):
        arrays, _ = fleet.exchanges[worker].state()
        np.testing.assert_allclose(arrays["kept"] + arrays["window"], kept[worker], rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2] * 6, ONE_AHEAD])
def test_with_own_delayed_nobody_gets_more_because_the_others_are_ahead(monkeypatch, order):
    """The workers step one at a time: an early lump waits for its round."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, 3), SIZE, rules(slack=1, own="delayed"))
    count = order.count(0)
    gradients = integers(np.random.default_rng(0), count * 3 * SIZE).reshape(count, 3, SIZE)
    hand = Delayed(3, 3, 1, True)
    expected = [hand.step(dict(enumerate(some))) for some in gradients]
    at = [0, 0, 0]
    for worker in order:
        found = fleet.exchanges[worker].exchange(gradients[at[worker], worker].copy())
        close(found, expected[at[worker]])
        at[worker] += 1


def test_with_own_delayed_a_robust_rule_takes_the_place_of_the_mean(monkeypatch):
    """The delay is one round, in two parts; one of three workers is byzantine."""
    delayed = rules(slack=1, own="delayed", reduce="median")
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, 2), SIZE, delayed)
    gradients = integers(np.random.default_rng(0), 6 * 3 * SIZE).reshape(6, 3, SIZE)
    gradients[:, 2] *= 1000
    gathered, expected, before = np.zeros((3, SIZE)), [], np.zeros(SIZE)
    for step, some in enumerate(gradients):
        gathered += some
        part = slice(0, 5) if step % 2 == 0 else slice(5, 10)
        expected.append(before)
        before = np.zeros(SIZE)
        before[part] = np.median(gathered[:, part], axis=0)
        gathered[:, part] = 0

    def job(worker, exchange):
        return [exchange.exchange(some[worker].copy()) for some in gradients]

    for found in fleet.together(job):
        close(found, expected)
