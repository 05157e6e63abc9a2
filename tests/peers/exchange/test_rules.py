"""The size of an outbox, the lead that a peer may have, and the rule that the options ask for; every figure by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import config
from degan.modes.partial_exchange import keep_rounds, least_rounds
from peers.exchange import factory
from peers.exchange.factory import make_rule
from peers.exchange.gate import furthest_lead, make_gate
from peers.exchange.options import Options
from peers.exchange.outbox import Outbox
from peers.vectors import reduce as robust
from peers.vectors.buffers import BufferPool
from peers.vectors.screen import Screen
from tests.fleets import make_layout
from tests.leaves import plain

MIB = 2**20


def settings(mode: dict[str, Any], bus: dict[str, Any] | None = None, **run: Any) -> config.Experiment:
    name = {"name": "partial_exchange"}
    return config.build(plain("seed", mode=name | mode, bus=bus or {}, run=run))


# --- the number of kept rounds -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("slack", "parts", "expected"),
    [
        # Twice the bound and one more, the rounds after the last step, and one that is on its way.
        (0, 1, 4),
        (1, 1, 6),
        (2, 4, 11),
        (3, 1024, 1033),
        # A round with parts "auto" is as large as one of a single part.
        (2, "auto", 8),
    ],
)
def test_under_a_bound_the_kept_rounds_are_those_by_which_a_reader_may_lag(slack, parts, expected):
    made = settings({"slack": slack, "parts": parts}, {"unbounded_backlog": 7})
    assert least_rounds(made) == expected


def test_without_a_bound_the_backlog_is_kept():
    made = settings({"slack": None}, {"unbounded_backlog": 7})
    assert least_rounds(made) == 7


@pytest.mark.parametrize(
    ("slack", "budget", "every", "round_bytes", "expected"),
    [
        # The least number is 11 rounds, or 4; the rounds of a checkpoint come on top.
        (2, 10**9, 500, 1000, 500 + 11),
        (2, 10**9, 0, 1000, 11),
        (2, 0, 500, 1000, 11),
        (2, 10_999, 500, 1000, 11),
        (2, 12_000, 500, 1000, 12),
        (2, 12_999, 500, 1000, 12),
        (2, 10**9, 500, 0, 511),
        # The default budget is 64 MiB, and eight times as much with slack 0.
        (2, None, 500, MIB, 64),
        (0, None, 600, MIB, 512),
        (0, None, 500, MIB, 500 + 7),
        (None, None, 500, MIB, 64),
    ],
)
def test_the_rounds_since_a_checkpoint_are_kept_for_a_replay_where_they_fit(
    slack, budget, every, round_bytes, expected
):
    made = settings({"slack": slack}, {"replay_bytes": budget, "unbounded_backlog": 5}, checkpoint_every=every)
    assert keep_rounds(made, round_bytes) == expected


def test_a_checkpoint_is_saved_with_every_snapshot_by_default():
    assert keep_rounds(settings({"slack": 2}, {"replay_bytes": 10**9}, snapshot_every=50), 1000) == 61
    assert settings({}, snapshot_every=50).checkpoint_every == 50
    assert settings({}, snapshot_every=50, checkpoint_every=0).checkpoint_every == 0
    assert settings({}, snapshot_every=50, checkpoint_every=7).checkpoint_every == 7


# --- the size of an outbox ---------------------------------------------------------------------


def test_how_far_a_peer_may_be_ahead():
    one = make_layout(10, 3)
    assert furthest_lead(Options(slack=None), one) is None
    # The lead is the bound, one step on each side of it, and one step a part after the last one.
    assert [furthest_lead(Options(slack=slack), one) for slack in (0, 4)] == [5, 9]
    # With "auto" the largest number of parts counts.
    assert furthest_lead(Options(slack=1), make_layout(10, "auto")) == 1 + 2 + max(make_layout(10, "auto").parts)


@pytest.mark.parametrize(
    ("parts", "state_size", "periods", "expected"),
    [
        # The rounds, and sixteen small messages.
        (2, 3, (), (20 + 16, 7 + 16)),
        (2, 0, (4,), (20 + 16, 7 + 16)),
        # A state follows every fourth and every tenth step: the states of the kept rounds, and two more of each kind.
        (2, 3, (4,), (20 + 7 + 16, 7 + 3 + 16)),
        (2, 3, (4, 10), (20 + 7 + 4 + 16, 7 + 3 + 2 + 16)),
    ],
)
def test_how_many_entries_an_outbox_keeps(parts, state_size, periods, expected):
    layout = make_layout(10, parts, state_size=state_size)
    made = Options(keep_rounds=20, least_rounds=7, sync_periods=periods)
    outbox = Outbox(made, layout)
    assert (outbox.entries, outbox.least_entries) == expected
    assert outbox.payload_bytes == layout.largest_payload_bytes()
    assert outbox.state_entries == expected[0] - 20 - 16
    # Without least_rounds all of the entries are needed.
    alike = Outbox(Options(keep_rounds=20, sync_periods=periods), layout)
    assert (alike.entries, alike.least_entries) == (expected[0], expected[0])


def test_an_outbox_has_room_for_a_round_of_many_parts():
    layout = make_layout(10, "auto")
    assert Outbox(Options(keep_rounds=20), layout).entries == 20 + max(layout.parts) + 16


def test_a_round_of_several_entries_takes_the_room_of_several():
    size = 600_000
    layout = make_layout(size, 1, state_size=300_000)
    # An entry of the raw codec has 262,144 values at most.
    assert (layout.entries_per_round(), layout.entries_per_state()) == (3, 2)
    assert Outbox(Options(keep_rounds=20, sync_periods=(4,)), layout).entries == 20 * 3 + 7 * 2 + 16
    assert Outbox(Options(), layout).payload_bytes == 4 * 262_144


# --- rules and gates from options --------------------------------------------------------------


class Made:
    """A stand-in for a rule that keeps its arguments."""

    def __init__(self, *arguments: Any, **named: Any):
        self.arguments, self.named = arguments, named


def made_by(monkeypatch, **some: Any) -> tuple[str, dict[str, Any]]:
    """The name of the rule that the options ask for, and its arguments."""
    kinds = {}
    for name in ("ParameterRule", "GradientRule"):
        kinds[name] = type(name, (Made,), {})
        monkeypatch.setattr(factory, name, kinds[name])
    layout = make_layout(10)
    initial, buffers, lines = np.zeros(10, np.float32), BufferPool(), []
    rule = make_rule(
        Options(keep_rounds=33, norm_gate=6.0, offences=4, **some), 1, layout, initial, buffers, lines.append
    )
    screen: Screen = rule.named["screen"]
    screen._log("heard")
    assert lines == ["heard"] and rule.arguments[:2] == (1, layout)
    assert any(value is buffers for value in (*rule.arguments, *rule.named.values()))
    found = rule.named | {
        "gate": screen._factor,
        "most": screen._most,
        "is_alike": screen._is_alike,
        "worker": screen._worker,
    }
    assert (found["gate"], found["most"], found["worker"]) == (6.0, 4, 1)
    return type(rule).__name__, found | {"arguments": rule.arguments}


@pytest.mark.parametrize("reduce", ["mean", "median", "clipped_mean", "trimmed_mean", "centered_clip"])
@pytest.mark.parametrize("slack", [None, 3])
def test_the_rule_of_parameters(monkeypatch, reduce, slack):
    name, found = made_by(monkeypatch, exchange="parameters", slack=slack, reduce=reduce, byzantine=2, own="immediate")
    assert name == "ParameterRule" and found["arguments"][2].size == 10
    assert found["arguments"][3:5] == (slack, 33)
    assert found["measures_norms"] == (reduce == "clipped_mean")
    assert found["is_alike"] == (slack is not None), "without a bound each sees others"
    check_rule(found["reduce"], reduce)


@pytest.mark.parametrize("reduce", ["mean", "sum", "median", "clipped_mean", "trimmed_mean", "centered_clip"])
@pytest.mark.parametrize(("own", "slack"), [("immediate", None), ("immediate", 3), ("delayed", 3)])
def test_the_rule_of_gradients(monkeypatch, reduce, own, slack):
    some = {"own": own, "slack": slack, "reduce": reduce, "byzantine": 2}
    name, found = made_by(monkeypatch, exchange="gradients", **some)
    assert name == "GradientRule" and found["arguments"][2] == 10
    assert found["lag"] == slack
    assert found["is_published"] == found["is_alike"] == (own == "delayed")
    assert found["is_mean"] == (reduce == "mean")
    if reduce in ("mean", "sum"):
        assert found["reduce"] is None
    else:
        check_rule(found["reduce"], reduce)


def check_rule(found: robust.Reduce, name: str) -> None:
    """Check a rule by its result for five vectors, two of which may be bad."""
    vectors = [np.array([value], np.float32) for value in (1.0, 2.0, 4.0, 50.0, 90.0)]
    expected = {"mean": 29.4, "sum": 29.4, "median": 4.0, "trimmed_mean": 4.0, "clipped_mean": 3.0}
    if name in expected:
        assert found(vectors)[0] == pytest.approx(expected[name])
    else:
        assert found(vectors)[0] == robust.centered_clip(vectors)[0]


def test_the_gate_that_the_rules_ask_for():
    made = Options(slack=2, stall_timeout_s=19.0, min_peers=1)
    gate = make_gate(made, (0, 2), make_layout(10, 3), lambda line: None)
    gate.admit(0, 0)
    gate.note(0, 1)
    # A lag of two rounds is within the bound, and worker 2 is absent.
    assert gate.wait(3) == (0,)
    assert gate._stall_timeout_s == 19.0 and gate._lead == 2 + 2 + 3
    assert gate._min_peers == 1
