"""The base of the modes with a leader: settings, cohorts, terms and stops; workers in threads of one process."""

from __future__ import annotations

import copy
import inspect
import threading
import time

import msgspec
import pytest

from config.settings.bus import Bus as BusSettings
from degan.learners.gan_pair import GanPair
from degan.modes.federated import Federated
from degan.modes.leader import leader_based
from degan.modes.multi_discriminator import MultiDiscriminator
from peers.errors import BusError
from peers.rounds.rounds import Gathered
from peers.types import Entry
from peers.wire.encode import encode_fields
from tests import multi_discriminators
from tests.degan.modes.test_federated_by_hand import FAST, ByHand, assert_like, by_size
from tests.degan.modes.test_federated_by_hand import peer_info as uneven
from tests.federations import Fleet, assert_same_model, experiment, peer_info, stream
from tests.fleets import close, memory_buses

LONG_S = 60.0


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["federated", "multi_discriminator"])
def test_every_setting_of_bus_and_mode_reaches_its_place(monkeypatch, mode):
    """Each setting has a value of its own."""
    seen = {}
    for name in ("Rounds", "Deadline", "Screen", "Leadership", "Rendezvous"):
        own = getattr(leader_based, name)

        def build(*words, name=name, own=own, **named):
            seen[name] = inspect.signature(own).bind(*words, **named).arguments
            return own(*words, **named)

        monkeypatch.setattr(leader_based, name, build)
    block = {"leaders": [2, 0], "deadline": {"floor_s": 3.5, "ceiling_s": 41.0}}
    numbers = {"lease_s": 17.0, "stall_timeout_s": 33.0, "finish_timeout_s": 44.0, "min_peers": 2}
    bus = BusSettings(**numbers, norm_gate=6.5, offences=7)
    if mode == "federated":
        settings, make, shape = experiment(3, **block), Federated, (1, 32, 32)
    else:
        settings, make, shape = multi_discriminators.experiment(3, **block), MultiDiscriminator, (1, 8, 8)
    settings = msgspec.structs.replace(settings, bus=bus, connect_timeout_s=55.0)
    buses, pair = memory_buses(3), GanPair(settings, shape, 1, "cpu")
    made, own_info = make(settings, pair, buses[1], {"fact": 9}, peer_info(1), lambda line: None), peer_info(1)
    made.close()
    wanted = {"lease_s": 17.0, "stall_timeout_s": 33.0, "finish_timeout_s": 44.0, "min_peers": 2}
    assert {name: seen["Rounds"][name] for name in wanted} == wanted
    assert (seen["Deadline"]["floor_s"], seen["Deadline"]["ceiling_s"]) == (3.5, 41.0)
    assert (seen["Screen"]["worker"], seen["Screen"]["factor"], seen["Screen"]["most_offences"]) == (1, 6.5, 7)
    assert list(seen["Leadership"]["leaders"]) == [2, 0]
    meeting = seen["Rendezvous"]
    assert (meeting["lease_s"], meeting["timeout_s"], meeting["may_replay"]) == (17.0, 55.0, False)
    # MD-GAN does not use histograms, so it does not send them.
    assert meeting["peer_info"] == (own_info if mode == "federated" else {"samples": own_info["samples"]})
    assert "fact" in str(meeting["agreed"])


def test_histograms_are_not_sent_where_they_are_not_to_be_shared():
    settings = experiment(2, share_histograms=False, local_steps=1)
    fleet = Fleet(settings, memory_buses(2))
    fleet.run(1)
    assert fleet.modes[0]._peer_info(1) == {"samples": peer_info(1)["samples"]}


def test_the_claims_of_a_peer_are_checked_before_they_count():
    def odd(worker):
        return {"samples": 3 + worker, "histogram": [5, -1], "unknown": 1}

    fleet = Fleet(experiment(2, local_steps=1), memory_buses(2), peer_info=odd)
    fleet.run(1)
    assert fleet.modes[0]._peer_info(1) == {"samples": 4}


