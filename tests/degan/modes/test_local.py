"""The local mode and its guard call by call: applied gradients, restored statistics, counts and log lines."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import config
from degan.learners.guard import LARGEST, MOST_IN_A_ROW, NonFiniteGuard, is_usable
from degan.modes.local import Local
from tests.degan.learners.test_step import experiment, new_pair, reals
from tests.learner_views import counters_of, tensors_of


class Scripted:
    """A pair whose gradients are given: each call spoils the section's gradient, or a network's statistics, or nothing.

    Attributes:
        script: the fault of each call from now on: "", "gradient", "generator" or "discriminator".
    """

    def __init__(self, updates="alternating"):
        self.settings = experiment(model="dcgan", mode={"updates": updates})
        self.pair, self.script = new_pair(self.settings), []
        self._gradients = self.pair.gradients
        self.pair.gradients = self.gradients

    def gradients(self, section, real):
        gradient, losses = self._gradients(section, real)
        wrong = self.script.pop(0)
        if wrong == "gradient":
            gradient[-1] = np.inf
        elif wrong:
            getattr(self.pair, wrong).buffers[-1] = np.nan
        return gradient, losses

    def state(self):
        return {name: tensor for name, tensor in tensors_of(self.pair).items() if "num_" not in name}


def moved(before, after):
    """The networks with other weights or running statistics than before."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("script", "expected", "counts"),
    [
        (["", ""], {"generator", "discriminator", "ema"}, {}),
        # A fault in D's section: D stays as it was, and G learns from this discriminator.
        (["gradient", ""], {"generator", "discriminator.running", "ema"}, {"own_not_finite": 1}),
        (["", "gradient"], {"discriminator", "generator.running"}, {"own_not_finite": 1}),
        (["discriminator", "generator"], set(), {"own_not_finite": 2}),
        (["generator", "discriminator"], set(), {"own_not_finite": 2}),
    ],
)
def test_of_an_alternating_step_each_section_counts_for_itself(script, expected, counts):
    scripted = Scripted()
    mode, real = Local(scripted.settings, 0, scripted.pair), next(reals(scripted.settings))
    before, scripted.script = copy.deepcopy(scripted.state()), list(script)
    losses = mode.step(1, lambda: real, is_sync_point=False)
    assert list(losses) == ["d_loss", "g_loss"] and not scripted.script
    after = scripted.state()
    assert all(tensor.isfinite().all() for tensor in after.values())
    found = set()
    for name in moved(before, after):
        weights = [n for n in before if n.startswith(name) and "running" not in n]
        is_whole = any(not torch.equal(before[n], after[n]) for n in weights)
        found.add(name if is_whole else f"{name}.running")
    assert found == expected
    assert mode.stats()["dropped"] == counts
    adam = counters_of(scripted.pair)
    assert (adam["generator"], adam["discriminator"]) == ("generator" in expected, "discriminator" in expected)
    assert adam["applied"] == ("ema" in expected)


def test_the_guard_gives_the_gradient_or_zeros():
    scripted = Scripted("simultaneous")
    lines = []
    guard, real, whole = (
        NonFiniteGuard(scripted.pair, lines.append),
        next(reals(scripted.settings)),
        (0, scripted.pair.size),
    )
    for wrong in ("", "gradient", "generator", ""):
        scripted.script = [wrong]
        before = copy.deepcopy(scripted.pair.statistics())
        gradient, losses, usable = guard.gradients(whole, real)
        assert usable is (not wrong) and set(losses) == {"d_loss", "g_loss"}
        assert gradient.shape == (scripted.pair.size,) and gradient.any() == usable
        assert np.array_equal(scripted.pair.statistics(), before) != usable
    assert guard.counts == {"own_not_finite": 2} and len(lines) == 1


