"""One worker's part in a swap, with messages that are late, of another incarnation, after a goodbye, or missing."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from peers.types import Entry, Slice
from peers.wire.encode import encode_fields, encode_vector
from tests.fleets import close, memory_buses
from tests.learner_views import counters_of, network_of
from tests.multi_discriminators import Fleet, experiment

LONG_S = 600.0


class Receiver:
    """Worker 1 of three after a round in which discriminators change hands; the messages of `giver` are by hand."""

    def __init__(self, deadline_s=LONG_S):
        self.fleet = Fleet(experiment(3, swap_every=1), memory_buses(3))
        self.mode, self.pair = self.fleet.modes[1], self.fleet.pairs[1]
        self.swaps, self.messages = self.mode._swaps, self.mode._rounds.messages
        self.number = 0
        for peer in (0, 2):
            self.tell("hello", 0, peer, is_joining=False, is_replaying=False)
        self.own = network_of(self.pair, "discriminator")
        self.sent = []
        self.mode._rounds.send = lambda *words: self.sent.append(words)
        self.swaps.begin(2, [0, 1, 2], deadline_s, {0: "a", 1: "life-1", 2: "a"})
        (self.giver,) = {0, 2} - {peer for peer, *_ in self.sent}

    def feed(self, pairs, sender, incarnation="a", is_direct=False):
        for header, payload in pairs:
            self.number += 1
            self.messages.feed(Entry(sender, incarnation, self.number, False, bytes(header), bytes(payload), is_direct))

    def tell(self, kind, round, sender, incarnation="a", **content):
        self.feed(encode_fields(self.mode._layout, kind, round, content), sender, incarnation)

    def give(self, round=2, incarnation="a", value=0.5, **extras):
        values = np.full_like(self.own, value)
        extras = {"discriminator": 3.0} | extras
        entries = encode_vector(self.mode._layout, "swap", round, Slice(0, values.size), values, extras=extras)
        self.feed(list(entries), self.giver, incarnation, True)

    def holds(self, value):
        return np.array_equal(network_of(self.pair, "discriminator"), np.full_like(self.own, value))

    def counts(self):
        return self.swaps.done, self.swaps.missed


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    close(made.fleet.modes)


def test_ours_is_sent_on_once_and_the_other_one_is_taken_when_it_has_come(receiver):
    ((peer, kind, round, values, extras),) = receiver.sent
    assert (kind, round, extras) == ("swap", 2, {"discriminator": 0.0}) and peer != receiver.giver
    np.testing.assert_array_equal(values, receiver.own)
    receiver.swaps.take()
    assert receiver.counts() == (0, 0)
    receiver.give()
    receiver.swaps.take()
    assert receiver.counts() == (1, 0) and receiver.holds(0.5)
    assert counters_of(receiver.pair, "discriminator") == {"discriminator": 3}
    # The swap is done: a further discriminator is late.
    receiver.give(value=0.7)
    receiver.swaps.take()
    assert receiver.counts() == (1, 0) and receiver.holds(0.5) and receiver.messages.counts() == {"late": 1}
    size = 4 * receiver.own.size
    assert receiver.mode._predicted == {"sent": size, "received": size}


def test_a_discriminator_sent_before_a_goodbye_after_that_round_may_still_come(receiver):
    receiver.tell("goodbye", 2, receiver.giver)
    receiver.swaps.take()
    assert receiver.counts() == (0, 0)
    receiver.give()
    receiver.swaps.wait(2)
    assert receiver.counts() == (1, 0) and receiver.holds(0.5)


@pytest.mark.parametrize("how", ["left before", "gone", "another incarnation"])
def test_of_one_that_is_gone_none_is_awaited(receiver, how):
    if how == "left before":
        receiver.tell("goodbye", 1, receiver.giver)
    elif how == "gone":
        receiver.messages.drop(receiver.giver, "its lease has expired")
    else:
        receiver.tell("hello", 2, receiver.giver, "b", is_joining=True, is_replaying=False)
    receiver.swaps.wait(2)
    assert receiver.counts() == (0, 1) and np.array_equal(network_of(receiver.pair, "discriminator"), receiver.own)


def test_one_of_another_round_is_not_the_one(receiver):
    for round in (1, 3):
        receiver.give(round)
    receiver.swaps.take()
    assert receiver.counts() == (0, 0)


@pytest.mark.parametrize(
    "spoil",
    [{"value": math.nan}, {"value": math.inf}, {"discriminator": -1.0}, {"discriminator": 2.0**48}],
    ids=["nan", "infinite", "negative", "huge"],
)
def test_one_that_cannot_be_used_is_missed(receiver, spoil):
    receiver.give(**spoil)
    receiver.swaps.take()
    assert receiver.counts() == (0, 1) and np.array_equal(network_of(receiver.pair, "discriminator"), receiver.own)
    assert any("cannot be used" in line for line in receiver.fleet.lines[1])


def test_one_without_its_number_of_steps_is_missed(receiver):
    values = np.full_like(receiver.own, 0.5)
    entries = encode_vector(receiver.mode._layout, "swap", 2, Slice(0, values.size), values, extras={})
    receiver.feed(list(entries), receiver.giver, is_direct=True)
    receiver.swaps.take()
    assert receiver.counts() == (0, 1)


def test_the_next_swap_ends_the_wait_for_the_one_before(receiver):
    receiver.swaps.begin(3, [0, 1, 2], LONG_S, {})
    assert receiver.counts() == (0, 1) and len(receiver.sent) == 2
    receiver.give()
    receiver.swaps.take()
    assert receiver.messages.counts() == {"late": 1}


def test_after_the_deadline_it_is_given_up_and_not_before():
    made = Receiver(deadline_s=0.0)
    made.swaps.take()
    assert made.counts() == (0, 1)
    close(made.fleet.modes)


def test_while_the_next_round_has_only_begun_it_is_still_awaited(receiver):
    for round in (2, 3):
        receiver.tell("round_start", round, 0, term=1)
    threading.Timer(0.1, receiver.give).start()
    receiver.swaps.wait(2)
    assert receiver.counts() == (1, 0)


def test_when_the_round_after_the_next_has_begun_it_is_not(receiver):
    """The discriminator may still come between two later rounds."""
    for round in (2, 4):
        receiver.tell("round_start", round, 0, term=1)
    receiver.swaps.wait(2)
    assert receiver.counts() == (0, 0)
    receiver.give()
    receiver.swaps.take()
    assert receiver.counts() == (1, 0)


def test_a_leader_waits_only_for_those_that_have_answered(receiver):
    """All the others wait for the leader."""
    receiver.mode._rounds.leadership.claim(1)
    receiver.swaps.wait(2, lambda sender: sender != receiver.giver)
    assert receiver.counts() == (0, 0)
    threading.Timer(0.1, receiver.give).start()
    receiver.swaps.wait(2, lambda sender: sender == receiver.giver)
    assert receiver.counts() == (1, 0)


def test_requests_are_granted_once_and_by_the_token_that_they_name(receiver):
    receiver.tell("want", 7, 2, token=5)
    receiver.tell("want", 7, 0, token="no")
    receiver.swaps.give(9)
    receiver.swaps.give(10)
    _, given = receiver.sent
    peer, kind, round, values, extras = given
    assert (peer, kind, round, extras) == (2, "swap", 8, {"discriminator": 0.0, "token": 5.0})
    np.testing.assert_array_equal(values, receiver.own)


# --- joining --------------------------------------------------------------------------------------


def answer_requests(receiver, answer):
    """Note the requests to the others; `answer` is called with peer and token while the request is on its way."""
    requests = []

    def send(peer, kind, round, content, *rest):
        requests.append((peer, kind, round))
        answer(peer, content["token"])

    receiver.mode._rounds.send = send
    return requests


def test_a_joiner_takes_the_one_that_names_its_request(receiver):
    def answer(peer, token):
        receiver.giver = peer
        receiver.give(6, value=0.1, token=float(token + 1))
        receiver.give(7, value=0.9, token=float(token))

    requests = answer_requests(receiver, answer)
    receiver.swaps.ask(8, LONG_S, (0,))
    assert requests == [(2, "want", 8)] and receiver.holds(0.9)
    assert receiver.fleet.lines[1][-1] == "begins with the discriminator of worker 2"
    # A requested discriminator does not count as a swap.
    assert receiver.counts() == (0, 0) and receiver.messages.received("swap", 2) is None


def test_a_joiner_that_one_cannot_serve_asks_the_next_and_each_once(receiver):
    def answer(peer, token):
        receiver.giver = peer
        if len(requests) == 1:
            receiver.give(7, value=math.nan, token=float(token))
        else:
            receiver.tell("hello", 7, peer, "b", is_joining=True, is_replaying=False)

    requests = answer_requests(receiver, answer)
    receiver.swaps.ask(8, 5.0, ())
    assert sorted(peer for peer, *_ in requests) == [0, 2]
    assert receiver.fleet.lines[1][-2:] == [
        "malformed: the discriminator after round 7 cannot be used",
        "nobody has given its discriminator; going on with the one that this worker has",
    ]
    np.testing.assert_array_equal(network_of(receiver.pair, "discriminator"), receiver.own)


def test_a_peer_that_catches_up_itself_is_not_asked(receiver):
    for peer in (0, 2):
        receiver.messages.restarted(peer, "b")
    requests = answer_requests(receiver, lambda peer, token: None)
    receiver.swaps.ask(8, 5.0, ())
    assert not requests
