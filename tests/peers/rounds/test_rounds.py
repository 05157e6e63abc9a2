"""Rounds over the bus: deadlines, the leader, the kept messages, and gathers that always end."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.codecs.exact import CODECS, RAW_BYTES
from peers.errors import StalledError
from peers.rounds.deadline import ENOUGH, Deadline
from peers.rounds.layout import RoundLayout
from peers.rounds.leadership import Leadership
from peers.rounds.messages import KEPT, MessageStore
from peers.rounds.rounds import Rounds
from peers.session.meet import Start
from peers.session.transfer import encoded_bytes
from peers.types import Entry, Lease, Slice
from peers.wire.encode import encode_fields, encode_vector
from tests.fleets import in_threads, memory_buses, redis_buses

RUNS = itertools.count()
SIZE = RAW_BYTES // 4 + 1000  # A vector of this size has more than one entry.


# --- the deadline ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        # The median is 2.5; the distances from it are 1.5, 0.5, 0.5 and 7.5, and their median is 1.
        ([1.0, 2.0, 3.0, 10.0], 5.5),
        # The median of five is 3; the distances from it are 2, 1, 0, 1 and 5, and their median is 1.
        ([8.0, 4.0, 3.0, 2.0, 1.0], 6.0),
        # These answers are too few for a median.
        ([1.0, 2.0, 3.0], 30.0),
        ([], 30.0),
        # These deadlines are under the floor, and above the ceiling.
        ([0.5] * 4, 2.0),
        ([0.5, 0.6, 0.7, 0.8, 90.0], 2.0),
        ([29.0] * 4, 29.0),
        ([50.0] * 4, 30.0),
        ([1.0, 2.0, 28.0, 29.0], 30.0),
    ],
)
def test_a_deadline_is_the_median_and_three_deviations_between_floor_and_ceiling(times, seconds):
    deadline = Deadline(2.0, 30.0)
    for took_s in times:
        deadline.note(took_s)
    assert deadline.seconds == pytest.approx(seconds, rel=1e-12)
    for other in (Deadline(2.0, 30.0, times), Deadline(2.0, 30.0)):
        other.load_plain(deadline.to_plain())
        assert other.seconds == deadline.seconds and other.to_plain() == times


def test_a_deadline_goes_by_the_newest_answers():
    """The newest sixty-four answers count, and a negative duration counts as zero."""
    deadline = Deadline(0.1, 100.0, [9.0] * 500)
    assert len(deadline.to_plain()) == 64
    for noted in range(64):
        assert deadline.seconds == pytest.approx(9.0 if noted < 32 else (5.0 + 3 * 4.0 if noted == 32 else 1.0))
        deadline.note(1.0)
    assert deadline.to_plain() == [1.0] * 64
    deadline.load_plain([9.0] * 500)
    deadline.note(-3.0)
    assert len(deadline.to_plain()) == 64 and deadline.to_plain()[-2:] == [9.0, 0.0]


def test_a_deadline_that_was_too_short_grows_with_what_came_late():
    deadline = Deadline(0.1, 100, [1.0] * 10)
    before = deadline.seconds
    for _ in range(10):
        deadline.note(4.0)
    assert deadline.seconds > before


def test_a_new_leader_begins_with_the_deadline_that_the_old_one_had():
    deadline = Deadline(1, 100)
    deadline.suggest(7.0)
    assert deadline.seconds == 7
    for wild, kept in ((0.001, 1), (1e9, 100)):
        deadline.suggest(wild)
        assert deadline.seconds == kept
    for _ in range(ENOUGH):
        deadline.note(2.0)
    assert deadline.seconds == 2


# --- the leader -----------------------------------------------------------------------------------


def test_the_first_live_one_leads_and_stays():
    leadership = Leadership([2, 0, 1])
    assert leadership.leader({0, 1}) == 0 and leadership.leader({0, 1, 2}) == 2 and leadership.leader({3}) is None
    assert leadership.claim(0) == 1 and leadership.claim(0) == 1
    # The first worker of the list comes back.
    assert leadership.leader({0, 1, 2}) == 0
    assert leadership.leader({1, 2}) == 2


def test_a_stranger_or_an_older_term_is_not_followed():
    leadership = Leadership([0, 1])
    assert leadership.note(1, 3) and leadership.leader({0, 1}) == 1
    assert not leadership.note(0, 2) and not leadership.note(5, 9)
    assert leadership.leader({0, 1}) == 1
    # At the same term the first worker of the list leads.
    assert leadership.note(0, 3) and leadership.leader({0, 1}) == 0
    assert not leadership.note(1, 3)


@given(st.permutations([0, 1, 2, 3]), st.data())
def test_workers_that_have_heard_all_claims_follow_the_same_leader(leaders, data):
    """The order of the claims and the number of leaders make no difference."""
    claims = data.draw(st.lists(st.tuples(st.sampled_from(leaders), st.integers(1, 5)), min_size=1, max_size=12))
    followers = []
    for _ in range(3):
        follower = Leadership(leaders)
        for sender, term in data.draw(st.permutations(claims)):
            follower.note(sender, term)
        followers.append(follower)
    assert len({(f.term, f.leader({0, 1, 2, 3})) for f in followers}) == 1
    best = max(term for _, term in claims)
    assert followers[0].term == best
    assert followers[0].leader({0, 1, 2, 3}) == min(
        (sender for sender, term in claims if term == best), key=leaders.index
    )


# --- kept messages --------------------------------------------------------------------------------


def layout(codec="raw", fingerprint=b"testtest"):
    return RoundLayout(fingerprint, {"result": (SIZE, CODECS[codec])}, frozenset({"stop"}))


class Sender:
    """A writer of entries as a reader would read them, from one peer's outbox and direct stream."""

    def __init__(self, message_store, sender=1, incarnation="a"):
        self.message_store, self.sender, self.incarnation = message_store, sender, incarnation
        self.sequences = {False: 0, True: 0}

    def publish(self, entries, is_direct=False, skip=0):
        for header, payload in entries:
            self.sequences[is_direct] += 1 + skip
            number = self.sequences[is_direct]
            self.message_store.feed(Entry(self.sender, self.incarnation, number, not skip, header, payload, is_direct))
            skip = 0


