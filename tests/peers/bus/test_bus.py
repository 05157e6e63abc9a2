"""The contract of the bus on every backend: memory, fakeredis over TCP, a real redis-server, also with MACs."""

from __future__ import annotations

import os
import threading
import time

import pytest

from peers.bus.memory import MemoryHub
from peers.bus.redis.bus import RedisBus
from peers.errors import DuplicateError
from peers.types import Lease
from peers.vectors.graph import complete
from tests.fleets import in_threads

RUNS = iter(range(10**6))


@pytest.fixture(params=["memory", "fake", "redis", "with_mac"])
def open_buses(request):
    """A function that opens the buses of all workers of one run; their incarnations begin with `incarnation`."""
    opened = []
    if request.param == "memory":
        hub = MemoryHub()

        def open_one(worker, workers, incarnation):
            return hub.bus(worker, complete(worker, workers), incarnation)
    else:
        has_mac = request.param == "with_mac"
        url = request.getfixturevalue("redis_url" if has_mac else f"{request.param}_url")
        run_key = os.urandom(32) if has_mac else None
        run = f"contract{os.getpid()}-{next(RUNS)}"

        def open_one(worker, workers, incarnation):
            return RedisBus(
                run, worker, [url] * workers, incarnation, complete(worker, workers), 10, 5, run_key=run_key
            )

    def open_all(workers, incarnation="a"):
        buses = [open_one(worker, workers, f"{incarnation}{worker}") for worker in range(workers)]
        opened.extend(buses)
        return buses

    yield open_all
    assert not any(bus.refused() or bus.strangers() for bus in opened)
    for bus in opened:
        bus.close()


def read(bus, count, timeout_s=5.0):
    """The next `count` entries."""
    found, deadline = [], time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += bus.receive(0, 0.2)
    return found


def lease(bus, **changes):
    return Lease(
        **{"worker": bus.worker, "incarnation": bus.incarnation, "host": "h", "pid": 1, "birth": "", **changes}
    )


def test_entries_arrive_once_in_order_with_their_numbers(open_buses):
    writer, reader = open_buses(2)
    reader.follow(0, "a0")
    payloads = [os.urandom(n) for n in (0, 1, 1000, 262_144, 5)]
    writer.publish([(b"h%d" % k, payload) for k, payload in enumerate(payloads)])
    writer.publish([(b"last", memoryview(b"xyz"))])
    entries = read(reader, 6)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [bytes(entry.payload) for entry in entries] == [*payloads, b"xyz"]
    assert [bytes(entry.header) for entry in entries] == [b"h0", b"h1", b"h2", b"h3", b"h4", b"last"]
    assert all(entry.is_contiguous and entry.sender == 0 and entry.incarnation == "a0" for entry in entries)
    assert reader.receive(0, 0.01) == []
    assert writer.sent_bytes == reader.received_bytes == sum(map(len, payloads)) + 3 + 14


def test_one_entry_serves_every_follower(open_buses):
    writer, *readers = open_buses(4)
    for reader in readers:
        reader.follow(0, "a0")
    writer.publish([(b"h", b"x")])
    assert [len(read(reader, 1)) for reader in readers] == [1, 1, 1]


def test_direct_entries_reach_only_their_peer(open_buses):
    writer, first, second = open_buses(3)
    first.follow(0, "a0")
    second.follow(0, "a0")
    writer.send(1, [(b"h", b"for one")])
    writer.publish([(b"h", b"for all")])
    assert {(bytes(e.payload), e.is_direct) for e in read(first, 2)} == {(b"for one", True), (b"for all", False)}
    assert [(bytes(e.payload), e.is_direct) for e in read(second, 1)] == [(b"for all", False)]
    assert second.receive(0, 0.01) == []


def test_a_reader_that_lags_sees_the_gap(open_buses):
    writer, reader, late = open_buses(3)
    writer.configure(max_entries=3, entry_bytes=100)
    reader.follow(0, "a0")
    writer.publish([(b"h", b"1")])
    assert len(read(reader, 1)) == 1
    for k in range(2, 8):
        writer.publish([(b"h", b"%d" % k)])
    # A second reader follows here, because the next entry may have been on its way to the first reader already.
    late.follow(0, "a0", after=1)
    entries = read(late, 3)
    assert [(e.sequence, e.is_contiguous) for e in entries] == [(5, False), (6, True), (7, True)]
    assert not reader.holds(0, "a0", 3)
    assert reader.holds(0, "a0", 4)
    assert reader.holds(0, "a0", 7)
    assert not reader.holds(0, "a0", 8)
    assert not reader.holds(0, "another incarnation", 0)


