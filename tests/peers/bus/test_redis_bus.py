"""The Redis bus alone: retries, lifetimes, connections that break, unix sockets, absent servers."""

from __future__ import annotations

import threading

import pytest
import redis

from peers.bus.redis.bus import RedisBus
from peers.bus.redis.client import address, connect, split_socket
from peers.bus.redis.resp import Replies, ReplyError
from peers.errors import BusError, LeaseExpiredError, UnreachableError
from peers.types import Lease
from tests.fleets import in_threads
from tests.peers.bus.test_bus import lease, read
from tests.servers import free_port, redis_server


def test_a_repeated_entry_changes_nothing(redis_url):
    """P1: Redis refuses a retried XADD with its explicit id, and the bus takes that refusal for success."""
    writer = RedisBus("idem", 0, [redis_url] * 2, "a0", [1], 10, 5)
    reader = RedisBus("idem", 1, [redis_url] * 2, "a1", [0], 10, 5)
    try:
        reader.follow(0, "a0")
        writer.publish([(b"h", b"1"), (b"h", b"2")])
        writer._sequences.clear()  # The state of a writer that lost the reply.
        writer.publish([(b"h", b"1"), (b"h", b"2")])
        writer.publish([(b"h", b"3")])
        assert [(e.sequence, bytes(e.payload)) for e in read(reader, 3)] == [(1, b"1"), (2, b"2"), (3, b"3")]
        assert reader.receive(0, 0.01) == []
    finally:
        writer.close()
        reader.close()


def test_every_key_has_a_lifetime(redis_url):
    """P5: streams have a MAXLEN and expire; leases and states expire."""
    bus = RedisBus("ttl", 0, [redis_url] * 2, "a0", [1], 10, 5)
    try:
        bus.configure(max_entries=10, entry_bytes=10)
        bus.claim(lease(bus), 20, lambda old: False)
        bus.put_state({"hello": b"x"}, 20)
        for _ in range(30):
            bus.publish([(b"h", b"x")])
            bus.send(1, [(b"h", b"x")])
        bus.renew(lease(bus), 20)
        client = connect(redis_url, 5)
        keys = [key.decode() for key in client.keys("degan:ttl:*")]
        assert len(keys) == 5
        assert all(client.ttl(key) > 0 for key in keys)
        assert {client.xlen(key) for key in keys if ":out" in key or ":to:" in key} == {10}
        client.close()
    finally:
        bus.close()


def test_a_new_incarnation_leaves_the_entries_of_the_last_one_only_for_a_while(redis_url):
    """Otherwise a worker that is started again and again would fill its Redis within the hour that a key may live."""
    incarnations, client = [], redis.Redis.from_url(redis_url)
    try:
        for number in range(3):
            incarnation = RedisBus("incarnations", 0, [redis_url] * 2, f"a{number}", [1], 10, 5)
            incarnations.append(incarnation)
            for _ in range(2):  # The second claim stands for a retry after a lost reply.
                incarnation.claim(lease(incarnation), 5.0, lambda old: True)
            incarnation.publish([(b"h", b"1")])
            incarnation.send(1, [(b"h", b"1")])
            incarnation.put_state({"x": b"1"}, 5.0)
        for name in ("out", "to:1", "state"):
            times = [client.ttl(f"degan:incarnations:0:a{number}:{name}") for number in range(3)]
            assert 0 < times[0] <= times[1] <= 60 < 3000 < times[2] <= 3600, name
        assert 3000 < client.ttl("degan:incarnations:0:incarnation") <= 3600
    finally:
        client.close()
        for incarnation in incarnations:
            incarnation.close()