# --- cohorts and terms ----------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "expected"), [({"cohort": 3}, [3, 2, 2, 3]), ({"fraction": 0.7}, [2, 1, 1, 2])])
def test_a_worker_that_catches_up_is_not_asked_and_its_new_incarnation_claims_anew_what_it_holds(block, expected):
    """A cohort is a number, or a share of the workers that can be asked."""
    deadline = {"floor_s": 2.0, "ceiling_s": 2.0}
    settings = experiment(3, local_steps=1, leaders=1, deadline=deadline, **block)
    fleet, may_go_on, cohorts = Fleet(settings, memory_buses(3)), threading.Event(), []
    more = {"samples": 640, "histogram": [640]}

    def live(worker, steps):
        if worker == 1:
            return fleet.live(1, steps)
        mode, batches = fleet.modes[worker], stream(worker)
        mode.begin([], {}, None)
        if worker == 0:
            return lead(mode, batches, steps)
        mode.step(1, batches, False)
        mode._rounds.drain()
        saved, loaded = mode.state(), []
        mode.close()
        fleet.peer_info = lambda worker: more | {"unknown": 1}
        mode = fleet.again(2)
        catch_up = mode._catch_up
        mode._catch_up = lambda *received: may_go_on.wait(LONG_S) and catch_up(*received)
        first = mode.begin([1, 2], {}, lambda step: loaded.append(step) or saved)
        assert loaded == [2], "the newest of its checkpoints"
        for step in range(first + 1, steps + 1):
            mode.step(step, batches, False)
        assert mode.synchronise(steps)
        mode.finish()
        return mode.stats()

    def lead(mode, batches, steps):
        messages = mode._rounds.messages
        for step in range(1, steps + 1):
            if step == 2:
                mode._rounds.until(
                    lambda: messages.incarnation(2) == "another" and 2 in messages.live() - messages.caught_up(),
                    lambda: "the new incarnation",
                )
            if step == 4:
                may_go_on.set()
                mode._rounds.until(lambda: 2 in messages.caught_up(), lambda: "that it has caught up")
            mode.step(step, batches, False)
            cohorts.append(mode.stats()["cohort"])
        assert mode._peer_info(1) == peer_info(1) and mode._peer_info(2) == more
        assert mode.synchronise(steps)
        mode.finish()
        return mode.stats()

    assert_same_model(fleet.run(4, live))
    assert cohorts == expected


def test_a_leader_that_is_overruled_in_its_round_gives_it_up():
    """Worker 1 leads in a higher term, so the answers that worker 0 has gathered do not become the model."""
    settings = experiment(2, local_steps=1, deadline={"floor_s": 1.0, "ceiling_s": 1.0})
    fleet, has_begun = Fleet(settings, memory_buses(2)), threading.Event()

    def live(worker, steps):
        mode, batches = fleet.modes[worker], stream(worker)
        mode.begin([], {}, None)
        mode.step(1, batches, False)
        if worker == 0:
            before = mode.state()[1]

            def late():
                has_begun.set()
                mode._rounds.until(lambda: mode._rounds.leader() == 1, lambda: "the other leader", LONG_S)
                return batches()

            assert mode.step(2, late, False)
            assert mode.state()[1]["version"] == before["version"] and mode.stats()["void_rounds"] == 0
        else:
            assert has_begun.wait(LONG_S)
            mode._rounds.leadership.term = 4
            mode._enter(2, batches)
            mode._lead(2)
            assert mode.stats()["leader"] == 1 and mode.state()[1]["version"] == [5, 2]
        mode.step(3, batches, True)
        assert mode.synchronise(3)
        mode.finish()
        return mode.stats()

    assert_same_model(fleet.run(3, live))
    assert "0: round 2: worker 1 leads by now; this round of ours does not count" in fleet.lines
    assert [stats["leader"] for stats in fleet.stats] == [1, 1]
    assert fleet.stats[0]["answered"] is None, "it follows"


def test_a_round_that_another_leads_once_more_is_followed_instead_of_its_end():
    """Worker 0 has ended the round, and worker 1 has not read that."""
    settings = experiment(2, local_steps=1, deadline={"floor_s": 20.0, "ceiling_s": 20.0})
    fleet = Fleet(settings, memory_buses(2))

    def live(worker, steps):
        mode, batches = fleet.modes[worker], stream(worker)
        mode.begin([], {}, None)
        mode.step(1, batches, True)
        if worker == 0:
            mode._rounds.until(lambda: mode._rounds.leader() == 1, lambda: "the other leader", LONG_S)
        else:
            mode._rounds.leadership.term = 4
            mode._lead(1)
        assert mode.synchronise(1)
        mode.finish()
        return mode.stats()

    assert_same_model(fleet.run(1, live))
    assert "0: worker 1 leads round 1 once more, in term 5" in fleet.lines
    assert [stats["answered"] for stats in fleet.stats] == [None, 2]