def test_a_cursor_can_start_in_the_middle_and_a_new_incarnation_starts_anew(open_buses):
    writer, reader = open_buses(2)
    writer.publish([(b"h", b"%d" % k) for k in range(1, 5)])
    reader.follow(0, "a0", after=2)
    assert [e.sequence for e in read(reader, 2)] == [3, 4]
    reborn, _ = open_buses(2, incarnation="b")
    reborn.publish([(b"h", b"new")])
    assert reader.receive(0, 0.01) == []
    reader.follow(0, "b0")
    assert [(e.sequence, e.incarnation, bytes(e.payload)) for e in read(reader, 1)] == [(1, "b0", b"new")]


def test_receive_waits_for_entries(open_buses):
    writer, reader = open_buses(2)
    reader.follow(0, "a0")
    writer.publish([(b"h", b"first")])
    read(reader, 1)
    waiting = threading.Event()

    def wait():
        waiting.set()
        return read(reader, 1, 10)

    def write():
        assert waiting.wait(5)
        writer.publish([(b"h", b"second")])

    found, _ = in_threads([wait, write])
    assert bytes(found[0].payload) == b"second"


def test_publishing_from_several_threads_loses_nothing(open_buses):
    writer, reader = open_buses(2)
    reader.follow(0, "a0")
    jobs = [lambda k=k: [writer.publish([(b"h", b"%d-%d" % (k, n))]) for n in range(25)] for k in range(4)]
    in_threads([*jobs, lambda: [writer.send(1, [(b"h", b"direct")]) for _ in range(25)]])
    entries = read(reader, 125)
    said = [bytes(e.payload) for e in entries if not e.is_direct]
    assert [e.sequence for e in entries if not e.is_direct] == list(range(1, 101))
    assert sorted(said) == sorted(b"%d-%d" % (k, n) for k in range(4) for n in range(25))
    assert [e.sequence for e in entries if e.is_direct] == list(range(1, 26))


def test_leases_are_exclusive_renewed_and_released(open_buses):
    first, second = open_buses(2)
    twin, _ = open_buses(2, incarnation="twin")
    assert first.claim(lease(first), 20, lambda old: False) is None
    with pytest.raises(DuplicateError, match="already running on h as process 1"):
        twin.claim(lease(twin), 20, lambda old: False)
    assert second.leases(0)[0].incarnation == "a0"
    assert first.renew(lease(first, step=7), 20) == "held"
    assert second.leases(0)[0].step == 7
    replaced = twin.claim(lease(twin), 20, lambda old: True)
    assert replaced.incarnation == "a0"
    assert first.renew(lease(first), 20) == "taken"
    first.release()
    assert second.leases(0)[0].incarnation == "twin0", "a lease is released by its owner only"
    twin.release()
    assert second.leases(0)[0] is None
    assert twin.renew(lease(twin), 20, may_restore=False) == "expired"
    assert second.leases(0)[0] is None
    assert twin.renew(lease(twin), 20) == "restored"
    assert second.leases(0)[0].incarnation == "twin0"
    assert twin.claim(lease(twin), 20, lambda old: False).incarnation == "twin0", "a claim may be said twice"


def test_a_lease_expires(open_buses):
    first, second = open_buses(2)
    first.claim(lease(first), 0.3, lambda old: False)
    deadline = time.monotonic() + 10
    while second.leases(0)[0] is not None:
        assert time.monotonic() < deadline, "the lease does not expire"


def test_states_are_read_by_name(open_buses):
    first, second = open_buses(2)
    first.put_state({"hello": b"1", "blob": memoryview(b"\x00\xff")}, 20)
    first.put_state({"hello": b"2"}, 20)
    assert second.get_state(0, "a0", ["hello", "blob", "none"]) == {"hello": b"2", "blob": b"\x00\xff"}
    assert second.get_state(0, "other", ["hello"]) == {}
    first.delete_state(["blob", "none"])
    first.delete_state([])
    assert second.get_state(0, "a0", ["hello", "blob"]) == {"hello": b"2"}


def test_the_bytes_of_states_are_counted(open_buses):
    writer, reader = open_buses(2)
    writer.put_state({"model": memoryview(bytes(1000)), "name": b"xyz"}, 20)
    writer.put_state({"model": bytes(10)}, 20)
    assert (writer.sent_bytes, writer.received_bytes) == (1013, 0)
    reader.get_state(0, "a0", ["model", "name", "none"])
    reader.get_state(0, "a0", ["model"])
    reader.get_state(0, "other", ["model"])
    assert (reader.sent_bytes, reader.received_bytes) == (0, 23)


