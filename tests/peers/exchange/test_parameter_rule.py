"""Exchange of parameters against the whole rule, written by hand in numpy: the weights of each worker in each round."""

from __future__ import annotations

import numpy as np
import pytest

from peers.types import Slice
from tests.fleets import make_layout
from tests.lockstep import QUANTISE, Lockstep, close, exact, int8, rules

SIZE, WORKERS = 10, 3
WHOLE = Slice(0, SIZE)
# The bounds of the parts of ten values, by hand.
CUTS = {1: [slice(0, 10)], 2: [slice(0, 5), slice(5, 10)], 3: [slice(0, 3), slice(3, 6), slice(6, 10)]}


class ByHand:
    """The rule, coordinate by coordinate, from the history of the published parts.

    At the publication of a part in round r a worker has x(r), all have the reference y(r), and the worker sends the
    quantised difference q(r). Once round r has been applied, a worker has x(r) + mean of all q(r) - its own q(r) + its
    own changes since, and the reference is y(r) + mean of all q(r). Later terms of earlier rounds are in neither.

    Args:
        parts, slack: those of the exchange.
        reduce: the reduction of the workers' q(r), from (workers, size) to (size,).
    """

    def __init__(self, initial, workers, parts, slack, quantise=exact, reduce=lambda terms: terms.mean(axis=0)):
        self.weights = np.tile(initial.astype(np.float64), (workers, 1))
        self.reference = initial.astype(np.float64)
        self.cuts, self.slack, self.quantise, self.reduce = CUTS[parts], slack, quantise, reduce
        self.round, self.done = 0, 0
        self.published, self.own_steps = {}, {}

    def step(self, changes, is_sync_point=False):
        """Every worker changes its weights itself, (workers, size); then the workers exchange a part."""
        self.round += 1
        self.weights += changes
        self.own_steps[self.round] = changes
        part = self.cuts[(self.round - 1) % len(self.cuts)]
        mine, agreed = self.weights[:, part].copy(), self.reference[part].copy()
        sent = np.array([self.quantise(one - agreed) for one in mine])
        self.published[self.round] = (part, mine, agreed, sent)
        self.apply_through(self.round if is_sync_point else self.round - self.slack)
        return self.weights

    def apply_through(self, last):
        for at in range(self.done + 1, last + 1):
            part, mine, agreed, sent = self.published[at]
            middle = self.reduce(sent)
            since = sum((self.own_steps[later][:, part] for later in range(at + 1, self.round + 1)), 0 * mine)
            self.weights[:, part] = mine + middle - sent + since
            self.reference[part] = agreed + middle
        self.done = max(self.done, last)


def train(monkeypatch, settings, layout, hand, steps=11, cut=7, workers=WORKERS):
    """Compare each worker's weights after each step with those by hand. Returns the fleet and the last weights."""
    initial = hand.reference.astype(np.float32)
    fleet = Lockstep(monkeypatch, workers, layout, SIZE, settings, initial)
    changes = np.random.default_rng(1).standard_normal((steps, workers, SIZE)).astype(np.float32)
    weights = np.tile(initial, (workers, 1))

    def job(worker, exchange):
        mine, found = weights[worker], []
        for step in range(1, steps + 1):
            mine += changes[step - 1, worker]
            assert exchange.exchange(mine, lambda step=step: step == cut) is mine
            found.append(mine.copy())
        return found

    for step, found in enumerate(zip(*fleet.together(job), strict=True), start=1):
        close(np.array(found), hand.step(changes[step - 1], step == cut))
    return fleet, weights


@pytest.mark.parametrize(
    ("codec", "slack", "parts"),
    [
        *(("raw", slack, parts) for slack in (0, 1, 3) for parts in (1, 2, 3)),
        *(("int8", slack, parts) for slack in (0, 1, 3) for parts in (1, 3)),
        *((codec, slack, 2) for codec in ("float16", "sign", "topk") for slack in (0, 3)),
    ],
)
def test_the_weights_are_the_last_average_and_the_own_changes_since(monkeypatch, codec, slack, parts):
    initial = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    hand = ByHand(initial, WORKERS, parts, slack, QUANTISE[codec])
    layout = make_layout(SIZE, parts, codec, may_be_whole=True)
    fleet, weights = train(monkeypatch, rules(slack=slack, exchange="parameters"), layout, hand)
    hand.apply_through(hand.round)
    # At the end the workers send all parts whole, and all have the mean, to the last bit.
    left = fleet.finish(lambda worker: weights[worker])
    for found in left:
        close(found, hand.weights.mean(axis=0))
        np.testing.assert_array_equal(found, left[0])
    assert fleet.dropped() == [{}] * WORKERS
    # The rules remember no applied rounds.
    for exchange in (exchange._rule for exchange in fleet.exchanges):
        assert not exchange._away and not exchange._shifts and not exchange._outgoing._published


def clipped(terms):
    """The mean of the vectors, each cut to the middle norm."""
    norms = np.linalg.norm(terms, axis=1)
    return (terms * np.minimum(1, np.median(norms) / np.maximum(norms, 1e-30))[:, None]).mean(axis=0)


RULES = {"median": lambda terms: np.median(terms, axis=0), "clipped_mean": clipped}


@pytest.mark.parametrize("reduce", RULES)
@pytest.mark.parametrize("slack", [0, 2])
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_a_robust_rule_takes_the_place_of_the_mean(monkeypatch, codec, slack, reduce):
    """The rule by hand takes the differences to the last agreed reference, for an exact codec too."""
    initial = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    if codec == "raw":
        hand = Whole(initial, WORKERS, 2, slack, reduce=RULES[reduce])
    else:
        hand = ByHand(initial, WORKERS, 2, slack, int8, RULES[reduce])
    layout = make_layout(SIZE, 2, codec, may_be_whole=True)
    train(monkeypatch, rules(slack=slack, exchange="parameters", reduce=reduce), layout, hand)


