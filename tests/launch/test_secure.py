"""The command `launch secure` end to end: workers train with its files, and no other user may do anything."""

from __future__ import annotations

import datetime
import shutil
import signal
import ssl

import pytest
import redis

from config.security import read_secrets
from degan.runs.lines import read_lines
from launch.__main__ import main
from launch.certificates import Authority
from launch.nodes import COMMANDS
from peers.bus.redis.bus import RedisBus
from peers.bus.redis.client import connect, open_link
from peers.bus.redis.resp import command
from peers.bus.redis.tls import TlsConnection, TlsLink
from peers.errors import DuplicateError, UnreachableError
from tests.peers.bus.test_bus import lease, read
from tests.secured import access, admin, secure_folder, server, servers
from tests.servers import free_port
from tests.workers import Worker, experiment, wait_for

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def workers(tmp_path):
    """A function that starts workers of a secured run in processes of their own; the fixture clears them away."""
    incarnations = []

    def start(made, number, script=None, **environment):
        words = [number, "--config", made / "experiment.yaml", "--out", tmp_path / "runs"]
        incarnations.append(
            Worker(words, tmp_path / f"{made.name}-{number}-{len(incarnations)}.log", script, **environment)
        )
        return incarnations[-1]

    yield start
    for incarnation in incarnations:
        incarnation.kill()


@pytest.mark.parametrize("mode", ["partial_exchange", "federated, local_steps: 2"])
def test_workers_train_with_the_made_files_and_use_no_refused_command(tmp_path, workers, mode):
    made = secure_folder(tmp_path, f"trains-{mode[:7]}", 3, mode)
    with servers(made) as ports:
        incarnations = [workers(made, number) for number in range(3)]
        assert [incarnation.end(100) for incarnation in incarnations] == [0, 0, 0], "\n".join(
            incarnation.text for incarnation in incarnations
        )
        for port in ports:
            with admin(made, port) as client:
                assert client.execute_command("ACL", "LOG") == []
                assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
                limit = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
                assert "normal 67108864 33554432 5" in limit
    for number in range(3):
        last = read_lines(tmp_path / "runs" / f"w{number}" / "stats.jsonl")[-1]
        assert last["step"] == 12 and not last["dropped"] and last["received_bytes"] > 0


def test_the_users_may_do_exactly_what_a_bus_does(tmp_path):
    made = secure_folder(tmp_path, "exactly", 2)
    urls = urls_of(made)
    with servers(made) as ports:
        buses = [RedisBus("exactly", k, urls, f"life{k}", [1 - k], 10, 5, access=access(made, k)) for k in range(2)]
        mine, peer = buses
        try:
            mine.claim(lease(mine), 20, lambda old: False)
            twin = RedisBus("exactly", 0, urls, "twin", [1], 10, 5, access=access(made, 0))
            buses.append(twin)
            with pytest.raises(DuplicateError):
                twin.claim(lease(twin), 20, lambda old: False)
            mine.put_state({"hello": b"1", "model": bytes(1000)}, 20)
            mine.delete_state(["model"])
            mine.publish([(b"h", bytes(300_000))] * 3)
            mine.send(1, [(b"h", b"one")])
            # These calls stand for an outage, and for a full Redis.
            mine._hang_up()
            mine.configure(1000, 300_000, least_entries=100)
            mine._make_room()
            mine.publish([(b"h", b"more")])
            assert mine.renew(lease(mine), 20) == "held"
            peer.follow(0, "life0")
            assert [len(entry.payload) for entry in read(peer, 4)].count(300_000) == 3
            assert peer.holds(0, "life0", 2) and peer.leases(0)[0].incarnation == "life0"
            assert peer.get_state(0, "life0", ["hello", "model"]) == {"hello": b"1"}
            mine.release()
        finally:
            for bus in buses:
                bus.close()
        with admin(made, ports[0]) as client:
            assert client.execute_command("ACL", "LOG") == []
            said = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    # The remaining commands are those of the admin and those that need no permission.
    assert said - {"auth", "acl|log", "info", "client|setinfo"} == set(COMMANDS)


def test_the_own_node_may_be_reached_through_a_unix_socket(tmp_path):
    path, port = tmp_path / "near.sock", free_port()
    file, made = experiment(tmp_path, "near", [f"redis://localhost:{port}?socket={path}"] * 2), tmp_path / "made"
    assert main(["secure", str(file), "--out", str(made)]) == 0
    with server(made / "w0"):
        urls = urls_of(made)
        keys = [read_secrets(f"{made}/w{{worker}}", k).run_key for k in range(2)]
        # The second worker knows no socket, as on another host.
        there = [url.partition("?")[0] for url in urls]
        writer = RedisBus("near", 0, urls, "life0", [1], 10, 5, access=access(made, 0), run_key=keys[0])
        reader = RedisBus("near", 1, there, "life1", [0], 10, 5, access=access(made, 1), run_key=keys[1])
        try:
            reader.follow(0, "life0")
            writer.publish([(b"h", bytes(300_000))])
            assert [len(entry.payload) for entry in read(reader, 1)] == [300_000]
            assert writer._own.connection_pool.connection_class is redis.UnixDomainSocketConnection
            assert reader._own.connection_pool.connection_class is TlsConnection
        finally:
            writer.close()
            reader.close()


