"""The MACs of the run key: a receiver accepts nothing but exactly the bytes that were signed, in exactly that place."""

from __future__ import annotations

import os

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.bus.redis.bus import RedisBus
from peers.bus.redis.mac import KEY_BYTES, MAC_BYTES, MARK, REMEMBERED, Macs, Watch
from peers.errors import DisagreementError, MessageError
from peers.session.meet import Rendezvous
from tests.fleets import in_threads
from tests.peers.bus.test_bus import lease, read

RUNS = iter(range(10**6))
KEY, OTHER = bytes(range(KEY_BYTES)), bytes(KEY_BYTES)

names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=12)
keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
blobs = st.binary(max_size=40)
places = st.tuples(keys, names, st.integers(0, 2**64 - 1), blobs, blobs)


@settings(deadline=None, max_examples=300)
@given(places, places, st.data())
def test_a_mac_is_of_one_entry_in_one_place_only(one, other, data):
    key, name, number, header, payload = one
    mac = Macs(key, name).of_entry(number, header, payload)
    assert len(mac) == MAC_BYTES
    assert Macs(key, name).is_of_entry(mac, number, bytearray(header), memoryview(payload))
    # Each of the pieces comes from one of two entries.
    mixed = [data.draw(st.sampled_from(pair)) for pair in zip(one, other, strict=True)]
    is_same = Macs(mixed[0], mixed[1]).is_of_entry(mac, *mixed[2:])
    assert is_same == (tuple(mixed) == one)


@settings(deadline=None)
@given(names, st.integers(0, 2**64 - 1), st.binary(max_size=30), st.integers(0, 29))
def test_the_mac_covers_the_end_of_the_header(name, number, text, cut):
    cut = min(cut, len(text))
    macs = Macs(KEY, name)
    moved = macs.of_entry(number, text[: cut + 1], text[cut + 1 :])
    assert (macs.of_entry(number, text[:cut], text[cut:]) == moved) == (cut == len(text))