def message_store(**options):
    return MessageStore(layout(), 5.0, lambda line: None, **options)


def fields(kind, round, **content):
    return encode_fields(layout(), kind, round, content)


def vector(round, value=1.0):
    values = np.full(SIZE, value, np.float32)
    return encode_vector(layout(), "result", round, Slice(0, SIZE), values, extras={"d_loss": 0.5})


def test_only_the_newest_messages_of_a_kind_and_sender_are_kept():
    box = message_store()
    sender = Sender(box)
    for round in range(1, 20):
        sender.publish(fields("round_start", round, term=1))
    assert [received.round for received in box.kept("round_start")[1]] == list(range(20 - KEPT, 20))
    assert box.received("round_start", 1).round == 19
    assert box.received("round_start", 1, 3) is None and box.received("round_start", 2) is None


def test_a_message_of_a_closed_round_is_late():
    box = message_store()
    sender = Sender(box)
    sender.publish(vector(3), True)
    box.close_round("result", 2)
    assert box.received("result", 1, 3) is not None
    box.close_round("result", 3)
    assert box.received("result", 1, 3) is None
    sender.publish(vector(3), True)
    assert box.counts() == {"late": 1} and box.received("result", 1) is None


def test_membership_follows_the_messages_and_the_leases_of_the_readers():
    box = message_store()
    one, two = Sender(box, 1), Sender(box, 2)
    one.publish(fields("hello", 0, is_joining=False, is_replaying=False))
    two.publish(fields("hello", 0, is_joining=True, is_replaying=False))
    assert box.live() == {1, 2} and box.caught_up() == {1}
    two.publish(fields("hello", 4, is_joining=False, is_replaying=False))
    assert box.caught_up() == {1, 2}
    box.drop(1, "its lease has expired")
    assert box.live() == {2}
    two.publish(fields("goodbye", 9))
    assert box.live() == set() and box.reached(9) == {2} and box.reached(10) == set()
    # The reader still sees the lease for a while, and its end later: the worker has left all the same.
    box.admit(2)
    assert box.live() == set()
    Sender(box, 2, "b").publish(fields("hello", 9, is_joining=True, is_replaying=False))
    assert box.live() == {2} and box.incarnation(2) == "b"


