"""The checks of a leader's announcements: a worker that cannot follow a round is left out of that round only."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from peers.types import Entry, Slice
from peers.wire.encode import encode_fields, encode_vector
from tests import federations, multi_discriminators
from tests.fleets import close, in_threads, memory_buses

LONG_S = 60.0
TWO = {"counts": [0, 0], "turns": [-1, -1]}


def lead_and_follow(fleet, next_batches, spoils, is_awaited=False):
    """Worker 0 leads a round for each spoil and one more, step by step with worker 1. Returns the losses of worker 1.

    Args:
        spoils: replacements in the `round_start` of worker 0, one dict a round; None: its batch is not published.
        is_awaited: whether worker 0 also waits for the answers to spoiled announcements.
    """
    leader, follower, together = *fleet.modes, threading.Barrier(2)
    publish, live = leader._rounds.publish, leader._await_live

    def spoiled(kind, round, content, *rest):
        spoil = spoils[round - 1] if round <= len(spoils) else {}
        if kind == "batch" and spoil is None:
            return
        if kind == "round_start":
            content = content | (spoil or {})
        publish(kind, round, content, *rest)

    def train_all(mode, next_batch):
        mode.begin([], {}, None)
        found = []
        for step in range(1, len(spoils) + 2):
            found.append(mode.step(step, next_batch, False))
            together.wait(LONG_S)
        assert mode.synchronise(step)
        mode.finish()
        return found

    leader._rounds.publish = spoiled
    leader._await_live = lambda: live() if is_awaited or leader._step > len(spoils) else live()[:1]
    try:
        return in_threads(
            [lambda m=m, b=b: train_all(m, b) for m, b in zip((leader, follower), next_batches, strict=True)]
        )[1]
    finally:
        close(fleet.modes)


@pytest.mark.parametrize("is_leader_too", [True, False])
def test_a_malformed_announcement_of_a_federated_round(is_leader_too):
    settings = federations.experiment(2, local_steps=1, leaders=2 if is_leader_too else 1)
    fleet = federations.Fleet(settings, memory_buses(2))
    both = {"cohort": [0, 1]}
    spoils = [
        *({"cohort": odd} for odd in (None, "01", [0, 1.0], [0, "1"], {"0": 1})),
        *(both | {"model": odd} for odd in (None, [1], [1, 1, 1], [1, -1], [1, "1"], [True, 1], [1, 2**60], "11")),
        *(both | {"steps": odd} for odd in (None, -1, 1.0, True)),
        *(both | {"sampled": odd} for odd in ("no", {}, TWO | {"turns": [-1]}, TWO | {"counts": [0, -1]})),
        both | {"model": [7, 7]},
    ]
    found = lead_and_follow(fleet, [federations.stream(0), federations.stream(1)], spoils)
    assert [bool(losses) for losses in found] == [False] * len(spoils) + [True]
    lines = [line for line in fleet.lines if line.startswith("1: round")]
    assert len(lines) == len(spoils) and all("not taking part in it" in line for line in lines)
    assert [line for line in lines if "malformed" not in line] == [lines[-1]], (
        "the last names a model that is not there"
    )
    federations.assert_same_model(fleet.pairs)


def test_a_malformed_announcement_of_a_round_of_md_gan():
    settings = multi_discriminators.experiment(2, leaders=2)
    fleet = multi_discriminators.Fleet(settings, memory_buses(2))
    both = {"workers": [0, 1]}
    spoils = [
        *({"workers": odd} for odd in (None, "01", [0, 1.0], [0, 1, 1])),
        *(both | {"deadline_s": odd} for odd in (None, -1.0, "5", 1e8, math.nan)),
        *(both | {"state": odd} for odd in ([1], [1, 2, -1], [1, 2, "0"], 7)),
        None,
    ]
    found = lead_and_follow(fleet, [lambda w=w: next(fleet.data[w]) for w in range(2)], spoils)
    assert [bool(losses) for losses in found] == [False] * len(spoils) + [True]
    lines = [line for line in fleet.lines[1] if line.startswith("round")]
    assert len(lines) == len(spoils) - 1 and all("malformed" in line for line in lines)
    multi_discriminators.assert_same(fleet.pairs[1], fleet.pairs[0], ("generator", "ema"))


def test_a_state_that_cannot_be_fetched_costs_no_part_in_the_round():
    settings = multi_discriminators.experiment(2, leaders=2)
    fleet = multi_discriminators.Fleet(settings, memory_buses(2))
    # Worker 0 names a state of worker 1, and then an own state that does not exist.
    spoils = [{"state": [1, 1, 1]}, {"state": [1, 9, 0]}]
    found = lead_and_follow(fleet, [lambda w=w: next(fleet.data[w]) for w in range(2)], spoils, True)
    assert all(found)
    assert [line for line in fleet.lines[1] if line.startswith("round")] == [
        "round 1: malformed: worker 0 names a state of worker 1",
        "round 2: worker 0 has not sent its state",
    ]


def test_a_state_without_its_counters_is_not_taken():
    settings = multi_discriminators.experiment(2, leaders=2, state_every=1)
    fleet = multi_discriminators.Fleet(settings, memory_buses(2))
    follower, put, versions = fleet.modes[1], fleet.modes[0]._rounds.put, []
    spoils = {"g1.1": None, "g1.2": {}, "g1.3": {"applied": 1}, "g1.4": {"applied": -1, "generator": 1}}

    def spoiled(name, vectors, meta, *rest):
        put(name, vectors, {"counters": spoils[name]} if name in spoils else meta, *rest)

    fleet.modes[0]._rounds.put = spoiled
    train = follower._train
    follower._train = lambda *words: versions.append(follower.state()[1]["version"]) or train(*words)
    found = lead_and_follow(fleet, [lambda w=w: next(fleet.data[w]) for w in range(2)], [{}] * 6, True)
    assert all(found)
    lines = [line for line in fleet.lines[1] if line.startswith("round")]
    assert len(lines) == 4 and all("malformed" in line and "not taking part" not in line for line in lines)
    # These are the versions as each round begins; round 6 fetches the state put after round 5.
    assert versions == [None] * 6 + [(1, 5, 0)]
    assert follower.state()[1]["version"] == (1, 7, 0)


def test_a_batch_of_a_leaders_former_incarnation_is_not_that_of_its_round():
    fleet = multi_discriminators.Fleet(multi_discriminators.experiment(2), memory_buses(2))
    mode, step = fleet.modes[1], 3
    size = mode._layout.kinds["batch"][0]
    batch = encode_vector(mode._layout, "batch", step, Slice(0, size), np.zeros(size, np.float32))
    fields = {"term": 1, "workers": [0, 1], "is_swap": False, "deadline_s": 1.0, "state": None}
    start = encode_fields(mode._layout, "round_start", step, fields)
    for number, (incarnation, pairs) in enumerate((("a", batch), ("b", start)), start=1):
        ((header, payload),) = pairs
        mode._rounds.messages.feed(Entry(0, incarnation, number, True, bytes(header), bytes(payload)))
    assert mode.step(step, lambda: next(fleet.data[1]), False) == {}
    close(fleet.modes)
    assert "round 3: incomplete: the batch of worker 0 has not come whole; not taking part in it" in fleet.lines[1]
