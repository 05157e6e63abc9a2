"""Restarts of workers of a mode with a leader in a critical round; fleets in threads of one process."""

from __future__ import annotations

import threading

import pytest

from degan.modes.multi_discriminator import MultiDiscriminator
from tests import multi_discriminators
from tests.federations import Fleet, assert_same_model, experiment, stream
from tests.fleets import in_threads, memory_buses

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("is_told_to_stop", [False, True])
def test_a_joiner_in_the_very_last_round_ends_with_its_model(is_told_to_stop):
    """The model comes without a further round that would bring it."""
    fleet = Fleet(experiment(3, local_steps=1, leaders=1), memory_buses(3))
    last = 3 if is_told_to_stop else fleet.settings.run.steps
    announced, joining = threading.Event(), threading.Event()

    def live(worker, _):
        mode, batches = fleet.modes[worker], stream(worker)

        def wait_in_the_last():
            if mode._step == last and worker == 0:
                announced.set()
                assert joining.wait(60)
            return batches()

        mode.begin([], {}, None)
        for step in range(1, last + 1):
            if worker == 2 and step == 2:
                return live_again()
            if worker == 0 and step == last and is_told_to_stop:
                mode.ask_to_stop(step - 1)
            mode.step(step, wait_in_the_last, False)
        assert mode.synchronise(last) and mode.is_stopping(last) == is_told_to_stop
        mode.leave(is_together=True)

    def live_again():
        fleet.modes[2].close()
        assert announced.wait(60)
        mode = fleet.again(2)
        catch_up, newest = mode._catch_up, mode._rounds.newest

        def newest_of_the_last():
            # Without this the worker might look when only an earlier round has been read.
            found = newest()
            return found if found and found[1].round == last else None

        mode._rounds.newest = newest_of_the_last
        mode._catch_up = lambda *arguments: (catch_up(*arguments), joining.set())
        assert mode.begin([], {}, None) == last
        assert mode.is_stopping(last) == is_told_to_stop
        mode.leave(is_together=True)

    assert_same_model(fleet.run(last, live))


def test_a_lone_leader_that_dies_before_it_ends_a_round_leads_it_once_more():
    """The answers to the leader's former incarnation are gone: the members answer again before the deadline."""
    settings = experiment(3, local_steps=1, leaders=1, deadline={"floor_s": 300, "ceiling_s": 300})
    fleet = Fleet(settings, memory_buses(3), sync_points=(2,))

    def live(worker, steps):
        if worker:
            return fleet.live(worker, steps)
        mode, batches = fleet.modes[0], stream(0)
        mode.begin([], {}, None)
        for step in (1, 2):
            mode.step(step, batches, step == 2)
        mode.close()
        mode = fleet.again(0)
        assert mode.begin([], {}, None) == 1
        for step in (2, 3):
            mode.step(step, batches, True)
            assert mode.stats()["answered"] == 3 and mode.synchronise(step)
        mode.finish()
        return mode.stats()

    assert_same_model(fleet.run(3, live))
    assert [stats["void_rounds"] for stats in fleet.stats] == [0, 0, 0]
    assert sum("worker 0 leads round 2 once more" in line for line in fleet.lines) == 2


def test_the_swap_of_a_repeated_round_is_not_repeated():
    """The members answer again, but the swap of that round is done."""
    settings = multi_discriminators.experiment(3, leaders=1, swap_every=1, deadline={"floor_s": 300, "ceiling_s": 300})
    fleet = multi_discriminators.Fleet(settings, memory_buses(3))

    def live(worker):
        mode, batches = fleet.modes[worker], lambda: next(fleet.data[worker])
        mode.begin([], {}, None)
        for step in (1, 2):
            mode.step(step, batches, step == 2)
        if worker == 0:
            mode.close()
            bus = fleet.buses[0]._hub.bus(0, (1, 2), "another")
            mode = MultiDiscriminator(
                settings, fleet.pairs[0], bus, {}, {"samples": multi_discriminators.BATCH}, fleet.lines[0].append
            )
            fleet.modes.append(mode)
            assert mode.begin([], {}, None) == 1
            mode.step(2, batches, True)
            assert mode.stats()["answered"] == 3
        assert mode.synchronise(2)
        mode.step(3, batches, True)
        assert mode.synchronise(3)
        mode.finish()
        return mode.stats()

    try:
        stats = in_threads([lambda w=w: live(w) for w in range(3)])
    finally:
        for mode in fleet.modes:
            mode.close()
    for pair in fleet.pairs[1:]:
        multi_discriminators.assert_same(pair, fleet.pairs[0], ("generator", "ema"))
    assert [(line["void_rounds"], line["swaps"], line["swaps_missed"]) for line in stats] == [
        (0, 1, 0),
        (0, 3, 0),
        (0, 3, 0),
    ]