def test_each_renewal_extends_every_key_of_an_incarnation(redis_url):
    bus, client = RedisBus("renewed", 0, [redis_url] * 2, "a0", [1], 10, 5), redis.Redis.from_url(redis_url)
    try:
        bus.claim(lease(bus), 20, lambda old: False)
        bus.publish([(b"h", b"x")])
        bus.send(1, [(b"h", b"x")])
        bus.put_state({"hello": b"x"}, 20)
        names = [f"degan:renewed:0:{rest}" for rest in ("a0:out", "a0:to:1", "a0:state", "incarnation")]
        for name in names:
            assert client.expire(name, 50)
        assert bus.renew(lease(bus, step=1), 30) == "held"
        assert all(3_590 < client.ttl(name) <= 3_600 for name in names)
        assert 29_000 < client.pttl("degan:renewed:0:lease") <= 30_000
        # A state lives for the time that the caller asks for, and for an hour at least.
        bus.put_state({"hello": b"x"}, 5000)
        assert 4_990 < client.ttl("degan:renewed:0:a0:state") <= 5_000
        again = RedisBus("renewed", 0, [redis_url] * 2, "b0", [1], 10, 5)
        again.claim(lease(again), 100, lambda old: True)
        assert all(190 < client.ttl(name) <= 200 for name in names[:3]), "for two leases of it"
        again.close()
    finally:
        client.close()
        bus.close()


def test_the_stream_keeps_as_much_as_there_is_room_for(redis_url):
    bus, client = RedisBus("kept", 0, [redis_url] * 2, "a0", [1], 10, 5), redis.Redis.from_url(redis_url)
    bus.configure(30, 100, least_entries=5)

    def expires():
        return client.info("commandstats")["cmdstat_expire"]["calls"]

    bus.publish([(b"h", b"1")])
    before = expires()
    bus.publish([(b"h", b"%d" % k) for k in range(2, 51)])
    assert expires() == before, "a stream is given its end once, and then by the heartbeat"
    assert [number for number, _ in client.xrange("degan:kept:0:a0:out")] == [b"%d-0" % k for k in range(21, 51)]
    client.close()
    bus.close()


def test_connections_that_break_are_made_anew_as_often_as_they_break():
    """A client's pool allows 100 connections at once; each cut takes those of the writer and of the reader."""
    with redis_server() as url:
        cutter = redis.Redis.from_url(url)
        writer, reader = (RedisBus("cuts", worker, [url] * 2, "a", [1 - worker], 5) for worker in (0, 1))
        try:
            reader.follow(0, "a")
            for number in range(1, 131):
                writer.publish([(b"h", b"%d" % number)])
                found: list = []
                while not found:
                    try:
                        found = reader.receive(0, 1.0)
                    except BusError as error:
                        assert "Too many connections" not in str(error)
                assert [entry.sequence for entry in found] == [number]
                cutter.client_kill_filter(_type="normal", skipme=True)
        finally:
            writer.close()
            reader.close()
            cutter.close()


def test_a_connection_that_breaks_is_made_anew(redis_url):
    writer = RedisBus("broken", 0, [redis_url] * 2, "a0", [1], 10, 5)
    reader = RedisBus("broken", 1, [redis_url] * 2, "a1", [0], 10, 5)
    try:
        reader.follow(0, "a0")
        client = connect(redis_url, 5)
        for k in range(3):
            writer.publish([(b"h", b"%d" % k)])
            entries = read(reader, 1)
            assert [(e.sequence, e.is_contiguous, bytes(e.payload)) for e in entries] == [(k + 1, True, b"%d" % k)]
            client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(BusError, match="127.0.0.1"):
                reader.receive(0, 0.1)
        client.close()
    finally:
        writer.close()
        reader.close()


@pytest.mark.parametrize("number", [b"7-0", b"2-0"])
def test_an_entry_whose_number_changed_on_its_way_is_asked_for_again(redis_url, monkeypatch, number):
    """No checksum covers the number. A reader that skipped beyond the end would wait there for ever."""
    writer = RedisBus(f"number{number[0]}", 0, [redis_url] * 2, "a0", [1], 10, 5)
    reader = RedisBus(f"number{number[0]}", 1, [redis_url] * 2, "a1", [0], 10, 5)
    reader.follow(0, "a0")
    for k in range(3):
        writer.publish([(b"h", b"%d" % k)])
    plain, changes = Replies.read, [number]

    def read_changed(link):
        answer = plain(link)
        if answer and changes:
            answer[0][1][-1][0] = changes.pop()
        return answer

    monkeypatch.setattr(Replies, "read", read_changed)
    with pytest.raises(BusError, match="says what no Redis says"):
        reader.receive(0, 1.0)
    assert [(e.sequence, e.is_contiguous, bytes(e.payload)) for e in read(reader, 3)] == [
        (k + 1, True, b"%d" % k) for k in range(3)
    ]
    writer.close()
    reader.close()