FORBIDDEN = """
FLUSHALL / FLUSHDB / CONFIG GET * / CONFIG SET maxmemory 1 / CONFIG REWRITE / KEYS * / SCAN 0 / RANDOMKEY / DBSIZE
EVAL return(1) 0 / EVALSHA abc 0 / SCRIPT LOAD return(1) / SCRIPT FLUSH / FUNCTION LIST / FUNCTION FLUSH / FCALL f 0
SHUTDOWN NOSAVE / DEBUG SLEEP 0 / ACL LIST / ACL WHOAMI / ACL SETUSER x / SLAVEOF NO ONE / REPLICAOF NO ONE / MONITOR
CLIENT LIST / CLIENT KILL ID 1 / CLIENT NO-EVICT on / MODULE LIST / MODULE LOAD /x.so / SAVE / BGSAVE / BGREWRITEAOF
SWAPDB 0 1 / SELECT 1 / INFO / LATENCY RESET / SLOWLOG GET / MEMORY DOCTOR / COMMAND / CLUSTER INFO / PSYNC ? -1
MIGRATE h 1 {mine} 0 1 / SORT {mine} / DUMP {mine} / RESTORE {mine} 0 x / RENAME {mine} {mine}2 / COPY {mine} {mine}2
OBJECT ENCODING {mine} / TYPE {mine} / TTL {mine} / PERSIST {mine} / SUBSCRIBE x / PUBLISH x y / WAIT 0 0
XGROUP CREATE {mine} g 0 / XTRIM {theirs} MAXLEN 0 / XDEL {mine} 1-0 / LPUSH {mine} x / APPEND {mine} x / UNLINK {mine}
SET {theirs} x / DEL {theirs} / EXPIRE {theirs} 1 / HSET {theirs} a b / HDEL {theirs} a / XADD {theirs} * h x
SET degan:other:0:lease x / GET degan:other:0:lease / SET elsewhere x / GET elsewhere / MGET {mine} elsewhere
HMGET elsewhere a / XREAD STREAMS elsewhere 0 / XREAD STREAMS degan:other:0:a:out 0 / XRANGE degan:othe:0:a:out - +
XREVRANGE elsewhere + - / XADD elsewhere * h x / SET degan:forbidden x / WATCH elsewhere
"""


def test_everything_else_is_refused(tmp_path):
    """The refused commands are FLUSHALL, CONFIG, KEYS, EVAL, SHUTDOWN and so on.

    The refused keys are those of others.
    """
    made = secure_folder(tmp_path, "forbidden", 2)
    mine, theirs = "degan:forbidden:0:lease", "degan:forbidden:1:lease"
    lines = [line.format(mine=mine, theirs=theirs) for line in " / ".join(FORBIDDEN.split("\n")).split(" / ")]
    lines = [line.strip() for line in lines if line.strip()]
    assert len(lines) >= 79
    with servers(made) as ports:
        with connect(urls_of(made)[0], 5, access=access(made, 0)) as own:
            assert own.set(mine, "x", px=60_000) and own.get(theirs) is None
            refused = [line for line in lines if is_refused(own, line)]
            assert refused == lines
            assert own.get(mine) == b"x"
        with connect(urls_of(made)[1], 5, access=access(made, 0)) as far:
            assert far.get(mine) is None, "it may be read there"
            assert is_refused(far, f"SET {mine} x"), "a worker writes on its own node only"
        context = ssl.create_default_context(cafile=made / "w0" / "ca.crt")
        context.load_cert_chain(made / "w0" / "worker.crt", made / "w0" / "worker.key")
        with pytest.raises(redis.AuthenticationError):
            admin(made, ports[0], "default", "x").ping()
        with admin(made, ports[0]) as client:
            client.connection_pool.connection_kwargs.update(username=None, password=None)
            with pytest.raises(redis.AuthenticationError, match="[Aa]uthentication required"):
                client.ping()


def is_refused(client, line):
    try:
        client.execute_command(*line.split())
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError as error:
        # DEBUG and MODULE are closed to all users.
        return "command not allowed" in str(error)
    return False


