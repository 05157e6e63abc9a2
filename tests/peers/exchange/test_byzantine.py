"""Byzantine workers: with a robust rule the honest workers learn as well, agree, and ban the right sender."""

from __future__ import annotations

import numpy as np
import pytest

from peers.chaos import attacks
from peers.errors import SetupError
from peers.exchange.factory import make_rule
from peers.exchange.options import Options
from peers.types import Slice
from peers.vectors import reduce as robust
from peers.vectors.buffers import BufferPool
from tests.attackers import SIZE, learn
from tests.fleets import contribution, make_layout

HONEST = slice(0, -1)


# --- attacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("w7:attack:sign_flip", "sign_flip"),
        ("w1@step12:kill, w7:attack:nan , redis0@step30:restart,w3:slow:10", "nan"),
        ("w6:attack:scale", None),
        ("w77:attack:scale", None),
    ],
)
def test_an_attack_is_one_item_of_the_faults(text, found):
    assert attacks.attack_of(text, 7) == found


@pytest.mark.parametrize("text", ["w7:attack:sing_flip", "w1:attack:", "w1:attack"])
def test_an_unknown_attack_is_a_persons_error(text):
    with pytest.raises(SetupError, match="known: sign_flip, scale"):
        attacks.attack_of(text, 7)


def test_the_vectors_of_the_attacks():
    values = np.array([1, -2, 2], np.float32)
    found = {name: attacks.Attack(name)(values) for name in attacks.NAMES}
    np.testing.assert_array_equal(found["sign_flip"], -values)
    np.testing.assert_array_equal(found["scale"], 100 * values)
    assert np.linalg.norm(found["constant"]) == pytest.approx(30) and len(set(found["constant"])) == 1
    assert np.isnan(found["nan"]).all()
    # The spread is unknown after one vector.
    np.testing.assert_array_equal(found["small_enough"], values)
    np.testing.assert_array_equal(values, np.array([1, -2, 2], np.float32))


def test_a_small_enough_vector_is_within_the_honest_spread():
    random, attack = np.random.default_rng(0), attacks.Attack("small_enough")
    seen = [random.standard_normal(50).astype(np.float32) for _ in range(attacks.REMEMBERED)]
    sent = [attack(values) for values in seen][-1]
    np.testing.assert_allclose(sent, np.mean(seen, axis=0) - attacks.Z * np.std(seen, axis=0), rtol=1e-5, atol=1e-6)
    # Vectors of another kind have a memory of their own.
    np.testing.assert_array_equal(attacks.Attack("small_enough")(seen[0]), seen[0])


# --- their effect ------------------------------------------------------------------------------


# The rules behave much alike here, so all but one of them are slow tests.
rules = pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=() if rule == "median" else pytest.mark.slow) for rule in robust.RULES]
)


@pytest.mark.parametrize("exchange", ["parameters", "gradients"])
@rules
def test_one_byzantine_worker_of_five_costs_at_most_a_quarter(exchange, rule):
    """Fault 17: the noise of the batches keeps all workers from the optimum."""
    _, clean, _ = learn(exchange=exchange, reduce=rule)
    for attack in attacks.NAMES:
        values, trails, fleet = learn(attack, exchange=exchange, reduce=rule)
        assert all(np.isfinite(one).all() for one in values[HONEST]), attack
        assert max(trails[HONEST]) <= 1.25 * max(clean), attack
        offenders = fleet.exchanges[0].stats()["offences"]
        assert set(offenders) <= {"4"} and (attack != "nan" or offenders == {"4": 10}), attack


@pytest.mark.parametrize("exchange", ["parameters", "gradients"])
def test_the_mean_without_a_gate_bears_no_long_one(exchange):
    _, clean, _ = learn(exchange=exchange, norm_gate=0.0)
    for attack in ("scale", "constant"):
        _, trails, _ = learn(attack, exchange=exchange, norm_gate=0.0, steps=20)
        assert not max(trails[HONEST]) <= 10 * max(clean), attack
    # The damage has a bound with a gate, once the gate knows enough norms.
    _, trails, fleet = learn("scale", exchange=exchange, norm_gate=10.0)
    assert max(trails[HONEST]) <= 1.25 * max(clean)
    assert fleet.exchanges[0].stats()["banned"] == [4]
    assert fleet.exchanges[0].stats()["dropped"]["gated"] == 10