def test_a_refusal_of_the_server_is_an_error_with_its_words():
    with redis_server() as url:
        writer = RedisBus("refused", 0, [url] * 2, "a0", [1], 10, patience_s=0.2, full_patience_s=0.2)
        reader = RedisBus("refused", 1, [url] * 2, "a1", [0], 10, 5)
        reader.follow(0, "a0")
        client = connect(url, 5)
        key = "degan:refused:0:a0:out"
        client.set(key, "no stream")
        with pytest.raises(BusError, match="worker 0 cannot publish.*WRONGTYPE"):
            writer.publish([(b"h", b"1")])
        with pytest.raises(BusError, match="WRONGTYPE"):
            reader.receive(0, 0.1)
        client.delete(key)
        writer.publish([(b"h", b"2")])
        assert [bytes(e.payload) for e in read(reader, 1)] == [b"2"]
        client.config_set("maxmemory", "1")
        with pytest.raises(BusError, match="worker 0 cannot publish.*OOM"):
            writer.publish([(b"h", b"3")])
        for bus in (writer, reader, client):
            bus.close()


def test_a_worker_reaches_its_own_node_by_a_unix_socket(tmp_path):
    """The query `?socket=PATH` of a node's URL is for the worker of that node; all other workers connect by TCP."""
    path, port = tmp_path / "redis.sock", free_port()
    with redis_server(port, ("--unixsocket", str(path))):
        url = f"redis://127.0.0.1:{port}/3?socket={path}"
        far = f"redis://127.0.0.1:{port}/3"
        assert split_socket(url) == (far, f"unix://{path}?db=3")
        assert split_socket(far) == (far, far)
        assert split_socket(f"redis://me:pw@h/0?socket={path}")[1] == f"unix://me:pw@{path}?db=0"
        writer = RedisBus("near", 0, [url, far], "a0", [1], 10, 5)
        reader = RedisBus("near", 1, [url, far], "a1", [0], 10, 5)
        reader.follow(0, "a0")
        writer.publish([(b"h", bytes(300_000))])
        assert len(read(reader, 1)[0].payload) == 300_000
        assert writer._own.connection_pool.connection_class is redis.UnixDomainSocketConnection
        assert reader._readers[0].client.connection_pool.connection_class is redis.Connection
        both = RedisBus("near", 2, [url, far, url], "a2", [0], 10, 5)
        assert both._readers[0].client.connection_pool.connection_class is redis.UnixDomainSocketConnection
        for bus in (writer, reader, both):
            bus.close()
        alone = RedisBus("near", 0, [f"unix://{path}"], "b0", [], 10, 5)
        alone.publish([(b"h", b"x")])
        alone.close()
    with pytest.raises(UnreachableError, match=f"{path}.none.*No such file"):
        RedisBus("near", 0, [f"{url}.none"], "a0", [], 0.2, 5)


def test_an_absent_redis_is_named_with_host_port_and_reason():
    port, lines = free_port(), []
    with pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{port} \(.*refused.*\) after 0.3 s"):
        connect(f"redis://user:secret@127.0.0.1:{port}", 0.3, lines.append)
    assert len(lines) == 1 and "secret" not in lines[0]
    with pytest.raises(UnreachableError, match="no Redis URL"):
        connect("http://nowhere", 0.3)
    assert address("redis://:pass@host0") == "host0:6379"
    assert address("unix:///run/redis.sock") == "/run/redis.sock"


def on_disk(folder):
    """Options of a server that forgets nothing when it ends."""
    return "--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)


