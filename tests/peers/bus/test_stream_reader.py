"""The reader of a stream takes ascending numbers and real gaps, and of each answer everything or nothing."""

from __future__ import annotations

import pytest
import redis

from peers.bus.redis.authenticate import Authenticator
from peers.bus.redis.bus import RedisBus
from peers.bus.redis.client import Reader
from peers.bus.redis.keys import Keys
from peers.bus.redis.mac import Macs
from peers.bus.redis.resp import Busy, ReplyError
from peers.errors import BusError
from tests.peers.bus.test_bus import read

OUT, DIRECT = "degan:r:1:a1:out", "degan:r:1:a1:to:0"
RUN_KEY = bytes(range(32))


class Client:
    """The part of redis-py that a look-up needs: the entries of a stream."""

    def __init__(self, *numbers):
        self.numbers, self.asked = numbers, []

    def xrange(self, key, min, count):
        self.asked.append((key.decode(), min))
        first = int(min.partition(b"-")[0])
        return [(b"%d-0" % number, {}) for number in self.numbers if number >= first][:count]


class Link:
    """A connection that gives one answer after the other, and keeps the questions."""

    def __init__(self, *answers):
        self.answers, self.asked, self.closed = list(answers), [], 0

    def send_small(self, text):
        self.asked.append(text)

    def read(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception) and not isinstance(answer, ReplyError):
            raise answer
        return answer

    def close(self):
        self.closed += 1


def entry(item_id, payload=b"p", mac=None):
    return [item_id, [b"h", b"head", *([b"s", mac] if mac else []), b"d", payload]]


def reading(link, client, run_key=None, after=0):
    reader = Reader(client, "host:1", Busy(), Authenticator(run_key, Keys("r"), lambda line: None))
    reader.follow(1, "a1", after, OUT, DIRECT)
    reader._link = link
    return reader


def receive(reader):
    return [(e.sequence, e.is_contiguous, bytes(e.payload), e.is_direct) for e in reader.receive(0.01, 1000)]


def cursors(text):
    """The positions from which a question asks."""
    return text.split(b"\r\n")[-4:-1:2]


def test_entries_are_taken_in_order_and_the_next_are_asked_for_from_there():
    answer = [[OUT.encode(), [entry(b"1-0"), entry(b"2-0", b"q")]], [DIRECT.encode(), [entry(b"1-0", b"r")]]]
    link = Link(answer)
    reader = reading(link, Client(1, 2))
    assert receive(reader) == [(1, True, b"p", False), (2, True, b"q", False), (1, True, b"r", True)]
    assert [cursors(text) for text in link.asked] == [[b"0-0", b"0-0"], [b"2-0", b"1-0"]]
    assert reader.received_bytes == 3 * len(b"head") + 3


def test_after_an_empty_answer_the_same_question_is_asked_again():
    """Each answer belongs to one question: a reader without a question would wait for nothing."""
    link = Link(None, None, [[OUT.encode(), [entry(b"1-0")]]])
    reader = reading(link, Client(1))
    assert [receive(reader) for _ in range(3)] == [[], [], [(1, True, b"p", False)]]
    assert [cursors(text) for text in link.asked] == [[b"0-0", b"0-0"]] * 3 + [[b"1-0", b"0-0"]]


def test_a_gap_is_looked_up_and_a_real_one_is_seen():
    link, client = Link([[OUT.encode(), [entry(b"5-0"), entry(b"6-0")]]]), Client(5, 6)
    reader = reading(link, client, after=2)
    assert receive(reader) == [(5, False, b"p", False), (6, True, b"p", False)]
    assert client.asked == [(OUT, b"3-0")]


@pytest.mark.parametrize(
    "number",
    [
        b"0-0",
        b"1-0",
        b"2-0",
        b"4-0",
        b"9-0",
        b"18446744073709551615-0",
        b"18446744073709551616-0",
        b"-1-0",
        b"x-0",
        b"",
    ],
)
def test_a_number_of_another_entry_is_an_error_and_nothing_is_taken(number):
    """The number changed on its way, and no checksum covers it. All entries of that answer come once more."""
    right, wrong = [entry(b"%d-0" % k) for k in (1, 2, 3)], [entry(b"1-0"), entry(b"2-0"), entry(number)]
    link, again = Link([[OUT.encode(), wrong]]), Link([[OUT.encode(), right]])
    reader = reading(link, Client(1, 2, 3))
    with pytest.raises(BusError, match="host:1 says what no Redis says"):
        reader.receive(0.01, 1000)
    assert link.closed == 1 and reader.received_bytes == 0
    reader._link = again
    assert [found[0] for found in receive(reader)] == [1, 2, 3]
    assert cursors(again.asked[0]) == [b"0-0", b"0-0"]


def test_an_entry_with_a_number_too_large_for_any_is_an_error_even_if_it_is_the_only_one():
    for run_key in (None, RUN_KEY):
        reader = reading(Link([[OUT.encode(), [entry(b"18446744073709551616-0")]]]), Client(), run_key)
        with pytest.raises(BusError, match="says what no Redis says"):
            reader.receive(0.01, 1000)


def test_with_macs_a_repeated_entry_is_a_replay_and_the_next_one_is_taken():
    macs = Macs(RUN_KEY, OUT)
    one, two = (entry(b"%d-0" % k, b"p", macs.of_entry(k, b"head", b"p")) for k in (1, 2))
    link = Link([[OUT.encode(), [one, one, two]]])
    reader = reading(link, Client(1, 2), RUN_KEY)
    assert receive(reader) == [(1, True, b"p", False), (2, True, b"p", False)]
    assert reader._authenticator.refusals.counts() == {"replayed": 1}
    assert cursors(link.asked[1]) == [b"2-0", b"0-0"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [(ReplyError("NOPERM no permission"), "NOPERM no permission"), (ConnectionError("closed"), "closed")],
)
def test_a_refusal_and_a_broken_link_are_raised_and_the_reader_begins_anew(answer, words):
    link = Link(answer)
    reader = reading(link, Client())
    with pytest.raises(BusError, match=f"Redis at host:1: {words}"):
        reader.receive(0.01, 1000)
    assert link.closed == 1 and reader._link is None and reader._asked is None


def test_a_lookup_that_fails_takes_nothing():
    class Away:
        def xrange(self, key, min, count):
            raise redis.ConnectionError("away")

    reader = reading(Link([[OUT.encode(), [entry(b"1-0"), entry(b"3-0")]]]), Away())
    with pytest.raises(BusError, match="Redis at host:1: away"):
        reader.receive(0.01, 1000)
    assert reader._streams[OUT.encode()].after == 0 and reader.received_bytes == 0


def test_entries_that_are_read_again_come_before_later_ones(redis_url):
    """The reader had asked already for the next entries, from behind this one."""
    writer = RedisBus("again", 0, [redis_url] * 2, "a0", [1], 10, 5)
    reader = RedisBus("again", 1, [redis_url] * 2, "a1", [0], 10, 5)
    try:
        reader.follow(0, "a0")
        writer.publish([(b"h", b"%d" % k) for k in range(1, 4)])
        entries = read(reader, 3)
        reader.read_again(entries[1])
        writer.publish([(b"h", b"4")])
        assert [(e.sequence, e.is_contiguous) for e in read(reader, 3)] == [(2, True), (3, True), (4, True)]
    finally:
        writer.close()
        reader.close()