@settings(deadline=None, max_examples=200)
@given(names, names, blobs, st.data())
def test_a_field_opens_only_whole_and_under_its_own_name(name, field, value, data):
    macs = Macs(KEY, name)
    with_mac = macs.with_mac(field, value)
    assert with_mac.startswith(MARK) and macs.opened(field, with_mac) == value
    other = data.draw(names)
    assert macs.opened(other, with_mac) == (value if other == field else None)
    assert Macs(KEY, name + "x").opened(field, with_mac) is None
    assert Macs(OTHER, name).opened(field, with_mac) is None
    at, bit = data.draw(st.integers(0, len(with_mac) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(with_mac)
    changed[at] ^= 1 << bit
    assert macs.opened(field, bytes(changed)) is None
    assert macs.opened(field, with_mac[: data.draw(st.integers(0, len(with_mac) - 1))]) is None


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes, not 5"):
        Macs(b"short", "x")


def test_a_watch_knows_a_replay_from_a_forgery_and_forgets_in_time():
    watch, out, other = Watch(), Macs(KEY, "degan:r:0:a:out"), Macs(KEY, "degan:r:0:b:out")
    mac = out.of_entry(1, b"h", b"p")
    assert watch.refusal(out, 2, b"h", b"p", mac) == "mac", "it has not been seen in its own place"
    assert watch.refusal(out, 1, b"h", b"p", mac) is None
    assert watch.refusal(out, 2, b"h", b"p", mac) == "replayed"
    assert watch.refusal(other, 1, b"h", b"p", mac) == "replayed", "another incarnation"
    assert watch.refusal(out, 2, b"h", b"q", mac) == "mac", "the MAC of one, the payload of another"
    assert watch.refusal(out, 2, b"h", b"p", b"") == "mac"
    for number in range(10, 10 + REMEMBERED):
        assert watch.refusal(out, number, b"", b"", out.of_entry(number, b"", b"")) is None
    assert watch.refusal(out, 2, b"h", b"p", mac) == "mac"
    assert len(watch._seen) == REMEMBERED


# --- on the wire -------------------------------------------------------------------------------------


class Town:
    """Two workers of one run over one Redis, and an attacker who can write there without the key."""

    def __init__(self, url, run_keys=(KEY, KEY)):
        self.run, self.lines = f"mac{os.getpid()}-{next(RUNS)}", []
        self.attacker = redis.Redis.from_url(url, protocol=2)
        self.writer, self.reader = (
            RedisBus(self.run, k, [url] * 2, f"life{k}", [1 - k], 10, 5, self.lines.append, run_key=run_keys[k])
            for k in range(2)
        )

    def key(self, rest):
        return f"degan:{self.run}:0:{rest}"

    def close(self):
        for one in (self.writer, self.reader, self.attacker):
            one.close()


@pytest.fixture
def town(redis_url):
    town = Town(redis_url)
    yield town
    town.close()


def genuine(town, count):
    town.writer.publish([(b"h%d" % k, b"payload %d" % k) for k in range(1, count + 1)])
    return town.attacker.xrange(town.key("life0:out"))


def test_foreign_entries_of_a_stream_are_refused_counted_and_logged_once(town):
    first, second, third = (fields for _, fields in genuine(town, 3))
    town.reader.follow(0, "life0")
    assert [entry.sequence for entry in read(town.reader, 3)] == [1, 2, 3]
    out = town.key("life0:out")
    town.attacker.xadd(out, {b"h": b"h4", b"d": b"no MAC"}, "4-0")
    town.attacker.xadd(out, {**first, b"d": b"payload x"}, "5-0")
    town.attacker.xadd(out, {**second, b"s": first[b"s"]}, "6-0")
    town.attacker.xadd(out, first, "7-0")
    town.attacker.xadd(out, second, "8-0")
    town.attacker.xadd(out, {b"x": b"y"}, "9-0")
    town.attacker.xadd(out, third, "9-1")
    town.attacker.xadd(town.key("life0:to:1"), third, "3-0")
    town.writer._sequences[out] = 9
    town.writer.publish([(b"h", b"the next")])
    entries = read(town.reader, 1)
    assert [(e.sequence, e.is_contiguous, bytes(e.payload)) for e in entries] == [(10, False, b"the next")]
    while sum(town.reader.refused().values()) < 8:
        assert town.reader.receive(0, 5) == []
    assert town.reader.refused() == {"mac": 4, "replayed": 4}
    assert len(town.lines) == 2
    assert town.lines[0] == (
        "worker 0: entry 4 of its outbox does not bear this run's MAC: it was changed on its way, or written by "
        "someone without the run key; refused (said once, and counted as 'mac')"
    )
    assert "is one that was said before, put in another place" in town.lines[1]


def test_the_same_number_under_a_second_id_is_a_replay(town):
    (_, fields), *_ = genuine(town, 1)
    town.attacker.xadd(town.key("life0:out"), fields, "1-1")
    town.reader.follow(0, "life0")
    assert [entry.sequence for entry in read(town.reader, 1)] == [1]
    assert town.reader.receive(0, 5) == []
    assert town.reader.refused() == {"replayed": 1}
    assert town.reader.receive(0, 0.01) == [], "it is not asked for again"
    assert town.reader.refused() == {"replayed": 1}


def test_a_repeated_answer_of_a_redis_is_taken_once(town):
    """An attacker on the way, or a Redis in other hands, may repeat an answer."""
    ((item_id, fields),) = genuine(town, 1)
    town.reader.follow(0, "life0")
    assert len(read(town.reader, 1)) == 1
    (reader,) = town.reader._readers
    stream = reader._streams[town.key("life0:out").encode()]
    key = town.key("life0:out").encode()
    _, entries, after, _ = reader._take(stream, key, [[item_id, [part for pair in fields.items() for part in pair]]])
    assert (entries, after) == ([], 1) and town.reader.refused() == {"replayed": 1}


@pytest.mark.parametrize("place", ["header", "payload", "mac"])
def test_any_changed_byte_of_an_entry_is_refused(town, place):
    town.writer.publish([(b"head", b"body")])
    fields = town.attacker.xrange(town.key("life0:out"))[0][1]
    received = {"header": b"h", "payload": b"d", "mac": b"s"}[place]
    whole = fields[received]
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        town.attacker.xadd(town.key("forged:out"), {**fields, received: changed}, f"{at + 1}-0")
    town.reader.follow(0, "forged")
    while sum(town.reader.refused().values()) < len(whole):
        assert town.reader.receive(0, 5) == []
    assert town.reader.refused() == {"mac": len(whole)}


def test_a_state_is_taken_only_with_its_mac(town):
    town.writer.put_state({"hello": b"mine", "model": memoryview(b"weights")}, 20)
    names = ["hello", "model", "none"]
    assert town.reader.get_state(0, "life0", names) == {"hello": b"mine", "model": b"weights"}
    state = town.key("life0:state")
    town.attacker.hset(state, "hello", town.attacker.hget(state, "model"))
    with pytest.raises(MessageError, match="the field hello of worker 0's state does not bear this run's MAC"):
        town.reader.get_state(0, "life0", ["hello"])
    town.attacker.hset(state, "model", b"\x80")
    with pytest.raises(MessageError, match="mac"):
        town.reader.get_state(0, "life0", ["model"])
    assert town.reader.refused() == {"mac": 2} and len(town.lines) == 1


def test_a_lease_is_taken_only_with_its_mac(town):
    town.writer.claim(lease(town.writer), 20, lambda old: False)
    assert town.reader.leases(0)[0].incarnation == "life0"
    town.attacker.set(town.key("lease"), town.attacker.get(town.key("lease"))[:-1] + b"\x07", keepttl=True)
    assert town.reader.leases(0)[0] is None
    assert town.reader.leases(0)[0] is None
    assert town.reader.strangers() == {0: "it has another run key than this worker"}
    assert len(town.lines) == 1 and "worker 0: its lease does not bear this run's MAC" in town.lines[0]
    assert town.writer.renew(lease(town.writer, beat=2), 20) == "restored"
    assert town.reader.leases(0)[0].beat == 2 and town.reader.strangers() == {}
    assert town.reader.refused() == {}, "a lease is no message"


@pytest.mark.parametrize(
    ("run_keys", "reasons"),
    [
        ((KEY, None), ("it has no run key and this worker has one", "it has a run key and this worker has none")),
        ((KEY, OTHER), ("it has another run key than this worker",) * 2),
    ],
)
def test_workers_with_different_run_keys_report_that_at_once(redis_url, run_keys, reasons):
    town = Town(redis_url, run_keys)
    meetings = [Rendezvous(bus, {"a": 1}, 20, 30, lambda line: None, print) for bus in (town.writer, town.reader)]

    def meet(number):
        meetings[number].claim([])
        with pytest.raises(DisagreementError) as caught:
            meetings[number].meet([], {})
        return str(caught.value)

    try:
        # Both errors come within five seconds: neither worker waits for the 30 s of the other.
        said = in_threads([lambda: meet(0), lambda: meet(1)], timeout_s=15)
        assert all(reason in line and "run.key" in line for reason, line in zip(reasons, said, strict=True)), said
        with pytest.raises(DisagreementError, match="someone else is worker 1: it has"):
            twin = RedisBus(town.run, 1, [redis_url] * 2, "twin", [0], 10, 5, run_key=run_keys[0])
            try:
                twin.claim(lease(twin), 20, lambda old: True)
            finally:
                twin.close()
    finally:
        for one in (*meetings, town):
            one.close()


def test_without_a_run_key_nothing_changes_on_the_wire(redis_url):
    town = Town(redis_url, (None, None))
    try:
        ((_, fields),) = genuine(town, 1)
        assert set(fields) == {b"h", b"d"}
        town.writer.put_state({"hello": b"x"}, 20)
        assert town.attacker.hget(town.key("life0:state"), "hello") == b"x"
        town.attacker.xadd(town.key("life0:out"), fields, "1-5")
        town.reader.follow(0, "life0")
        assert len(read(town.reader, 1)) == 1
        assert town.reader.receive(0, 5) == []
        assert town.reader.refused() == {"malformed": 1}, "an id that no worker gives"
    finally:
        town.close()