def test_an_outage_of_the_own_node_is_waited_out_and_is_then_an_error(tmp_path):
    port = free_port()
    with redis_server(port, on_disk(tmp_path)) as url:
        bus = RedisBus("outage", 0, [url] * 2, "a0", [1], 10, patience_s=20)
        bus.publish([(b"h", b"1")])
    lines = []
    bus._log = lines.append
    back, found = threading.Event(), []

    def restart():
        with redis_server(port, on_disk(tmp_path)) as url:
            assert back.wait(30)
            reader = RedisBus("outage", 1, [url] * 2, "a1", [0], 10, 5)
            reader.follow(0, "a0")
            found.extend((e.sequence, e.is_contiguous, bytes(e.payload)) for e in read(reader, 2))
            reader.close()

    def publish():
        bus.publish([(b"h", b"2")])
        back.set()

    in_threads([restart, publish])
    assert found == [(1, True, b"1"), (2, True, b"2")]
    assert len(lines) == 1 and bus.retries >= 1
    bus._patience_s = 0.2
    with pytest.raises(BusError, match="worker 0 cannot publish"):
        bus.publish([(b"h", b"3")])
    bus.close()


@pytest.mark.parametrize("what", ["publish", "renew"])
def test_a_redis_that_has_lost_everything_is_noticed(what):
    """A reader without the last entries would wait for them for ever. So this incarnation of the worker is over."""
    port = free_port()
    lease = Lease(0, "a0", "here", 1, "")
    with redis_server(port) as url:
        bus = RedisBus("lost", 0, [url] * 2, "a0", [1], 10, patience_s=20)
        bus.claim(lease, 60, lambda old: True)
        bus.publish([(b"h", b"1")])
        bus.send(1, [(b"h", b"2")])
    with redis_server(port) as url:
        with pytest.raises(LeaseExpiredError, match="the Redis of worker 0 has lost what this worker had published"):
            if what == "publish":
                bus.publish([(b"h", b"3")])
            else:
                bus.renew(lease, 60)
        client = connect(url, 5)
        assert client.keys("*") == [], "nothing of that incarnation is left behind"
        client.close()
    bus.close()


def test_an_entry_that_was_taken_after_a_refused_one_ends_this_incarnation(redis_url, monkeypatch):
    """The refused entry can never be added later, and a reader that goes on would not know of it."""
    writer = RedisBus("hole", 0, [redis_url] * 2, "a0", [1], 10, 5)
    answers = [b"1-0", ReplyError("OOM command not allowed"), b"3-0", 1]
    monkeypatch.setattr(Replies, "expect", lambda link, text: False)
    monkeypatch.setattr(Replies, "read", lambda link: answers.pop(0))
    with pytest.raises(LeaseExpiredError, match="took an entry after it had refused one"):
        writer.publish([(b"h", b"x")] * 3)
    assert not answers
    writer.close()


def test_a_full_redis_gives_up_the_entries_kept_for_replay_and_takes_new_ones():
    with redis_server() as url:
        lines = []
        writer = RedisBus("full", 0, [url] * 2, "a0", [1], 10, 0.2, lines.append, full_patience_s=20)
        writer.configure(100, 100_000, least_entries=5)
        client = connect(url, 5)
        for k in range(50):
            writer.publish([(b"h", b"%06d" % k + bytes(100_000))])
        client.config_set("maxmemory", str(client.info("memory")["used_memory"] + 10_000))
        # The bus makes room by itself, because five entries are enough ...
        writer.publish([(b"h", b"050050" + bytes(100_000))])
        assert client.xlen("degan:full:0:a0:out") == 5 + 1 and writer.retries >= 1
        assert any("is full: gave up" in line for line in lines)
        # ... and goes on with less room once a person has raised the limit.
        client.config_set("maxmemory", "1")
        waiting = threading.Event()
        writer._log = lambda line: waiting.set()

        def make_room():
            assert waiting.wait(20)
            client.config_set("maxmemory", "0")

        in_threads([lambda: writer.publish([(b"h", b"000051")]), make_room])
        assert client.xlen("degan:full:0:a0:out") == 5, "from then on no more than is needed is kept"
        reader = RedisBus("full", 1, [url] * 2, "a1", [0], 10, 5)
        reader.follow(0, "a0", 47)
        assert [bytes(e.payload)[:6] for e in read(reader, 5)] == [
            b"000047",
            b"000048",
            b"000049",
            b"050050",
            b"000051",
        ]
        for bus in (writer, reader, client):
            bus.close()