def test_a_misfit_is_counted_and_a_torn_beginning_is_no_offence():
    box, offenders = message_store(), []
    box.refused = lambda sender, incarnation: offenders.append((sender, incarnation))
    other = RoundLayout(b"otherrun", {"result": (SIZE, CODECS["raw"])})
    one = Sender(box)
    one.publish(encode_fields(other, "round_start", 1, {}))
    one.publish(fields("hello", 0))
    assert box.counts() == {"fingerprint": 1, "malformed": 1}
    # The reader begins in the middle: with the end of a message whose beginning was trimmed.
    late = Sender(box, 2)
    late.publish(list(vector(5))[1:], skip=7)
    late.publish(vector(6))
    # The torn message is counted, and no offence of its sender.
    assert box.counts() == {"fingerprint": 1, "malformed": 1, "incomplete": 1} and (2, "a") not in offenders
    assert box.received("result", 2).round == 6
    # A torn message in the middle of a stream is an offence.
    late.publish(list(vector(7))[1:])
    assert box.counts()["incomplete"] == 2 and (2, "a") in offenders


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_that_a_peer_sends_gets_through_as_an_error(header, payload):
    box = message_store()
    box.feed(Entry(1, "a", 1, True, header, payload))
    assert not box.kept("round_start") and sum(box.counts().values()) == 1


# --- rounds ---------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "redis"])
def make_rounds(request):
    opened = []

    def make(workers, codec="raw", deadline=(0.1, 60.0)):
        buses = memory_buses(workers)
        if request.param == "redis":
            buses = redis_buses(workers, request.getfixturevalue("redis_url"), f"rounds{next(RUNS)}")
        opened.extend(buses)
        incarnations = {bus.worker: bus.incarnation for bus in buses}
        for bus in buses:
            # A worker without a lease counts as dead.
            bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 60.0, lambda old: True)
        for bus in buses:
            rounds = Rounds(
                *(bus, layout(codec), Leadership([0, 1]), Deadline(*deadline), 30.0, 20.0, 20.0, lambda line: None)
            )
            opened.append(rounds)
            rounds.start(
                Start("together", 0, {p: incarnation for p, incarnation in incarnations.items() if p != bus.worker}), 0
            )
        return [rounds for rounds in opened if isinstance(rounds, Rounds)]

    yield make
    for thing in reversed(opened):
        thing.close()


def test_answers_are_gathered_by_sender(make_rounds):
    first, *others = make_rounds(4)
    values = [np.full(SIZE, worker, np.float32) for worker in range(4)]

    def answer(worker):
        rounds = others[worker - 1]
        rounds.until(lambda: rounds.newest(), lambda: "the round")
        sender, received = rounds.newest()
        assert sender == 0 and received.fields["cohort"] == [1, 2, 3]
        rounds.send(0, "result", 1, values[worker], {"d_loss": 0.25 * worker})

    def lead():
        first.open("result", 1)
        first.publish("round_start", 1, {"term": 1, "cohort": [1, 2, 3]})
        return first.gather("result", 1, [1, 2, 3], 3, 20.0)

    gathered, *_ = in_threads([lead, *(lambda w=w: answer(w) for w in (1, 2, 3))])
    assert list(gathered.answers) == [1, 2, 3] and not gathered.missing and not gathered.is_void
    for worker, message in gathered.messages.items():
        np.testing.assert_array_equal(message.values, values[worker])
        assert message.extras == {"d_loss": 0.25 * worker}
    assert len(first.deadline.to_plain()) == 3