def urls_of(made):
    import config

    return config.load(made / "experiment.yaml").peers


# --- refused identities ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A secured run of one worker with its server: its folder, and its URL."""
    made = secure_folder(tmp_path_factory.mktemp("one"), "one", 1)
    with server(made / "w0"):
        yield made, urls_of(made)[0]


def line_of(url, shown):
    """The line of a worker that cannot connect; a hopeless attempt is not repeated until the time is over."""
    with pytest.raises(UnreachableError) as caught:
        connect(url, 300.0, access=shown)
    text = str(caught.value)
    assert "\n" not in text and shown.password not in text
    return text.replace(url.partition("//")[2], "HOST")


def changed(made, worker=0, **other):
    import dataclasses

    return dataclasses.replace(access(made, worker), **other)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def test_a_worker_with_all_credentials_is_let_in(one):
    made, url = one
    with connect(url, 5, access=access(made, 0)) as client:
        assert client.ping()
        link = open_link(client, 4096)
        assert isinstance(link._socket, TlsLink)
        assert link._socket._socket.version() in ("TLSv1.2", "TLSv1.3")
        link.close()


def test_a_server_of_another_ca_is_refused(one, tmp_path):
    made, url = one
    (tmp_path / "ca.crt").write_bytes(Authority("another", 1, now()).certificate)
    assert line_of(url, changed(made, ca=str(tmp_path / "ca.crt"))).startswith(
        f"Redis at HOST: its certificate is refused, it is not of the CA in {tmp_path}/ca.crt ("
    )
    # A certificate of an authority of the system is refused too.
    assert "it is not of the CA in this system (" in line_of(url, changed(made, ca=None))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "expired",
            "Redis at HOST: its certificate is refused, it has expired; make new ones with `python -m launch secure` "
            "(certificate has expired)",
        ),
        (
            "elsewhere",
            "Redis at HOST: its certificate is refused, it is for another host name than the one in `peers` (",
        ),
    ],
)
def test_a_server_with_a_wrong_certificate_is_refused(tmp_path, name, line):
    made = secure_folder(tmp_path, name, 1)
    days_ago = datetime.timedelta(days=30 if name == "expired" else 0)
    authority = Authority("of the run", 10, now() - days_ago)
    certificate, key = authority.issue("worker-0", ["elsewhere.example" if name == "elsewhere" else "localhost"])
    for file, content in (("ca.crt", authority.certificate), ("worker.crt", certificate), ("worker.key", key)):
        (made / "w0" / file).write_bytes(content)
    with server(made / "w0"):
        assert line_of(urls_of(made)[0], access(made, 0)).startswith(line)


def test_a_worker_without_a_certificate_is_refused(one):
    made, url = one
    assert line_of(url, changed(made, certificate=None, key=None)) == (
        "Redis at HOST: it wants to see a certificate, and this worker has none; put worker.crt and worker.key into "
        "security.folder"
    )


def test_a_worker_with_a_certificate_of_another_ca_is_refused(one, tmp_path):
    made, url = one
    certificate, key = Authority("another", 1, now()).issue("worker-0", ["localhost"])
    (tmp_path / "worker.crt").write_bytes(certificate)
    (tmp_path / "worker.key").write_bytes(key)
    shown = changed(made, certificate=str(tmp_path / "worker.crt"), key=str(tmp_path / "worker.key"))
    assert line_of(url, shown).startswith("Redis at HOST: it does not ")


def test_a_wrong_password_is_refused(one):
    made, url = one
    assert line_of(url, changed(made, password="guessed")) == (
        "Redis at HOST refuses us: invalid username-password pair or user is disabled."
    )


def test_a_server_without_tls_is_named(one, redis_url):
    made, _ = one
    with pytest.raises(UnreachableError, match=r"no Redis answers at 127.0.0.1:\d+ \(.*does not answer in TLS; start"):
        connect(redis_url.replace("redis:", "rediss:").removesuffix("/0"), 0.1, access=access(made, 0))


def test_large_pieces_over_tls_arrive_whole(one):
    made, url = one
    with connect(url, 5, access=access(made, 0)) as client:
        link, payload = open_link(client, 64 * 1024), bytes(range(256)) * 4000
        key = b"degan:one:0:a:out"
        pieces = []
        for number in range(1, 6):
            head, _, tail = command(b"XADD", key, b"%d-0" % number, b"h", b"x", b"d", payload).rpartition(payload)
            pieces += (head, memoryview(payload), tail)
        link.send(pieces)
        assert [bytes(link.read()) for _ in range(5)] == [b"%d-0" % number for number in range(1, 6)]
        link.send_small(command(b"XREAD", b"STREAMS", key, b"0"))
        ((_, items),) = link.read()
        assert [bytes(fields[3]) == payload for _, fields in items] == [True] * 5
        link.close()
        with pytest.raises(OSError):
            link.read()


