"""The message store with damaged entries, entries of another incarnation, late ones, and peers that are gone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from peers.codecs.exact import Raw
from peers.rounds.deadline import Deadline
from peers.rounds.layout import RoundLayout
from peers.rounds.messages import REMEMBERED, MessageStore, TimedMessageStore
from peers.types import Entry, Slice
from peers.wire.encode import encode_fields, encode_vector


class Small(Raw):
    """A codec with chunks of four values."""

    chunk_values = 4


LAYOUT = RoundLayout(b"testtest", {"result": (6, Small()), "feedback": (6, Small())})


class Post:
    """A message store, and entries for it as a reader would read them."""

    def __init__(self, box=None):
        self.lines, self.offenders = [], []
        self.box = box or MessageStore(LAYOUT, 5.0, self.lines.append)
        self.box.refused = lambda sender, incarnation: self.offenders.append((sender, incarnation))
        self.sequences = {}

    def entries(self, pairs, sender=1, incarnation="a", is_direct=False, is_contiguous=True):
        found = []
        for header, payload in pairs:
            number = self.sequences[sender, incarnation, is_direct] = (
                self.sequences.get((sender, incarnation, is_direct), 0) + 1
            )
            found.append(Entry(sender, incarnation, number, is_contiguous, bytes(header), bytes(payload), is_direct))
            is_contiguous = True
        return found

    def feed(self, *entries, may_come_again=False):
        return [self.box.feed(entry, may_come_again) for entry in entries]

    def publish(self, kind, round=1, sender=1, incarnation="a", **content):
        self.feed(*self.entries(encode_fields(LAYOUT, kind, round, content), sender, incarnation))

    def vector(self, round, value=1.0, kind="result", **where):
        values = np.full(6, value, np.float32)
        return self.entries(encode_vector(LAYOUT, kind, round, Slice(0, 6), values), **where)

    def values(self, round=None, kind="result"):
        received = self.box.received(kind, 1, round)
        return received and received.values.tolist()


def spoiled(entry):
    """The entry with one bit changed on its way."""
    return entry._replace(payload=bytes([entry.payload[0] ^ 1]) + entry.payload[1:])


# --- entries --------------------------------------------------------------------------------------


def test_an_entry_that_changed_on_its_way_is_asked_for_again_and_then_counts():
    post = Post()
    first, second = post.vector(3)
    assert post.feed(first) == [True] and post.feed(spoiled(second), may_come_again=True) == [False]
    assert post.values() is None and post.box.counts() == {}
    assert post.feed(second) == [True]
    assert post.values(3) == [1.0] * 6 and post.offenders == []


def test_an_entry_that_changed_on_its_way_is_no_offence_of_its_sender_nor_are_the_next_ones():
    post = Post()
    post.feed(*post.vector(2))
    first, second = post.vector(3)
    post.feed(spoiled(first), second)
    assert post.box.counts() == {"checksum": 1, "incomplete": 1} and post.offenders == []
    # The next message is whole. After it, a chunk without those before it is an offence of the sender.
    post.feed(*post.vector(4))
    assert post.values(4) == [1.0] * 6
    post.feed(post.vector(5)[1])
    assert post.box.counts() == {"checksum": 1, "incomplete": 2} and post.offenders == [(1, "a")]


def test_a_malformed_or_foreign_message_is_an_offence_of_that_incarnation():
    post = Post()
    post.publish("hello", incarnation="b", is_replaying=False)
    assert post.box.counts() == {"malformed": 1} and post.offenders == [(1, "b")]
    other = RoundLayout(b"otherrun", LAYOUT.kinds)
    post.feed(*post.entries(encode_fields(other, "stop", 1, {}), incarnation="b"))
    assert post.box.counts() == {"malformed": 1, "fingerprint": 1} and post.offenders == [(1, "b")] * 2


def test_a_stream_that_was_cut_off_is_read_from_its_next_whole_message_on():
    post = Post()
    post.feed(*post.vector(1), post.vector(2)[0])
    # The reader was too slow, and the stream goes on in the middle of a message. The gap is counted, and no offence.
    tail = post.vector(3)[1]
    post.feed(tail._replace(is_contiguous=False))
    assert post.box.counts() == {"incomplete": 1} and post.values(3) is None
    post.feed(*post.vector(4, 2.0))
    assert post.values(4) == [2.0] * 6 and post.offenders == []
    post.feed(post.vector(5)[1])
    assert post.box.counts() == {"incomplete": 2} and post.offenders == [(1, "a")]


@pytest.mark.parametrize("is_direct", [False, True])
def test_a_new_incarnation_finishes_no_message_of_the_one_before(is_direct):
    post = Post()
    post.feed(post.vector(1, is_direct=is_direct)[0])
    later = post.vector(1, 2.0, incarnation="b", is_direct=is_direct)
    post.feed(later[1])
    assert post.box.incarnation(1) == "b" and post.values() is None
    # The beginning of the message may lie before the first entry that was read.
    assert post.box.counts() == {"incomplete": 1} and post.offenders == []
    post.feed(*later)
    assert post.values(1) == [2.0] * 6 and post.box.received("result", 1).incarnation == "b"


def test_streams_of_one_sender_do_not_mix():
    post = Post()
    to_all, to_me = post.vector(1, 1.0), post.vector(2, 2.0, "feedback", is_direct=True)
    post.feed(to_all[0], to_me[0], to_all[1], to_me[1])
    assert post.values(1) == [1.0] * 6 and post.values(2, "feedback") == [2.0] * 6


# --- kept messages --------------------------------------------------------------------------------


def test_the_newest_message_of_a_round_or_of_all_rounds_counts():
    post = Post()
    for round, value in ((1, 1.0), (2, 2.0), (2, 3.0)):
        post.feed(*post.vector(round, value))
    assert post.values() == post.values(2) == [3.0] * 6 and post.values(1) == [1.0] * 6
    taken = post.box.take("result", 1)
    assert taken.values.tolist() == [3.0] * 6
    assert post.box.take("result", 1) is None and post.values() is None


def test_closing_a_round_closes_those_before_it_and_no_other_kind():
    post = Post()
    for round in (1, 2, 3, 4):
        post.feed(*post.vector(round))
    post.feed(*post.vector(2, kind="feedback"))
    post.box.close_round("result", 3)
    assert [post.values(round) is None for round in (1, 2, 3, 4)] == [True, True, True, False]
    assert post.values(2, "feedback") == [1.0] * 6
    # A closed round stays closed.
    post.box.close_round("result", 1)
    for round in (2, 3, 5):
        post.feed(*post.vector(round))
    assert post.box.counts() == {"late": 2} and post.values(2) is None and post.values(5) is not None


def test_answers_in_time_and_late_ones_are_measured_from_when_their_round_was_opened():
    clock = [10.0]
    deadline = Deadline(0.1, 100.0)
    post = Post(TimedMessageStore(deadline, LAYOUT, 5.0, lambda line: None, lambda: clock[0]))
    post.box.open_round("result", 1)
    clock[0] = 13.0
    post.feed(*post.vector(1))
    assert post.box.received("result", 1).at_s == 13.0
    clock[0] = 17.0
    post.box.note_answer("result", 1, post.box.received("result", 1).at_s)
    post.box.close_round("result", 1)
    clock[0] = 30.0
    post.feed(*post.vector(1, sender=2))
    # The store knows no time for an answer to a round that was not opened.
    post.box.note_answer("result", 2, 31.0)
    post.box.note_answer("feedback", 1, 31.0)
    assert deadline.to_plain() == [3.0, 20.0]
    # The newest of many rounds are remembered.
    for round in range(2, 2 + REMEMBERED):
        clock[0] += 1.0
        post.box.open_round("result", round)
    for round in (1, 2):
        post.box.note_answer("result", round, clock[0] + 1.0)
    assert deadline.to_plain() == [3.0, 20.0, float(REMEMBERED)]


# --- present peers --------------------------------------------------------------------------------


def test_a_restarted_peer_is_live_and_catches_up_until_it_publishes_otherwise():
    post = Post()
    post.publish("hello", is_joining=False, is_replaying=False)
    assert post.box.caught_up() == {1} and post.box.incarnations() == {1: "a"}
    post.box.restarted(1, "b")
    assert post.box.live() == {1} and post.box.caught_up() == set() and post.box.incarnation(1) == "b"
    post.publish("hello", incarnation="b", is_joining=True, is_replaying=False)
    assert post.box.caught_up() == set()
    post.publish("hello", incarnation="b", is_joining=False, is_replaying=False)
    assert post.box.caught_up() == {1}


def test_a_gone_peer_is_logged_once_unless_it_has_said_goodbye():
    post = Post()
    post.box.admit(1)
    post.box.admit(1)
    post.box.admit(2)
    assert post.lines == ["worker 1 takes part", "worker 2 takes part"]
    post.publish("goodbye", 7, sender=2)
    for _ in range(2):
        post.box.drop(1, "its lease has expired")
        post.box.drop(2, "its lease has expired")
    assert post.lines[2:] == [
        "worker 2 has said goodbye",
        "worker 1 is gone: its lease has expired; going on without it",
    ]
    assert post.box.reached(7) == {2} and post.box.reached(8) == set() and not post.box.is_member(1)
    # Worker 1 was cut off for a time, and worker 2 has another incarnation after its goodbye.
    post.box.admit(1)
    post.publish("hello", 7, sender=2, incarnation="b", is_joining=False, is_replaying=False)
    assert post.box.live() == {1, 2}
    post.box.drop(2, "its lease has expired")
    assert post.box.reached(7) == {1}, "the new incarnation has not said goodbye"


@pytest.mark.parametrize(
    "change",
    [
        lambda post: post.feed(*post.vector(1)),
        lambda post: post.publish("hello", is_joining=False, is_replaying=False),
        lambda post: post.publish("goodbye"),
        lambda post: post.box.admit(1),
        lambda post: post.box.drop(1, "its lease has expired"),
        lambda post: post.box.restarted(1, "b"),
        lambda post: post.box.touch(),
    ],
    ids=["message", "hello", "goodbye", "admit", "drop", "restarted", "touch"],
)
def test_every_change_wakes_the_waiting_threads(change):
    """A waiting thread looks again after a second in any case, and that would hide a missing wake-up."""
    post, is_asleep, has_changed, woken = Post(), threading.Event(), [], []
    post.publish("hello", is_joining=True, is_replaying=False)
    wait = post.box._changed.wait

    def sleep(timeout_s):
        is_asleep.set()
        woken.append(wait(4.0))

    def act():
        is_asleep.wait(60)
        has_changed.append(True)
        change(post)

    post.box._changed.wait = sleep
    other = threading.Thread(target=act)
    other.start()
    post.box.until(lambda: has_changed, lambda: "the change", 60)
    other.join()
    assert woken == [True]