def test_the_followed_incarnation_may_change_while_entries_are_on_their_way(open_buses):
    writer, reader = open_buses(2)
    reborn, _ = open_buses(2, incarnation="b")
    writer.publish([(b"h", b"%d" % k) for k in range(1, 4)])
    reborn.publish([(b"h", b"new"), (b"h", b"newer")])
    reader.follow(0, "a0")
    assert len(read(reader, 3)) == 3
    # The reader may have asked for the next entries by now.
    writer.publish([(b"h", b"4")])
    reader.follow(0, "b0", after=1)
    assert [(e.incarnation, e.sequence, bytes(e.payload)) for e in read(reader, 1)] == [("b0", 2, b"newer")]
    reader.follow(0, "a0", after=1)
    assert [(e.sequence, e.is_contiguous) for e in read(reader, 3)] == [(2, True), (3, True), (4, True)]
    reader.follow(0, "a0", after=3)
    assert [e.sequence for e in read(reader, 1)] == [4], "the same incarnation from another place"
    assert reader.receive(0, 0.01) == []


def test_the_held_parts_of_a_reply_are_not_overwritten_by_the_next(open_buses):
    writer, reader = open_buses(2)
    for bus in (writer, reader):
        bus.configure(1000, 100_000)
    reader.follow(0, "a0")
    payloads = [bytes([k]) * 100_000 for k in range(60)]
    writer.publish((b"h", payload) for payload in payloads)
    assert [bytes(entry.payload) for entry in read(reader, 60)] == payloads


def test_entries_may_be_made_while_earlier_ones_travel(open_buses):
    writer, reader = open_buses(2)
    reader.follow(0, "a0")

    def make():
        for k in range(30):
            yield b"%d" % k, memoryview(bytearray(100_000))
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        writer.publish(make())
    sequence = writer.sequence
    writer.publish([(b"h", b"after it")])
    assert writer.sequence == sequence + 1
    entries = read(reader, sequence + 1)
    assert bytes(entries[-1].payload) == b"after it"


def test_the_meters_count_bytes_that_travel_and_not_the_wait(open_buses):
    writer, reader = open_buses(2)
    reader.follow(0, "a0")
    assert reader.receive(0, 0.3) == []
    assert reader.read_busy_s < 0.1 and writer.publish_busy_s == 0.0
    writer.publish([(b"h", bytes(250_000))] * 20)
    read(reader, 20)
    if isinstance(writer, RedisBus):
        assert reader.read_busy_s > 0.0 and writer.publish_busy_s > 0.0
    else:
        assert reader.read_busy_s == writer.publish_busy_s == 0.0


def test_an_entry_is_read_again_with_all_later_ones(open_buses):
    writer, reader = open_buses(2)
    reader.follow(0, writer.incarnation)
    writer.publish([(b"h", b"%d" % k) for k in range(4)])
    writer.send(1, [(b"h", b"direct")])
    first = read(reader, 5)
    out = [entry for entry in first if not entry.is_direct]
    reader.read_again(out[2])
    again = read(reader, 2)
    assert [(e.sequence, e.is_contiguous, e.is_direct, bytes(e.payload)) for e in again] == [
        (3, True, False, b"2"),
        (4, True, False, b"3"),
    ]
    writer.publish([(b"h", b"4")])
    assert [e.sequence for e in read(reader, 1)] == [5]


def test_a_stream_for_one_peer_is_read_from_its_beginning_and_again_by_itself(open_buses):
    """The stream has numbers of its own: the number of outbox entries that were read has no influence."""
    writer, reader = open_buses(2)
    writer.publish([(b"h", b"%d" % k) for k in range(1, 4)])
    writer.send(1, [(b"h", b"one"), (b"h", b"two")])
    reader.follow(0, "a0", after=2)
    entries = read(reader, 3)
    found = {(e.is_direct, e.sequence, e.is_contiguous, bytes(e.payload)) for e in entries}
    direct = [(True, 1, True, b"one"), (True, 2, True, b"two")]
    assert found == {(False, 3, True, b"3"), *direct}
    reader.read_again(next(e for e in entries if e.is_direct and e.sequence == 1))
    again = read(reader, 2)
    assert [(e.is_direct, e.sequence, e.is_contiguous, bytes(e.payload)) for e in again] == direct
    assert reader.receive(0, 0.01) == []
    assert reader.newest(0, "a0") == 3 and reader.newest(0, "another") == 0