# --- in a run --------------------------------------------------------------------------------------


def test_a_worker_without_access_ends_with_one_line(tmp_path, workers):
    made = secure_folder(tmp_path, "locked-out", 1)
    (made / "w0" / "password").write_text("guessed\n")
    with server(made / "w0"):
        incarnation = workers(made, 0)
        assert incarnation.end() == 2
    lines = [line for line in incarnation.text.splitlines() if line.startswith("degan")]
    assert len(lines) == 1 and "refuses us: invalid username-password pair" in lines[0]
    assert "Traceback" not in incarnation.text


@pytest.mark.parametrize("kind", ["none", "another"])
def test_workers_of_different_run_keys_end_at_once_with_the_reason(tmp_path, workers, kind):
    made = secure_folder(tmp_path, f"key-{kind}", 2)
    if kind == "none":
        (made / "w1" / "run.key").unlink()
    else:
        (made / "w1" / "run.key").write_text("00" * 32)
    with servers(made):
        first = workers(made, 0)
        first.until("waiting for worker 1")
        second = workers(made, 1)
        # The file gives an absent worker 300 s.
        assert [first.end(), second.end()] == [2, 2]
    why = "it has no run key and this worker has one" if kind == "none" else "it has another run key than this worker"
    assert f"worker 0 and worker 1 cannot understand each other: {why}; give all the same run.key" in first.text
    assert "worker 1 and worker 0 cannot understand each other: it has a" in second.text


def test_foreign_entries_in_a_stream_do_not_stop_a_run(tmp_path, workers):
    """An attacker in worker 0's Redis without the run key sends changed copies of earlier entries to worker 1."""
    made = secure_folder(tmp_path, "attacked", 2)
    gate = tmp_path / "go"
    with servers(made) as ports:
        incarnations = [workers(made, number, {6: f"hold:{gate}"}) for number in range(2)]
        with admin(made, ports[0]) as client:
            wait_for(lambda: client.keys("degan:attacked:0:*:out"), "an outbox")
            (out,) = client.keys("degan:attacked:0:*:out")
            wait_for(lambda: client.xlen(out) >= 5, "five entries")
            direct = out.replace(b":out", b":to:1")
            stats = tmp_path / "runs" / "w1" / "stats.jsonl"
            wait_for(lambda: stats.exists() and any(line["step"] >= 6 for line in read_lines(stats)), "step 6")
            entries = client.xrange(out)[:3]
            for number, (_, fields) in enumerate(entries, 1):
                client.xadd(direct, fields, f"{number}-0")
            for number, (_, fields) in enumerate(entries, 4):
                payload = bytes([fields[b"d"][0] ^ 1]) + fields[b"d"][1:]
                client.xadd(direct, {**fields, b"d": payload}, f"{number}-0")
        wait_for(lambda: incarnations[1].text.count("refused (said once") == 2, "two lines")
        gate.touch()
        assert [incarnation.end() for incarnation in incarnations] == [0, 0]
    assert read_lines(stats)[-1]["dropped"] == {"replayed": 3, "mac": 3}
    lines = [line for line in incarnations[1].text.splitlines() if "said once" in line]
    assert lines[0].endswith(
        "worker 0: entry 1 of its stream for this worker is one that was said before, put in another place by someone "
        "else; refused (said once, and counted as 'replayed')"
    )
    assert "entry 4 of its stream for this worker does not bear this run's MAC: it was changed" in lines[1]


def test_a_worker_whose_secrets_others_can_read_does_not_start(tmp_path, workers):
    made = secure_folder(tmp_path, "open", 1)
    (made / "w0" / "run.key").chmod(0o644)
    incarnation = workers(made, 0)
    assert incarnation.end() == 2
    assert f"security.folder: others can read {made}/w0/run.key; chmod 600 {made}/w0/run.key" in incarnation.text


def test_a_worker_is_told_to_stop_and_does_so_over_tls(tmp_path, workers):
    made = secure_folder(tmp_path, "stopped", 2)
    with servers(made):
        gate = tmp_path / "go"
        incarnations = [workers(made, number, {3: f"hold:{gate}"}) for number in range(2)]
        stats = [tmp_path / "runs" / f"w{number}" / "stats.jsonl" for number in range(2)]
        wait_for(lambda: all(path.exists() and len(read_lines(path)) >= 3 for path in stats), "step 3")
        incarnations[0].signal(signal.SIGTERM)
        gate.touch()
        assert [incarnation.end() for incarnation in incarnations] == [0, 0]
    shutil.rmtree(made)