def test_a_gather_waits_for_the_others_until_the_deadline_and_its_floor_at_least():
    """The leader's own steps may have taken longer than the deadline."""
    settings = experiment(4, local_steps=1, quorum=0.6, deadline={"floor_s": 2.0, "ceiling_s": 90.0})
    fleet, asked = Fleet(settings, memory_buses(4)), []
    mode = fleet.modes[0]
    mode._incarnations = {1: "a", 2: "b"}
    gather = inspect.signature(mode._rounds.gather)

    def recorded(*words, **named):
        asked.append(gather.bind(*words, **named).arguments)
        return Gathered({}, {}, (), True)

    mode._rounds.gather = recorded
    now = time.monotonic()
    for until_s in (now - 100.0, now + 1000.0):
        mode._gather("result", 7, [0, 1, 3], None, until_s, 0)
    close(fleet.modes)
    assert asked[0]["timeout_s"] == 2.0 and 900.0 < asked[1]["timeout_s"] <= 1000.0
    for arguments in asked:
        assert (arguments["kind"], arguments["round"], arguments["senders"]) == ("result", 7, [1, 3])
        assert arguments["quorum"] == 2 and arguments["incarnations"] == {1: "a", 2: "b"}


def test_a_worker_at_a_sync_point_is_too_late_for_it_when_a_later_round_has_begun():
    fleet = Fleet(experiment(2, local_steps=1), memory_buses(2))
    mode = fleet.modes[1]
    ((header, payload),) = encode_fields(mode._layout, "round_start", 4, {"term": 1})
    mode._rounds.messages.feed(Entry(0, "life-0", 1, True, header, payload))
    assert mode.synchronise(3) is False
    close(fleet.modes)
    assert "1: too late for the model of round 3; nothing is saved or shown of it" in fleet.lines


def test_the_next_leader_goes_on_from_the_model_that_was_announced_last():
    """The next leader was not in the cohort of the last round; only this round is lost."""
    # With a slow average a missed round of the former leader shows at the end.
    slow = FAST | {"ema_decay": 0.9}
    settings = experiment(*(3, "mlp", slow), local_steps=2, cohort=2, optimiser_state="average", leaders=2)
    settings = msgspec.structs.replace(settings, seed=10)
    fleet = Fleet(settings, memory_buses(3), peer_info=uneven)

    def live(worker, steps):
        mode, batches = fleet.modes[worker], stream(worker)
        mode.begin([], {}, None)
        for step in range(1, steps + 1):
            mode.step(step, batches, False)
            if worker == 0 and step == 4:
                return mode.leave(is_together=False)
        assert mode.synchronise(steps)
        mode.finish()
        return mode.stats()

    fleet.run(6, live)
    hand = ByHand(settings, by_size)
    for cohort in ([0, 2], [0, 1], [1, 2]):
        hand.round(cohort)
    kept = hand.model, hand.moments, hand.steps, copy.deepcopy(hand.leader)
    hand.round([0, 2])
    hand.model, hand.moments, hand.steps, hand.leader = kept
    for _ in range(2):
        hand.round([1, 2], leader=1)
    for worker in (1, 2):
        assert_like(fleet.pairs[worker], hand)
    assert_same_model(fleet.pairs[1:])
    assert [stats["leader"] for stats in fleet.stats[1:]] == [1, 1]


def test_states_are_kept_as_long_as_somebody_may_fetch_them():
    """Federated rounds keep the newest model, and the model and the average of the newest sync point."""
    settings = experiment(2, local_steps=1, leaders=1)
    fleet, seen = Fleet(settings, memory_buses(2), sync_points=(2, 3)), []

    def names():
        state = fleet.buses[0]._hub.states[0, "life-0"]
        return sorted({name.partition(":")[0] for name in state} - {"hello"})

    mode = fleet.modes[0]
    gather = mode._gather

    def spied(*words, **named):
        found = gather(*words, **named)
        mode._rounds.drain()
        seen.append(names())
        return found

    mode._gather = spied
    fleet.run(6)
    assert seen == [
        ["m0.0"],
        ["m0.0", "m1.1"],
        ["m1.2", "s1.2"],
        ["m1.3", "s1.3"],
        ["m1.3", "m1.4", "s1.3"],
        ["m1.3", "m1.4", "m1.5", "s1.3"],
    ]
    assert names() == ["m1.6", "s1.6"]


# --- stops and statistics -------------------------------------------------------------------------


