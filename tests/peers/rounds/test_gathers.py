"""Gathers of workers in one process: valid answers, awaited workers, the leader, and the reading of answers."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from peers.codecs.exact import CODECS, Raw
from peers.errors import MessageError, PeersError, StalledError
from peers.rounds.deadline import Deadline
from peers.rounds.layout import RoundLayout
from peers.rounds.leadership import Leadership
from peers.rounds.rounds import Rounds, kept_entries, term_of
from peers.session.meet import Start
from peers.types import Entry, Lease, Slice
from peers.vectors.screen import Screen
from peers.wire.encode import encode_fields, encode_vector
from tests.fleets import in_threads, memory_buses

SIZE = 4
LAYOUT = RoundLayout(b"testtest", {"result": (SIZE, CODECS["raw"])})
LONG_S = 30.0


class Small(Raw):
    """A codec with chunks of four values."""

    chunk_values = 4


def ones(value=1.0):
    return np.full(SIZE, value, np.float32)


@pytest.fixture
def make(monkeypatch):
    """A function that makes workers that have met; the first two may lead."""
    opened, buses = [], []
    # This is the time in which a reader thread sees that it has to end.
    monkeypatch.setattr("peers.session.reader.READ_S", 0.02)

    def new(workers, joining=(), min_peers=0, lines=None, **screen):
        buses.extend(memory_buses(workers))
        incarnations = {bus.worker: bus.incarnation for bus in buses}
        for bus in buses:
            bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 60.0, lambda old: True)
        for bus in buses:
            log = (lambda line: None) if lines is None else lines.append
            rounds = Rounds(
                *(bus, LAYOUT, Leadership([0, 1]), Deadline(0.1, 60.0), 5.0, LONG_S, LONG_S, log, min_peers),
                screen=Screen(bus.worker, log=log, **screen),
            )
            opened.append(rounds)
            kind = "join" if bus.worker in joining else "together"
            rounds.start(
                Start(kind, 0, {p: incarnation for p, incarnation in incarnations.items() if p != bus.worker}), 0
            )
        return list(opened)

    yield new
    in_threads([rounds.close for rounds in opened])
    for bus in buses:
        bus.close()


def wait(rounds, is_done):
    rounds.until(is_done, lambda: "what the test waits for", LONG_S)


def tell(rounds, sender, kind, round, incarnation=None, **content):
    """Feed a message as if the sender had published it, in this or another incarnation."""
    ((header, payload),) = encode_fields(LAYOUT, kind, round, content)
    rounds.messages.feed(
        Entry(sender, incarnation or rounds.messages.incarnation(sender), 10**6, False, header, payload)
    )


def hand_in(rounds, sender, round, value, incarnation):
    """Feed an answer as if the sender had sent it in that incarnation."""
    ((header, payload),) = encode_vector(LAYOUT, "result", round, Slice(0, SIZE), ones(value))
    rounds.messages.feed(Entry(sender, incarnation, 10**6, False, header, bytes(payload), True))


def answer(sender, leader, round, value=1.0, **extras):
    """Send an answer, and wait for its arrival."""
    before = len(leader.messages.kept("result").get(sender._bus.worker, []))
    sender.send(0, "result", round, ones(value), extras)
    wait(leader, lambda: len(leader.messages.kept("result").get(sender._bus.worker, [])) > before)


# --- awaited workers ------------------------------------------------------------------------------


def test_an_answer_that_names_another_term_is_none(make):
    first, *others = make(4)
    first.leadership.term = 3
    for sender, extras in zip(others, ({"term": 2.0}, {"term": 4.0}, {"term": 3.0}), strict=True):
        answer(sender, first, 1, **extras)
    gathered = first.gather("result", 1, [1, 2, 3], 2, 0.0)
    assert list(gathered.answers) == list(gathered.messages) == [3]
    assert gathered.missing == (1, 2) and gathered.is_void


def test_a_worker_that_left_after_a_round_has_answered_it_and_one_that_left_before_has_not(make):
    """The goodbye comes on another stream, so a leader may read it before the answer."""
    first, second, third = make(3)
    for sender, last in ((second, 4), (third, 5)):
        sender.publish("goodbye", last, {})
    wait(first, lambda: not first.messages.live())
    seen = []

    def is_off():
        # The gather calls this first: it still waits for the answer of worker 2, and for no other.
        if not seen:
            seen.append(True)
            third.send(0, "result", 5, ones(), {})
        return False

    gathered = first.gather("result", 5, [1, 2], 1, LONG_S, is_off)
    assert list(gathered.answers) == [2] and gathered.missing == (1,)


def test_a_gather_is_over_at_once_when_somebody_else_leads(make):
    first, *_ = make(2)
    gathered = first.gather("result", 1, [1], 1, LONG_S, lambda: True)
    assert gathered.missing == (1,) and gathered.is_void and first.wait_s < LONG_S / 2


def test_only_those_that_were_asked_are_gathered(make):
    first, second, third = make(3)
    answer(second, first, 1)
    answer(third, first, 1)
    assert list(first.gather("result", 1, [2], 1, LONG_S).answers) == [2]


# --- valid answers --------------------------------------------------------------------------------


def test_an_unreadable_answer_is_counted_as_not_finite_and_is_missing_from_the_quorum(make):
    lines = []
    first, second, third = make(3, lines=lines)

    def read(message):
        if message.extras["part"] == 1.0:
            raise ValueError("nothing that we know")
        return message.values * 2

    answer(second, first, 1, part=1.0)
    answer(third, first, 1, part=2.0)
    gathered = first.gather("result", 1, [1, 2], 3, LONG_S, own=ones(5.0), read=read)
    assert {worker: values[0] for worker, values in gathered.answers.items()} == {0: 5.0, 2: 2.0}
    assert list(gathered.messages) == [1, 2] and gathered.missing == () and gathered.is_void
    assert first.stats()["dropped"] == {"not_finite": 1}
    assert "round 1: the result of worker 1 is not finite; left out" in lines


def test_a_quorum_counts_our_own_answer(make):
    first, second = make(2)
    answer(second, first, 1)
    assert not first.gather("result", 1, [1], 2, LONG_S, own=ones()).is_void
    answer(second, first, 2)
    assert first.gather("result", 2, [1], 2, LONG_S).is_void


def test_an_answer_far_larger_than_usual_by_the_given_measure_is_left_out(make):
    lines = []
    first, second, third = make(3, lines=lines, factor=10.0, most_offences=9)
    for round in range(1, 7):
        answer(second, first, round, 100.0)
        answer(third, first, round, 100.0 if round < 6 else 111.0)
        gathered = first.gather("result", round, [1, 2], 1, LONG_S, measure=lambda x: float(abs(x[0] - 99.0)))
    # The value is eleven away where the others are one away; its own norm differs by a tenth.
    assert list(gathered.answers) == [1] and first.stats()["dropped"] == {"gated": 1}
    assert "round 6: the result of worker 2 is far larger than usual; left out" in lines


def test_a_banned_worker_is_heard_again_in_a_new_incarnation(make):
    first, _ = make(2, most_offences=1)
    found = []
    for round, value, incarnation in ((1, math.nan, "a"), (2, 1.0, "a"), (3, 1.0, "b")):
        hand_in(first, 1, round, value, incarnation)
        found.append(list(first.gather("result", round, [1], 1, LONG_S).answers))
    assert found == [[], [], [1]]
    assert first.stats()["dropped"] == {"not_finite": 1, "banned": 1} and first.stats()["banned"] == []


def test_a_message_that_does_not_fit_is_an_offence(make):
    first, second = make(2)
    other = RoundLayout(b"otherrun", LAYOUT.kinds)
    second._bus.publish(encode_fields(other, "stop", 1, {}))
    wait(first, lambda: first.messages.counts())
    answer(second, first, 1)
    first.gather("result", 1, [1], 1, LONG_S)
    assert first.stats()["offences"] == {"1": 1} and first.stats()["dropped"] == {"fingerprint": 1}


# --- the leader -----------------------------------------------------------------------------------


def test_a_joiner_does_not_lead_before_it_has_caught_up(make):
    first, second, third = make(3, joining=(0,))
    for rounds in (second, third):
        wait(
            rounds,
            lambda r=rounds: r.messages.live() == {0, 1, 2} - {r._bus.worker} and 0 not in r.messages.caught_up(),
        )
    assert [rounds.leader() for rounds in (first, second, third)] == [1, 1, 1]
    first.note_caught_up(4)
    for rounds in (second, third):
        wait(rounds, lambda r=rounds: 0 in r.messages.caught_up())
    assert [rounds.leader() for rounds in (first, second, third)] == [0, 0, 0]


def test_with_fewer_peers_than_the_least_nobody_leads_alone(make):
    first, *_ = make(3, min_peers=1)
    assert first.leader() == 0
    # A worker that has said goodbye is not missing; a dropped worker is.
    tell(first, 1, "goodbye", 3)
    first.messages.drop(2, "its lease has expired")
    assert first.leader() == 0
    tell(first, 1, "hello", 3, incarnation="another", is_joining=True, is_replaying=False)
    assert first.leader() == 0
    first.messages.drop(1, "its lease has expired")
    assert first.leader() is None


def test_the_newest_announcement_is_by_term_then_round_then_kind(make):
    first, second, third = make(3)
    said = [("round_start", 5, 1), ("round_end", 4, 1), ("round_start", 4, 1)]
    for kind, round, term in said:
        first.publish(kind, round, {"term": term})
    first.drain()
    wait(third, lambda: len(third.messages.kept("round_start").get(0, [])) == 2)

    def newest():
        sender, received = third.newest()
        return sender, received.kind, received.round, term_of(received)

    assert newest() == (0, "round_start", 5, 1)
    first.publish("round_end", 5, {"term": 1})
    wait(third, lambda: newest() == (0, "round_end", 5, 1))
    second.publish("round_end", 3, {"term": 2})
    wait(third, lambda: newest() == (1, "round_end", 3, 2))
    # A leader goes on in its term, whatever later rounds others begin in an older term.
    first.publish("round_start", 6, {"term": 1})
    wait(third, lambda: len(third.messages.kept("round_start").get(0, [])) == 3)
    assert newest() == (1, "round_end", 3, 2) and third.leader() == 1
    # At the same term the first leader of the list counts; a worker that may not lead never does.
    first.publish("round_start", 2, {"term": 2})
    wait(third, lambda: newest() == (0, "round_start", 2, 2))
    third.publish("round_start", 99, {"term": 9})
    wait(
        second, lambda: second.messages.kept("round_start").get(2) and len(second.messages.kept("round_start")[0]) == 4
    )
    assert second.newest()[1].round == 2 and second.leader() == 0
    second.publish("round_end", 3, {"term": 3})
    wait(third, lambda: newest() == (1, "round_end", 3, 3))
    for odd in (-1, 2**48, "7", None, 2.5):
        tell(third, 0, "round_start", 7, term=odd)
        assert newest() == (1, "round_end", 3, 3)


# --- states and failures --------------------------------------------------------------------------


def test_a_state_that_is_put_stays_for_two_leases(make):
    first, _ = make(2)
    incarnations, put_state = [], first._bus.put_state
    first._bus.put_state = lambda fields, ttl_s: (incarnations.append(ttl_s), put_state(fields, ttl_s))
    first.put("m1", {"model": ones()}, {})
    first.drain()
    assert incarnations and set(incarnations) == {10.0}


def test_a_failed_reading_is_raised_at_its_caller(make):
    first, _ = make(2)
    for error in (MessageError("malformed", "no such thing"), StalledError("nothing there")):

        def fails(error=error):
            raise error

        with pytest.raises(type(error), match=str(error)):
            first.ask(fails, "what fails")
    assert first.ask(lambda: 7, "a number") == 7


def test_a_stream_keeps_three_vectors_and_some_small_messages():
    entries = {"result": (3 * 262144, CODECS["raw"]), "feedback": (5, CODECS["raw"])}
    assert kept_entries(RoundLayout(b"testtest", entries)) == 3 * 3 + 64
    assert kept_entries(RoundLayout(b"testtest", {})) == 3 + 64


def test_a_worker_that_leaves_or_finishes_has_published_everything(make):
    """The next event is the end of its process."""
    first, second, third = make(3)
    for peer in (0, 1):
        tell(third, peer, "goodbye", 4)
    for rounds, end in ((second, second.leave), (third, third.finish)):
        hold, publish, published = threading.Event(), rounds._bus.publish, []

        def slowly(entries, hold=hold, publish=publish, published=published):
            hold.wait(LONG_S)
            publish(entries)
            published.append(True)

        rounds._bus.publish = slowly
        threading.Timer(0.2, hold.set).start()
        end(4)
        assert published == [True]
    wait(first, lambda: first.messages.reached(4) == {1, 2} and not first.messages.live())


def test_a_failed_publication_is_raised_by_the_next_wait(make):
    first, _ = make(2)
    first._session._sender.submit(lambda: 1 / 0)
    with pytest.raises(PeersError, match="publishing: ZeroDivisionError"):
        first.drain()


def test_a_forgotten_state_leaves_nothing_behind(make):
    """All chunks of the codec go, and a state under another name stays."""
    first, second = make(2)
    values, small = np.arange(10, dtype=np.float32), Small()
    for name in ("m1", "m2"):
        first.put(name, {"model": values}, {}, small)
    first.forget("m1", {"model": 10}, small)
    first.drain()
    assert {name.partition(":")[0] for name in first._bus._hub.states[0, "life-0"]} == {"m2"}
    arrays, _ = second.fetch(0, "life-0", "m2", {"model": 10}, small)
    assert arrays["model"].tolist() == values.tolist()


def test_the_time_that_a_worker_waits_is_counted(make):
    first, _ = make(2)
    first.gather("result", 1, [1], 1, 0.05)
    first.gather("result", 2, [1], 1, 0.07)
    assert 0.12 <= first.wait_s == first.stats()["wait_s"] < LONG_S