def test_a_gather_ends_when_the_missing_are_gone_and_is_void_under_its_quorum(make_rounds):
    first, second, third = make_rounds(3)
    second.send(0, "result", 1, np.ones(SIZE, np.float32))
    first.until(lambda: first.messages.received("result", 1), lambda: "the answer")
    first.messages.drop(2, "its lease has expired")
    gathered = first.gather("result", 1, [1, 2], 2, 20.0)
    assert list(gathered.answers) == [1] and gathered.missing == (2,) and gathered.is_void
    # The deadline ends the gather as well; a later answer is late, and the deadline learns from it.
    first.messages.admit(2)
    first.open("result", 2)
    second.send(0, "result", 2, np.ones(SIZE, np.float32))
    first.until(lambda: first.messages.received("result", 1, 2), lambda: "the answer")
    gathered = first.gather("result", 2, [1, 2], 1, 0.05)
    assert gathered.missing == (2,) and not gathered.is_void
    known = len(first.deadline.to_plain())
    third.send(0, "result", 2, np.ones(SIZE, np.float32))
    first.until(lambda: first.messages.counts().get("late"), lambda: "the late answer")
    assert len(first.deadline.to_plain()) == known + 1


def test_a_worker_restarted_since_it_was_asked_is_not_awaited(make_rounds):
    first, second, third = make_rounds(3)
    incarnations = {worker: first.messages.incarnation(worker) for worker in (1, 2)}
    assert incarnations == {rounds._bus.worker: rounds._bus.incarnation for rounds in (second, third)}
    second.send(0, "result", 1, np.ones(SIZE, np.float32))
    third.publish("stop", 0, {})
    first.until(lambda: first.messages.kept("stop"), lambda: "the last words of that incarnation")
    # The worker is live in an incarnation that nobody has asked.
    (header, payload), *_ = encode_fields(first._layout, "hello", 7, {"is_joining": False, "is_replaying": False})
    first.messages.feed(Entry(2, "another", 1, True, header, payload))
    assert first.messages.is_member(2)
    gathered = first.gather("result", 1, [1, 2], 1, 20.0, incarnations=incarnations)
    assert list(gathered.answers) == [1] and gathered.missing == (2,)
    assert first.wait_s < 10


@pytest.mark.parametrize("codec", ["raw", "float16", "int8"])
def test_vectors_are_put_fetched_and_forgotten(make_rounds, codec):
    first, second = make_rounds(2)
    values = np.linspace(-1, 1, SIZE, dtype=np.float32)
    sizes = {"model": SIZE, "small": 3}
    small = np.array([1, 2, 3], np.float32)
    first.put("m1", {"model": values, "small": small}, {"note": 7}, CODECS[codec])
    first.drain()
    arrays, meta = second.fetch(0, first._bus.incarnation, "m1", sizes, CODECS[codec])
    assert meta == {"note": 7}
    np.testing.assert_allclose(arrays["model"], values, atol=0 if codec == "raw" else 0.01)
    np.testing.assert_allclose(arrays["small"], small, atol=0 if codec == "raw" else 0.02)
    expected = encoded_bytes(SIZE, CODECS[codec]) + encoded_bytes(3, CODECS[codec])
    assert 0 <= second._bus.received_bytes - expected < 1024
    first.forget("m1", sizes, CODECS[codec])
    first.drain()
    with pytest.raises(StalledError):
        second.fetch(0, first._bus.incarnation, "m1", sizes, CODECS[codec])


def test_the_newest_announcement_is_of_the_highest_term(make_rounds):
    first, second, third = make_rounds(3)
    first.publish("round_start", 9, {"term": 1})
    second.publish("round_start", 8, {"term": 2})
    third.publish("round_start", 99, {"term": 3})  # Worker 2 may not lead.
    for rounds in (first, third):
        rounds.until(lambda r=rounds: r.messages.received("round_start", 1), lambda: "the second claim")
    third.until(lambda: third.messages.received("round_start", 0), lambda: "the first claim")
    sender, received = third.newest()
    assert (sender, received.round) == (1, 8)
    assert third.leader() == first.leader() == 1


def test_finish_waits_for_everybody(make_rounds):
    fleet = make_rounds(3)
    in_threads([lambda r=r: r.finish(5) for r in fleet])
    for worker, rounds in enumerate(fleet):
        assert rounds.messages.reached(5) == {0, 1, 2} - {worker}


def test_a_failed_publication_is_not_taken_for_published(make_rounds):
    first, _ = make_rounds(2)
    first._session.stall_timeout_s = 0.2
    held = threading.Event()
    first._session._sender.submit(lambda: held.wait(20))
    with pytest.raises(StalledError, match="has not taken everything within"):
        first.drain()
    held.set()
