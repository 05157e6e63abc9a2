"""Exchange of parameters: non-finite and too large weights, references that differ, joiners, and dropped peers."""

from __future__ import annotations

import numpy as np
import pytest

from peers.exchange.parameters import ParameterRule
from peers.session.meet import Start
from peers.types import Slice
from tests.fleets import contribution, in_threads, make_layout
from tests.lockstep import Lockstep, close, int8, rules
from tests.peers.exchange.test_parameter_rule import SIZE, ByHand

PARAMETERS = rules(slack=0, exchange="parameters")


@pytest.mark.parametrize("codec", ["raw", "bfloat16"])
def test_weights_whose_sum_overflows_stay_unchanged(monkeypatch, codec):
    """The weights are finite; their mean would be infinite in float32."""
    layout = make_layout(SIZE, 1, codec, may_be_whole=True)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, rules(slack=0, exchange="parameters"))
    huge = np.float32(2.0**127)

    def job(worker, exchange):
        mine = np.full(SIZE, huge)
        mine[0] = worker
        exchange.exchange(mine)
        kept = mine.copy()
        # The next exchange is an ordinary one.
        mine[:] = worker
        exchange.exchange(mine)
        return kept, mine

    for worker, (kept, mine) in enumerate(fleet.together(job)):
        np.testing.assert_array_equal(kept[1:], np.full(SIZE - 1, huge))
        assert kept[0] == worker
        close(mine, np.ones(SIZE), 0.02)


@pytest.mark.parametrize("codec", ["raw", "int8"])
@pytest.mark.parametrize("slack", [0, 1])
def test_non_finite_weights_are_replaced_by_the_agreement_of_the_others(monkeypatch, slack, codec):
    layout = make_layout(SIZE, 1, codec, may_be_whole=True)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, rules(slack=slack, exchange="parameters"))

    def job(worker, exchange):
        mine = np.full(SIZE, np.float32(worker + 1))
        if worker == 2:
            mine[4] = np.nan
        for _ in range(slack + 1):
            exchange.exchange(mine)
        return mine

    for mine in fleet.together(job):
        # Workers 0 and 1 have the weights 1 and 2.
        close(mine, np.full(SIZE, 1.5), 0.01)
    assert all(dropped.get("not_finite") for dropped in fleet.dropped())


def test_without_a_bound_non_finite_weights_are_left_out(monkeypatch):
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=None, exchange="parameters"))
    mine, theirs = np.ones(SIZE, np.float32), np.full(SIZE, np.float32(np.nan))
    for weights, worker in ((theirs, 1), (mine, 0), (mine, 0)):
        fleet.exchanges[worker].exchange(weights)
    close(mine, np.ones(SIZE))
    assert fleet.dropped()[0] == {"not_finite": 1}