@pytest.mark.parametrize("asking", [0, 2])
def test_all_stop_after_the_same_round_whoever_was_asked_to(asking):
    fleet = Fleet(experiment(3, local_steps=1, leaders=1), memory_buses(3))

    def live(worker, steps):
        mode, batches = fleet.modes[worker], stream(worker)
        mode.begin([], {}, None)
        for step in range(1, steps + 1):
            mode.step(step, batches, False)
            if worker == asking and step == 2:
                mode.ask_to_stop(step)
                # Without this the leader may be many rounds further before it reads the request.
                mode._rounds.drain()
            if mode.is_stopping(step):
                assert mode.synchronise(step) and mode._stop_at == step
                mode.leave(is_together=True)
                return step
        return None

    assert_same_model(fleet.run(500, live))
    assert len(set(fleet.stats)) == 1 and fleet.stats[0] >= 3


def test_deadlines_and_void_rounds_are_shared_and_each_step_names_its_leader():
    settings = experiment(3, local_steps=1, leaders=2, quorum=1.0)
    fleet = Fleet(settings, memory_buses(3))
    fleet.modes[0]._rounds.deadline.load_plain([12.5] * 60)
    mode = fleet.modes[2]
    mode._attack = lambda change: change * (float("nan") if mode._step == 1 else 1.0)
    leases = [[] for _ in fleet.modes]
    for each, shown in zip(fleet.modes, leases, strict=True):
        update = each._rendezvous.lease.show
        each._rendezvous.lease.show = lambda *words, shown=shown, own=update, **named: (
            shown.append(named),
            own(*words, **named),
        )
    fleet.run(2)
    # Joiners go by the step, phase and term in the leases.
    for shown in leases:
        assert [line["step"] for line in shown if line.get("phase") == "training" and line["step"]] == [1, 2]
        assert {line["term"] for line in shown if "term" in line} == {1} and shown[-1] == {"phase": "leaving"}
    assert [mode._rounds.deadline.seconds for mode in fleet.modes] == [12.5] * 3
    assert [stats["void_rounds"] for stats in fleet.stats] == [1] * 3
    assert [stats["leader"] for stats in fleet.stats] == [0] * 3 and [stats["round"] for stats in fleet.stats] == [
        2
    ] * 3
    assert [stats["cohort"] for stats in fleet.stats] == [3] * 3
    assert [stats["answered"] for stats in fleet.stats] == [3, None, None]
    # All have left after the same round; the first worker shows the common model.
    assert [mode.is_first() for mode in fleet.modes] == [True, False, False]
    for bus in fleet.buses:
        with pytest.raises(BusError, match="closed"):
            bus.publish([(b"", b"")])


# --- resumed runs ---------------------------------------------------------------------------------


def test_a_run_that_is_resumed_goes_on_as_if_nothing_had_been():
    """The reference takes three rounds at once; the counts of balanced sampling and the moments' steps go on too."""
    settings = experiment(
        *(3, "mlp", FAST), local_steps=2, cohort=2, sampling="balanced", optimiser_state="average", leaders=2
    )
    hand = ByHand(settings, by_size)
    # Each turn takes a holder of the class with the fewest samples so far; the histograms have 12, 4, 48 samples.
    for cohort in ([0, 1], [0, 2], [0, 2]):
        hand.round(cohort)
    first = Fleet(settings, memory_buses(3), peer_info=uneven)
    data = [stream(worker) for worker in range(3)]
    first.modes[0]._void_rounds = 4
    first.run(2, lambda w, steps: first.live(w, steps, data[w]))
    second = Fleet(settings, memory_buses(3), peer_info=uneven)
    for old, new in zip(first.pairs, second.pairs, strict=True):
        new.load(*old.state())
        new.load_random_state(old.random_state())

    def live(worker, steps):
        mode = second.modes[worker]
        assert mode.begin([2], {}, lambda step: first.modes[worker].state()) == 2
        mode.step(3, data[worker], True)
        assert mode.synchronise(3)
        mode.finish()
        return mode.stats()

    assert_same_model(second.run(3, live))
    assert_like(second.pairs[2], hand)
    assert [stats["void_rounds"] for stats in second.stats] == [4] * 3
    assert [mode.state()[1]["version"] for mode in second.modes] == [[2, 3]] * 3
    kept = first.modes[0].state()[1]["answers_s"]
    assert kept and second.modes[0].state()[1]["answers_s"][: len(kept)] == kept