class Whole(ByHand):
    """The rule for weights that travel themselves: differences are taken to the reference when they are applied."""

    def apply_through(self, last):
        for at in range(self.done + 1, last + 1):
            part, mine, _, _ = self.published[at]
            middle = self.reference[part] + self.reduce(mine - self.reference[part])
            since = sum((self.own_steps[later][:, part] for later in range(at + 1, self.round + 1)), 0 * mine)
            self.weights[:, part] = middle + since
            self.reference[part] = middle
        self.done = max(self.done, last)


@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_the_average_is_of_those_that_published_the_round(monkeypatch, codec):
    """The third worker dies after round 4, under slack 1: its round 4 counts, and then it is gone."""
    layout = make_layout(SIZE, 1, codec, may_be_whole=True)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, rules(slack=1, exchange="parameters"))
    changes = np.random.default_rng(1).standard_normal((8, 3, SIZE)).astype(np.float32)
    three = ByHand(np.zeros(SIZE), 3, 1, 1, QUANTISE[codec])
    expected = [three.step(some).copy() for some in changes[:4]]
    two = ByHand(np.zeros(SIZE), 2, 1, 1, QUANTISE[codec])
    two.weights, two.reference, two.round, two.done = three.weights[:2].copy(), three.reference.copy(), 4, 4
    two.step(changes[4, :2])
    # Round 5 applies round 4, of all three workers.
    _, mine, agreed, sent = three.published[4]
    two.weights = (mine + sent.mean(axis=0) - sent)[:2] + changes[4, :2]
    two.reference = agreed + sent.mean(axis=0)
    expected.append(two.weights.copy())
    expected += [two.step(some[:2]).copy() for some in changes[5:]]

    def job(worker, exchange):
        mine, found = np.zeros(SIZE, np.float32), []
        for step, some in enumerate(changes):
            if step == 4:
                if worker == 2:
                    return found
                exchange.gate.until(lambda: exchange.gate.clock(2) == 4, lambda: "its last words")
                exchange.gate.drop(2, "its lease has expired")
            mine += some[worker]
            exchange.exchange(mine)
            found.append(mine.copy())
        return found

    for worker, found in enumerate(fleet.together(job)):
        assert len(found) == (8 if worker < 2 else 4)
        for step, values in enumerate(found):
            close(values, expected[step][worker])


# The worker of each step; it reads all published rounds at once.
ORDER = [0, 1, 2, 0, 0, 0, 1, 1, 2, 2, 2, 0, 1, 2, 2, 1, 1, 0, 0, 2, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("parts", [1, 3])
def test_without_a_bound_each_difference_is_shared_among_all(monkeypatch, parts):
    """mine += (theirs - mine of the same round) / n, once both are there; a correction never happens twice."""
    initial = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    layout = make_layout(SIZE, parts, "raw", may_be_whole=True)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, rules(slack=None, exchange="parameters"), initial)
    changes = iter(np.random.default_rng(1).standard_normal((len(ORDER), SIZE)).astype(np.float32))
    weights = np.tile(initial, (3, 1))
    # By hand: the published weights of each worker, less later corrections there, and the rounds it has heard of each
    # peer.
    hand, said = weights.astype(np.float64), {}
    mine, heard = [{}, {}, {}], [set(), set(), set()]
    at = [0, 0, 0]
    for worker in ORDER:
        change = next(changes)
        at[worker] += 1
        weights[worker] += change
        fleet.exchanges[worker].exchange(weights[worker])
        part = CUTS[parts][(at[worker] - 1) % parts]
        hand[worker] += change
        said[worker, at[worker]] = hand[worker][part].copy()
        mine[worker][at[worker]] = hand[worker][part].copy()
        for sender, round in sorted(said):
            if sender == worker or round > at[worker] or (sender, round) in heard[worker]:
                continue
            heard[worker].add((sender, round))
            place = CUTS[parts][(round - 1) % parts]
            correction = (said[sender, round] - mine[worker][round]) / 3
            hand[worker][place] += correction
            for later in range(round + 1, at[worker] + 1):
                if (later - round) % parts == 0:
                    mine[worker][later] += correction
        close(weights[worker], hand[worker])
    assert len(set(at)) == 1 and fleet.dropped() == [{}] * 3
    for left in fleet.finish(lambda worker: weights[worker]):
        close(left, hand.mean(axis=0))


def test_without_a_bound_workers_that_begin_apart_meet_in_the_middle(monkeypatch):
    layout = make_layout(SIZE, 1, "raw", may_be_whole=True)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, rules(slack=None, exchange="parameters"))
    weights = np.array([[0.0], [3.0], [9.0]], np.float32).repeat(SIZE, axis=1)
    for worker in (0, 1, 2):
        fleet.exchanges[worker].exchange(weights[worker])
    # The first worker has read nobody, the second the first, and the third both.
    close(weights[:, 0], [0, 3 - 3 / 3, 9 - 9 / 3 - 6 / 3])
    fleet.exchanges[0].exchange(weights[0])
    close(weights[0], np.full(SIZE, 0 + 3 / 3 + 9 / 3))
    fleet.exchanges[1].exchange(weights[1])
    # The second round of the first worker meets our second round; the first round of the third meets our first.
    close(weights[1], np.full(SIZE, 2 + (0 - 2) / 3 + (9 - 3) / 3))