def test_statistics_are_kept_apart_and_set_back_each_in_its_place():
    pair = Scripted().pair
    guard = NonFiniteGuard(pair, print)
    pair.generator.buffers.fill_(1)
    pair.discriminator.buffers.fill_(2)
    pair.ema.buffers.fill_(3)
    context, zeros = guard.context(), np.zeros(3, np.float32)
    for wrong in (pair.generator, pair.discriminator):
        assert guard.is_sound() and guard.passes(zeros, context)
        pair.generator.buffers.fill_(4)
        pair.discriminator.buffers.fill_(5)
        wrong.buffers[0] = np.inf
        assert not guard.is_sound() and not guard.passes(zeros, context)
        for flat, value in ((pair.generator, 1), (pair.discriminator, 2), (pair.ema, 3)):
            assert (flat.buffers == value).all()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([LARGEST / 1.001], True),
        ([-LARGEST / 1.001, 0.0], True),
        # Each value can be squared, and their norm is larger than the limit.
        ([LARGEST / 1.001] * 4, True),
        ([LARGEST * 1.001], False),
        ([0.0, -LARGEST * 1.001], False),
        ([[0.0, 1.0], [np.nan, 1.0]], False),
        ([[0.0, 1.0], [2.0, 1.0]], True),
        ([3e38] * 4, False),
    ],
)
def test_a_gradient_can_be_used_where_each_value_can_be_squared(values, found):
    guard = NonFiniteGuard(Scripted().pair, print)
    array = np.array(values, np.float32)
    assert is_usable(array) is found
    assert guard.allows(array) is found and guard.counts == ({} if found else {"own_not_finite": 1})
    guard.counts.clear()
    assert guard.allows_together(array) is found and guard.counts == ({} if found else {"not_finite": 1})


def test_a_gradient_whose_statistics_are_not_sound_does_not_count():
    guard = NonFiniteGuard(Scripted().pair, lambda line: None)
    assert not guard.allows(np.zeros(3, np.float32), is_sound=False)
    assert guard.counts == {"own_not_finite": 1}


def test_a_hundred_in_a_row_are_borne_and_every_hundredth_is_logged():
    lines, bad, good = [], np.full(2, np.nan, np.float32), np.zeros(2, np.float32)
    guard = NonFiniteGuard(Scripted().pair, lines.append)
    assert MOST_IN_A_ROW == 100
    for _ in range(99):
        guard.allows(bad)
    assert [line[line.index("(") :] for line in lines] == ["(1 so far)"]
    guard.allows(bad)
    assert [line[line.index("(") :] for line in lines] == ["(1 so far)", "(100 so far)"]
    # The gradients of an exchange neither begin the count anew nor add to it.
    guard.allows_together(good)
    guard.allows_together(bad)
    with pytest.raises(config.UsageError, match="gradients of 101 steps in a row"):
        guard.allows(bad)
    assert guard.allows(good) and not guard.allows(bad)


# --- the mode -------------------------------------------------------------------------------------


def test_a_local_worker_begins_with_its_newest_checkpoint():
    scripted, loaded = Scripted(), []
    mode = Local(scripted.settings, 0, scripted.pair)
    assert mode.begin([], {}, loaded.append) == 0 and loaded == []
    assert mode.begin([2, 7, 9], {}, loaded.append) == 9 and loaded == [9]


def test_a_local_worker_is_first_by_its_number_and_stops_after_the_next_step():
    scripted = Scripted()
    for worker in range(3):
        mode = Local(scripted.settings, worker, scripted.pair)
        assert mode.is_first() is (worker == 0)
        assert not mode.is_shared and mode.synchronise(3)
        assert not mode.is_stopping(10**6)
        mode.ask_to_stop(4)
        assert [mode.is_stopping(step) for step in (4, 5, 6)] == [False, True, True]
        assert mode.state() == ({}, {})
        assert mode.stats() == {
            "sent_bytes": 0,
            "received_bytes": 0,
            "staleness_mean": 0.0,
            "staleness_max": 0,
            "live_peers": 0,
            "dropped": {},
            "wait_s": 0.0,
            "exchange_s": 0.0,
        }


def test_a_synchronisation_leaves_a_local_workers_statistics_its_own():
    scripted = Scripted()
    mode, before = Local(scripted.settings, 1, scripted.pair), copy.deepcopy(scripted.state())
    assert mode.synchronise(1)
    mode.finish()
    mode.leave(True)
    mode.close()
    assert moved(before, scripted.state()) == set()


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
def test_a_step_draws_one_batch(updates):
    scripted, drawn = Scripted(updates), []
    data = reals(scripted.settings)

    def next_batch():
        drawn.append(next(data))
        return drawn[-1]

    mode = Local(scripted.settings, 0, scripted.pair)
    scripted.script = [""] * 6
    for step in range(1, 4):
        mode.step(step, next_batch, is_sync_point=False)
        assert len(drawn) == step