@pytest.mark.parametrize("slack", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("rule", ["mean", *(pytest.param(rule, marks=pytest.mark.slow) for rule in robust.RULES)])
def test_all_end_with_the_same_weights(rule, slack):
    for codec in ("raw", "float16", "int8", "topk"):
        for attack in ("sign_flip", "scale"):
            values, _, fleet = learn(attack, codec=codec, parts=3, slack=slack, steps=30, reduce=rule, offences=3)
            for one in values[1:]:
                np.testing.assert_array_equal(one, values[0], err_msg=f"{codec} {attack}")
            seen = [exchange.stats() for exchange in fleet.exchanges]
            assert len({str(stats["offences"]) for stats in seen}) == 1
            assert all("diverged" not in stats["dropped"] for stats in seen), codec


@rules
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_replicas_that_exchange_gradients_stay_alike(rule, codec):
    values, _, _ = learn("scale", exchange="gradients", codec=codec, parts=3, slack=1, steps=20, reduce=rule)
    # The byzantine worker is alike too: it applies the published gradients.
    for one in values[1:]:
        np.testing.assert_array_equal(one, values[0])


@pytest.mark.parametrize("exchange", ["parameters", "gradients"])
@pytest.mark.parametrize(("codec", "parts", "slack"), [("raw", 1, 0), ("int8", 4, 2), ("topk", 2, 1)])
def test_a_clean_run_is_the_same_with_the_gate_bit_by_bit(exchange, codec, parts, slack):
    rules = {"exchange": exchange, "codec": codec, "parts": parts, "slack": slack}
    gated, _, fleet = learn(norm_gate=10.0, **rules)
    free, _, _ = learn(norm_gate=0.0, offences=0, **rules)
    for one, other in zip(gated, free, strict=True):
        np.testing.assert_array_equal(one, other)
    for exchange in fleet.exchanges:
        assert exchange.stats()["offences"] == {} and "gated" not in exchange.stats()["dropped"]


def test_with_own_immediate_and_without_a_bound_every_receiver_decides_for_itself():
    """The replicas differ here, and the overlong contribution is left out all the same."""
    for slack, own in ((0, "immediate"), (None, "immediate")):
        rules = Options(slack=slack, exchange="gradients", own=own)
        rule = make_rule(rules, 0, make_layout(4), np.zeros(4, np.float32), BufferPool())
        everything = Slice(0, 4)
        for round in range(1, 12):
            ours = np.full(4, 1, np.float32)
            list(rule.encoder.encode(rule.offer(round, everything, ours), {}))
            items = [
                contribution(1, "a", round, everything, np.full(4, 2, np.float32), round),
                contribution(2, "a", round, everything, np.full(4, 3 if round < 10 else 1e6, np.float32), round),
            ]
            found = rule.collect(round, ours, items, 2)
            expected = 2.0 if round < 10 else 1.5
            np.testing.assert_allclose(found, np.full(4, expected), rtol=1e-6)
        assert rule.counts["gated"] == 2


@pytest.mark.parametrize("slack", [0, 2])
def test_the_own_norm_is_noted_as_late_as_the_bound_allows(slack):
    """The progress of the publishing thread decides nothing, so a run repeats.

    The rule awaits that thread up to this round.
    """
    layout, everything = make_layout(4), Slice(0, 4)
    rules = Options(slack=slack, exchange="gradients", own="immediate")
    rule = make_rule(rules, 0, layout, np.zeros(4, np.float32), BufferPool())
    for round in range(1, 8):
        leaving = rule.offer(round, everything, np.full(4, round, np.float32))
        # The encoder has encoded everything up to the round before.
        assert rule.is_ready(round) == (slack > 0)
        list(rule.encoder.encode(leaving, {}))
        assert rule.is_ready(round)
        rule.collect(round, np.zeros(4, np.float32), [], 0)
        norms = rule.screen.state(layout.schedule, ())[0]["norms"]
        assert list(norms[norms > 0]) == [2.0 * noted for noted in range(1, round - slack + 1)]
    rule.offer(8, everything, np.ones(4, np.float32))
    rule.offer(9, everything, np.ones(4, np.float32))
    assert rule.is_ready(9) == (slack == 2)
    rule.offer(10, everything, np.ones(4, np.float32))
    assert not rule.is_ready(10)


# --- joiners -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "codec", "reduction"),
    [
        ("parameters", "raw", "clipped_mean"),
        ("parameters", "int8", "median"),
        ("parameters", "float16", "mean"),
        ("gradients", "raw", "trimmed_mean"),
    ],
)
def test_a_joiner_decides_as_the_others(kind, codec, reduction):
    """A rule, and another one that takes over its state in the middle, apply the same messages. Their weights agree."""
    layout = make_layout(SIZE, 2, codec, may_be_whole=kind == "parameters")
    rules = Options(slack=0, exchange=kind, own="delayed", reduce=reduction, offences=4)
    first = np.zeros(SIZE, np.float32)
    random = np.random.default_rng(3)

    def make(worker):
        return make_rule(rules, worker, layout, first, BufferPool())

    helper, others, joiner = make(0), [1, 2, 3], make(4)
    values = {0: first.copy(), 4: None}
    for round in range(1, 41):
        part = layout.schedule.slice(round)
        sent = [random.standard_normal(part.size).astype(np.float32) for _ in others]
        if round in (25, 26, 33, 34, 35):
            sent[2] *= np.float32(1e4)
        own = random.standard_normal(SIZE).astype(np.float32)
        published = {}
        by_worker = {0: helper} | ({4: joiner} if values[4] is not None else {})
        for worker, rule in by_worker.items():
            offered = values[worker] + own if kind == "parameters" else own.copy()
            leaving = rule.offer(round, part, offered)
            list(rule.encoder.encode(leaving, {}))
            mine = rule._outgoing.get(round)
            published[worker] = (offered, mine)
        base = published[0][1].extras
        shift = values[0][part.start : part.stop] if kind == "parameters" and codec == "raw" else np.float32(0)
        for worker, rule in by_worker.items():
            items = [
                contribution(other, "a", round, part, some + shift, round, dict(base))
                for other, some in zip(others, sent, strict=True)
            ]
            for peer in by_worker.keys() - {worker}:
                mine = published[peer][1]
                items.append(contribution(peer, "a", round, part, mine.values.copy(), round, dict(mine.extras)))
            items.sort(key=lambda item: item.sender)
            found = rule.collect(round, published[worker][0], items, len(items))
            if kind == "parameters":
                values[worker] = np.array(found)
            else:
                values[worker] = values[worker] - found
        if round == 28:
            arrays, small = helper.shared()
            assert {name: array.size for name, array in arrays.items()} == joiner.shared_sizes()
            joiner.load_shared(arrays, small, 0, round, helper.applied(round))
            values[4] = values[0].copy()
    # The last screens used norms that both rules have seen and norms that only the helper has seen.
    assert helper.screen.stats() == joiner.screen.stats() == {"offences": {"3": 4}, "banned": [3]}
    assert helper.screen.counts == {"gated": 4, "banned": 6}
    assert joiner.screen.counts == {"gated": 2, "banned": 6}
    (seen, offences), (taken, same) = (one.screen.state(layout.schedule, ()) for one in (helper, joiner))
    np.testing.assert_array_equal(seen["norms"], taken["norms"])
    assert offences == same == [[3, "a", 4]]
    np.testing.assert_array_equal(values[4], values[0])
