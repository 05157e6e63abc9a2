"""The goodput of a wire, measured with few bytes: a wire whose speed is known, and the questions to the server."""

from __future__ import annotations

import pytest

from peers.doctor import goodput

ENTRY = 256 * 1024


class Wire:
    """A wire that moves entries in a time of its own; `seconds` is for a call, with any number of entries."""

    def __init__(self, monkeypatch, seconds, most_calls=10**6, last_s=0.0):
        self.now, self.counts, self.seconds, self.most_calls, self.last_s = 50.0, [], seconds, most_calls, last_s
        monkeypatch.setattr(goodput.time, "perf_counter", lambda: self.now)

    def move(self, count):
        if len(self.counts) == self.most_calls:
            self.now += self.last_s
            return 0
        self.counts.append(count)
        self.now += self.seconds
        return count * ENTRY


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [
        # Larger calls follow quick ones, up to eight entries, until four MiB have been moved ...
        (0.1, [1, 2, 4, 8, 8]),
        (0.19, [1, 2, 4, 8, 8]),
        # ... and equal calls follow slow ones, until a second is over.
        (0.2, [1, 1, 1, 1, 1]),
        (0.3, [1, 1, 1, 1]),
        (7.0, [1]),
    ],
)
def test_a_rate_is_all_moved_bytes_over_the_whole_time(monkeypatch, seconds, counts):
    wire = Wire(monkeypatch, seconds)
    assert goodput._rate(wire.move) == pytest.approx(sum(counts) * ENTRY / (len(counts) * seconds))
    assert wire.counts == counts


def test_the_last_question_does_not_count_where_there_is_no_more(monkeypatch):
    wire = Wire(monkeypatch, 0.1, most_calls=2, last_s=5.0)
    assert goodput._rate(wire.move) == pytest.approx(3 * ENTRY / 0.2)
    assert goodput._rate(Wire(monkeypatch, 0.1, most_calls=0).move) is None


class Client:
    """The calls that goodput makes of redis-py, and two streams."""

    streams = {"one": [b"%d-0" % k for k in range(1, 4)], "two": [b"7-0"]}

    def __init__(self):
        self.asked = []

    def pipeline(self, transaction=True):
        self.asked.append(("pipeline", transaction))
        return self

    def xadd(self, key, fields, **options):
        self.asked.append(("xadd", key, {name: len(value) for name, value in fields.items()}, options))
        return self

    def expire(self, key, seconds):
        self.asked.append(("expire", key, seconds))
        return self

    def execute(self):
        self.asked.append("execute")

    def xrange(self, key, min, count):
        self.asked.append((key, min, count))
        ids = self.streams[key]
        begin = 0 if min == "-" else ids.index(min[1:].encode()) + 1
        return [(item_id, {b"h": b"12", b"d": bytes(ENTRY)}) for item_id in ids[begin : begin + count]]


def test_every_stream_is_read_from_its_beginning_to_its_end_once(monkeypatch):
    client, wire = Client(), Wire(monkeypatch, 0.1)

    def ask(question):
        wire.now += 0.1
        return question(client)

    # Four entries came in four answers. One of them waited for the question that found the end of the first stream.
    assert goodput.read_rate(ask, ["one", "two"]) == pytest.approx(4 * (ENTRY + 2) / 0.4)
    assert client.asked == [
        ("one", "-", 1),
        ("one", "(1-0", 2),
        ("one", "(3-0", 4),
        ("two", "-", 4),
        ("two", "(7-0", 4),
    ]
    assert goodput.read_rate(ask, []) is None


def test_written_entries_keep_a_stream_short(monkeypatch):
    client, wire = Client(), Wire(monkeypatch, 0.1)

    def ask(question):
        wire.now += 1.5
        return question(client)

    assert goodput.write_rate(ask, "key") == pytest.approx(ENTRY / 1.5)
    add = ("xadd", "key", {"d": ENTRY}, {"maxlen": 16, "approximate": False})
    assert client.asked == [("pipeline", False), add, "execute"]


def test_a_new_stream_has_an_expiry_from_the_first_moment():
    client = Client()
    goodput.begin_stream(client, "key", b"abc", 60)
    add = ("xadd", "key", {"d": 3}, {"id": "1-0", "maxlen": 1, "approximate": False})
    assert client.asked == [("pipeline", True), add, ("expire", "key", 60), "execute"]