@pytest.mark.parametrize("slack", [0, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_references_that_differ_are_seen_and_made_alike(monkeypatch, parts, slack):
    """Worker 2 has another reference for one value. All see it, send the part whole once, and agree from then on."""
    layout = make_layout(SIZE, parts, "int8", may_be_whole=True)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, rules(slack=slack, exchange="parameters"))
    wrong = fleet.exchanges[2]._rule._agreed
    wrong[1] = 5.0
    rounds = 6 * parts + 3 * slack

    def job(worker, exchange):
        mine = np.full(SIZE, np.float32(worker))
        for _ in range(rounds):
            exchange.exchange(mine)
        return mine

    found = fleet.together(job)
    references = [exchange._rule._agreed for exchange in fleet.exchanges]
    for mine, reference in zip(found, references, strict=True):
        np.testing.assert_array_equal(reference, references[0])
        close(mine, np.ones(SIZE), 0.02)
    assert not any(exchange._rule._broken for exchange in fleet.exchanges), "differences are enough again"
    counts = [dropped["diverged"] for dropped in fleet.dropped()]
    # In each round that was on its way at that time, one or both of the others differ from this worker.
    assert all(1 <= count <= 2 * (slack + 1) * 2 for count in counts), counts


def test_weights_of_one_and_differences_of_others_are_told_apart(monkeypatch):
    """Worker 0 goes on from a checkpoint in which a part was to be sent whole; the others send differences to 1."""
    fleet = Lockstep(monkeypatch, 3, make_layout(SIZE, 1, "int8", may_be_whole=True), SIZE, PARAMETERS, first=[])
    for worker, exchange in enumerate(fleet.exchanges):
        state = {"broken": [[0, SIZE]] if worker == 0 else [], "offences": []}
        exchange.load_state({"reference": np.ones(SIZE, np.float32)}, {"parts": {}, "rule": state, "followed": {}})
        fleet.begin(worker, [peer for peer in range(3) if peer != worker])
    weights = np.random.default_rng(0).standard_normal((3, SIZE)).astype(np.float32)
    sent = np.array([weights[0] - 1, int8(weights[1] - 1), int8(weights[2] - 1)])
    for found, one, own in zip(fleet.together(lambda w, e: e.exchange(weights[w].copy())), weights, sent, strict=True):
        close(found, one + sent.mean(axis=0) - own)
    for exchange in fleet.exchanges:
        close(exchange.state()[0]["reference"], 1 + sent.mean(axis=0))
        assert not exchange._rule._broken


def test_a_run_goes_on_from_its_checkpoint(monkeypatch):
    """The state holds the reference as it was at the checkpoint."""
    layout = make_layout(SIZE, 2, "sign", may_be_whole=True)
    settings, changes = rules(slack=1, exchange="parameters"), np.random.default_rng(1).standard_normal((9, 2, SIZE))
    changes = changes.astype(np.float32)
    fleet = Lockstep(monkeypatch, 2, layout, SIZE, settings)
    weights = np.zeros((2, SIZE), np.float32)

    def run(fleet, weights, steps):
        def job(worker, exchange):
            for step in steps:
                weights[worker] += changes[step - 1, worker]
                exchange.exchange(weights[worker], lambda step=step: step == 5)
            return exchange.state()

        return fleet.together(job)

    states = run(fleet, weights, range(1, 6))
    copies = [{name: array.copy() for name, array in arrays.items()} for arrays, _ in states]
    saved = weights.copy()
    run(fleet, weights, range(6, 10))
    again = Lockstep(monkeypatch, 2, layout, SIZE, settings, first=[])
    for worker, (exchange, (arrays, values)) in enumerate(zip(again.exchanges, states, strict=True)):
        assert arrays["reference"].any()
        np.testing.assert_array_equal(arrays["reference"], copies[worker]["reference"])
        exchange.load_state(arrays, values)
    for worker in (0, 1):
        again.exchanges[worker].start(Start("together", 5, again.incarnations([1 - worker])), 5)
    run(again, saved, range(6, 10))
    np.testing.assert_array_equal(saved, weights)


def test_without_a_bound_outgoing_bytes_are_not_changed_by_a_correction():
    """A correction changes the remembered values of a round, and not the bytes that are on their way."""
    layout = make_layout(SIZE)
    rule, whole = ParameterRule(0, layout, np.zeros(SIZE, np.float32), None), Slice(0, SIZE)
    list(rule.encoder.encode(rule.offer(1, whole, np.ones(SIZE, np.float32)), {}))
    entries = rule.encoder.encode(rule.offer(2, whole, np.full(SIZE, 5, np.float32)), {})
    mine = np.full(SIZE, 5, np.float32)
    rule.collect(2, mine, [contribution(1, "a", 1, whole, np.full(SIZE, 9, np.float32), 1)], 1)
    close(mine, np.full(SIZE, 5 + (9 - 1) / 2))
    ((_, payload),) = entries
    close(np.frombuffer(payload, "<f4"), np.full(SIZE, 5))


@pytest.mark.parametrize("applied", [9, 10])
def test_a_worker_that_took_over_a_state_reports_its_applied_round(applied):
    """A joiner may ask the worker for its own state at once."""
    rule = ParameterRule(2, make_layout(SIZE), np.zeros(SIZE, np.float32), 1)
    rule.load_shared({}, {}, 0, 10, applied)
    assert rule.applied(10) == applied


@pytest.mark.parametrize("is_sync_point", [False, True])
def test_a_joiner_has_the_reference_and_the_rounds_of_its_helper(monkeypatch, is_sync_point):
    """Two parts, slack 1, int8: after a join all three go on by the rule, and no reference differs."""
    layout = make_layout(SIZE, 2, "int8", may_be_whole=True)
    settings = rules(slack=1, exchange="parameters")
    initial = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    fleet = Lockstep(monkeypatch, 3, layout, SIZE, settings, initial, first=[0, 1])
    changes = np.random.default_rng(1).standard_normal((11, 3, SIZE)).astype(np.float32)
    hand, weights = ByHand(initial, 2, 2, 1, int8), np.tile(initial, (3, 1))

    def job(worker, exchange):
        for step in range(1, 6):
            weights[worker] += changes[step - 1, worker]
            exchange.exchange(weights[worker], lambda step=step: is_sync_point and step == 5)

    fleet.together(job, [0, 1])
    for step in range(1, 6):
        expected = hand.step(changes[step - 1, :2], is_sync_point and step == 5)
    close(weights[:2], expected)

    def load(vectors, values):
        weights[2] = vectors["weights"]

    _, at = in_threads(
        [
            lambda: fleet.serve(0, lambda: ({"weights": weights[0].copy()}, {})),
            lambda: fleet.join(2, 0, {"weights": SIZE}, load),
        ]
    )
    assert at == 5
    np.testing.assert_array_equal(weights[2], weights[0])
    # By hand: the third worker is a copy of the first. It has round 5 of the first, whose average was of two.
    part, mine, agreed, sent = hand.published[5]
    middle = sent.mean(axis=0)
    three = ByHand(initial, 3, 2, 1, int8)
    three.weights = np.array([hand.weights[0], hand.weights[1], hand.weights[0]])
    three.reference, three.round, three.done, three.own_steps = hand.reference.copy(), 5, 5, {}
    for step, some in enumerate(changes[5:], start=6):
        expected = three.step(some)
        if step == 6 and not is_sync_point:
            own = mine[[0, 1, 0]] + middle - sent[[0, 1, 0]]
            three.weights[:, part] = own + some[:, part]
            three.reference[part] = agreed + middle
        for worker in (0, 1, 2):
            weights[worker] += some[worker]
            fleet.exchanges[worker].exchange(weights[worker])
        close(weights, expected)
    assert fleet.dropped() == [{}] * 3


def test_without_a_bound_the_rounds_of_a_dropped_peer_are_shared_with_it(monkeypatch):
    """The peer counts in the means of its published rounds, and not in those of later rounds."""
    fleet = Lockstep(monkeypatch, 2, make_layout(SIZE), SIZE, rules(slack=None, exchange="parameters"))
    weights = np.float32([2, 6]).repeat(SIZE).reshape(2, SIZE)
    fleet.deaf = {0}
    for worker in (0, 1):
        fleet.exchanges[worker].exchange(weights[worker])
    fleet.deaf = set()
    fleet.deliver()
    fleet.exchanges[0].gate.drop(1, "its lease has expired")
    fleet.exchanges[0].exchange(weights[0])
    close(weights[0], np.full(SIZE, 2 + (6 - 2) / 2))
