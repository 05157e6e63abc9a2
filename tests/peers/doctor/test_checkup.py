"""The checks of one node, on real servers in good and in bad states, and on servers that are no Redis."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
import redis

from peers.doctor.findings import FAIL, OK, WARN
from peers.session.processes import is_dead, process_birth, this_host
from tests import servers
from tests.checkups import BEAT_S, LEASE_S, findings, http, lease, listener, nonsense, only_pong, silence

WELL = {
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",
    "client-output-buffer-limit": "normal 64mb 32mb 5",
    "save": "",
    "appendonly": "no",
    "stop-writes-on-bgsave-error": "yes",
}


@pytest.fixture(scope="module")
def server():
    with servers.redis_server() as url:
        yield url


@pytest.fixture
def client(server):
    """A client of an empty server in its right state; the fixture puts back the changes of a test."""
    client = redis.Redis.from_url(server)
    client.flushall()
    for name, value in WELL.items():
        client.config_set(name, value)
    yield client
    client.config_set("requirepass", "")
    for user in client.acl_users():
        if user not in (b"default", "default"):
            client.acl_deluser(user)
    client.close()


def with_user(url: str, name: str, password: str) -> str:
    return url.replace("redis://", f"redis://{name}:{password}@")


# --- a server in its right state --------------------------------------------------------------------


def test_a_server_in_its_right_state(server, client):
    client.config_set("requirepass", "right")
    found = findings(with_user(server, "", "right"))
    bad = {check: finding for check, finding in found.items() if finding.state != OK}
    # Its one user may do everything, and the server of the tests may be an old one.
    assert bad.keys() <= {"access", "version"} and len(found) == 13
    assert found["access"].state == WARN and "CONFIG, EVAL, ACL" in found["access"].seen
    assert "all that a worker needs under degan:r:0:" in found["writing"].seen
    assert "writing" in found["goodput"].seen and "a step's 1.0 kB take" in found["goodput"].seen


def test_nothing_is_left_behind_and_nothing_is_changed(server, client):
    client.set("another", "one")
    before = client.config_get("*")
    findings(server)
    assert client.keys() == [b"another"] and client.config_get("*") == before


def test_written_keys_expire_by_themselves(server, client):
    """A doctor that is killed in the middle leaves nothing for long: it has no key without an expiry."""
    client.execute_command("ACL SETUSER", "w0", "on", ">p", "~*", "+@all", "-del")
    found = findings(with_user(server, "w0", "p"))
    assert found["writing"].state == FAIL and "may not DEL" in found["writing"].seen
    keys = client.keys()
    assert keys and all(0 < client.ttl(key) <= 60 for key in keys)


# --- settings of the server -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "check", "state", "seen", "fix"),
    [
        ("maxmemory-policy", "allkeys-lru", "policy", FAIL, "is allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        ("maxmemory", "0", "maxmemory", WARN, "no limit; this run needs 1.0 MiB", "CONFIG SET maxmemory"),
        ("client-output-buffer-limit", "normal 0 0 0", "output buffer", WARN, "no limit", "'normal 64mb 32mb 5'"),
        ("client-output-buffer-limit", "normal 1mb 0 0", "output buffer", WARN, "1.0 MiB: readers", "64mb 32mb 5"),
        ("save", "900 1", "persistence", WARN, "a full disk stops all writes", "stop-writes-on-bgsave-error no"),
    ],
)
def test_a_wrong_setting(server, client, name, value, check, state, seen, fix):
    client.config_set(name, value)
    found = findings(server)[check]
    assert (found.check, found.state) == (check, state) and seen in found.seen and fix in found.fix


def test_a_policy_without_a_limit_is_a_warning(server, client):
    client.config_set("maxmemory", "0")
    client.config_set("maxmemory-policy", "volatile-lru")
    assert findings(server)["policy"].state == WARN


def test_less_memory_than_the_run_needs(server, client):
    client.config_set("maxmemory", "32mb")
    found = findings(server, needed_bytes=100 * 2**20)["maxmemory"]
    assert found.state == FAIL and "32.0 MiB; this run needs 100.0 MiB" in found.seen
    # The command of the fix helps.
    words = found.fix.split(",")[0].split()
    assert words[:4] == ["redis-cli", "CONFIG", "SET", "maxmemory"]
    client.config_set("maxmemory", words[4])
    assert findings(server, needed_bytes=100 * 2**20)["maxmemory"].state == OK


def test_the_existing_keys_of_the_run_count_as_its_own(server, client):
    for number in range(64):
        client.set(f"degan:r:0:old:{number}", bytes(2**20), ex=100)
    client.config_set("maxmemory", "128mb")
    assert findings(server, needed_bytes=80 * 2**20)["maxmemory"].state == OK
    assert findings(server, run="other", needed_bytes=80 * 2**20)["maxmemory"].state == FAIL


def test_a_full_server(server, client):
    client.config_set("maxmemory", "1")
    found = findings(server)
    assert found["writing"].state == FAIL and "raise maxmemory" in found["writing"].fix
    assert found["maxmemory"].state == FAIL and "nothing written" in found["goodput"].seen


def test_a_server_with_little_room_is_not_filled_to_measure_its_speed(server, client):
    client.config_set("maxmemory", "10mb")
    found = findings(server)
    assert found["writing"].state == OK and "it is almost full" in found["goodput"].seen


def test_an_aof(server, client):
    client.config_set("appendonly", "yes")
    assert "AOF: a crash loses a second" in findings(server)["persistence"].seen


def test_a_replica(server, client):
    with servers.redis_server() as url:
        copy = redis.Redis.from_url(url)
        copy.replicaof("127.0.0.1", int(server.rpartition(":")[2].partition("/")[0]))
        found = findings(url)["writing"]
        copy.close()
    assert found.state == FAIL and "name the primary" in found.fix


# --- users ------------------------------------------------------------------------------------------


def test_no_password(server, client):
    found = findings(server)["access"]
    assert found.state == WARN and "anybody who reaches the port can write" in found.seen and "secure" in found.fix


def test_an_own_key_user(server, client):
    """A user like those of `launch secure` trains, and sees neither INFO nor CONFIG."""
    rules = ["on", ">p", "~degan:r:0:*", "+@all", "-@dangerous", "-@admin", "-@scripting"]
    client.execute_command("ACL SETUSER", "w0", *rules)
    found = findings(with_user(server, "w0", "p"))
    assert found["access"].state == found["writing"].state == found["goodput"].state == OK
    assert "redis" in found["version"].seen
    for check in ("maxmemory", "policy", "output buffer", "persistence"):
        assert found[check].state == WARN and found[check].seen.startswith("cannot be seen ("), check
    # The user of one worker may not write another worker's keys.
    assert findings(with_user(server, "w0", "p"), workers=(1,))["writing"].state == FAIL


@pytest.mark.parametrize(("is_own", "state"), [(True, FAIL), (False, OK)])
def test_a_user_who_may_only_read(server, client, is_own, state):
    client.execute_command("ACL SETUSER", "all", "on", ">p", "~degan:r:*", "+@read", "+@connection", "+acl|whoami")
    client.xadd("degan:r:0:incarnation:out", {"h": b"", "d": bytes(300_000)})
    client.set("degan:r:0:lease", msgspec.msgpack.encode(lease()), px=int(1000 * LEASE_S))
    found = findings(with_user(server, "all", "p"), is_own=is_own)
    assert found["writing"].state == state
    assert found["goodput"].state == OK and "reading" in found["goodput"].seen
    assert "nothing written" in found["goodput"].seen
    if is_own:
        assert "ACL SETUSER all '%RW~degan:r:0:*'" in found["writing"].fix and "+xadd" in found["writing"].fix


def test_a_user_who_may_not_even_read(server, client):
    client.execute_command("ACL SETUSER", "none", "on", ">p", "~degan:other:*", "+@all")
    found = findings(with_user(server, "none", "p"), is_own=False)
    assert found["writing"].state == FAIL and "may not even read" in found["writing"].seen
    assert found["run"].state == WARN and found["goodput"].state == WARN


# --- no answer, or another server -------------------------------------------------------------------


def unreachable(url: str) -> tuple[str, str]:
    found = findings(url)
    assert list(found) == ["reachable"] and found["reachable"].state == FAIL
    return found["reachable"].seen, found["reachable"].fix


def test_passwords(server, client):
    assert "the URL has a password, and the server has none" in unreachable(with_user(server, "", "x"))[0]
    client.config_set("requirepass", "right")
    assert "wants a password, and the URL has none" in unreachable(server)[0]
    seen, fix = unreachable(with_user(server, "", "wrong"))
    assert "wrong password or user" in seen and "wrong" not in fix
    assert "wrong password or user" in unreachable(with_user(server, "nobody", "x"))[0]
    client.execute_command("ACL SETUSER", "silent", "on", ">p", "+get")
    assert "may not even PING" in unreachable(with_user(server, "silent", "p"))[0]


def test_no_server(tmp_path):
    assert "nothing listens on that port" in unreachable(f"redis://127.0.0.1:{servers.free_port()}")[0]
    assert "no socket" in unreachable(f"unix://{tmp_path}/none.sock")[0]
    assert "no Redis URL" in unreachable("redis://127.0.0.1?socket_timeout=none")[0]


def test_another_kind_of_server():
    with listener(http) as port:
        assert "no Redis" in unreachable(f"redis://127.0.0.1:{port}")[0]
        seen, fix = unreachable(f"rediss://127.0.0.1:{port}")
        assert "TLS is refused" in seen and "does not speak TLS" in fix


@pytest.mark.timeout(40)
def test_a_silent_server():
    with listener(silence) as port:
        assert "says nothing" in unreachable(f"redis://127.0.0.1:{port}")[0]
        assert "TLS handshake had no answer" in unreachable(f"rediss://127.0.0.1:{port}")[0]


@pytest.mark.timeout(40)
def test_a_server_that_stops_answering_is_not_asked_again():
    """All remaining questions share one time-out: thirteen would exceed the time-out of this test."""
    with listener(only_pong) as port:
        found = findings(f"redis://127.0.0.1:{port}")
    assert found.pop("reachable").state == OK
    assert len(found) == 12
    assert all(item.state == WARN and "it stopped answering" in item.seen for item in found.values())


def test_a_server_that_answers_nonsense():
    with listener(nonsense) as port:
        found = findings(f"redis://127.0.0.1:{port}")
    assert len(found) == 13 and found["maxmemory"].state == WARN


def test_a_stand_in_server(fake_url):
    found = findings(fake_url, run="standin")
    assert found["version"].state == WARN and "fakeredis" in found["version"].seen
    assert found["writing"].state == found["goodput"].state == found["round trip"].state == OK
    assert all(found[check].state == WARN for check in ("maxmemory", "policy", "output buffer", "persistence"))


def test_a_socket(server, client, tmp_path):
    found = findings(f"{server}?socket={tmp_path}/none.sock")
    assert found["reachable"].state == OK and found["socket"].state == FAIL and "none.sock" in found["socket"].seen
    assert "socket" not in findings(f"{server}?socket={tmp_path}/none.sock", is_own=False)
    near = tmp_path / "near.sock"
    with servers.redis_server(options=("--unixsocket", str(near))) as url:
        assert findings(f"{url}?socket={near}")["socket"].state == OK


# --- other workers ----------------------------------------------------------------------------------


def put_lease(client, found, left_s=LEASE_S):
    client.set(f"degan:r:{found.worker}:lease", msgspec.msgpack.encode(found), px=int(1000 * left_s))


def test_a_running_run(server, client):
    put_lease(client, lease(0, since=7))
    client.xadd("degan:r:0:incarnation:out", {"h": b"", "d": b"x"})
    found = findings(server)
    assert found["run"] == ("run", OK, "training: worker 0 on host9, process 77, since step 7, now at step 40", "")
    assert "no keys of older runs" in found["left over"].seen


def test_dead_leases(server, client):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(30)
    put_lease(client, lease(0, host=this_host(), pid=gone.pid))
    found = findings(server, is_dead=is_dead)["run"]
    assert found.state == WARN and f"process {gone.pid}" in found.seen and "ends by itself in" in found.fix
    # On another host the lease decides: its worker should have renewed it.
    put_lease(client, lease(0), left_s=LEASE_S - 3 * BEAT_S)
    assert findings(server, is_dead=is_dead)["run"].state == WARN
    put_lease(client, lease(0, host=this_host(), pid=os.getpid(), birth=process_birth(os.getpid())))
    assert findings(server, is_dead=is_dead)["run"].state == OK


def test_a_lease_that_is_nonsense(server, client):
    client.set("degan:r:0:lease", b"\x93nonsense")
    found = findings(server)
    assert found["run"].seen.startswith("nobody holds a lease") and found["left over"].state == WARN
    put_lease(client, lease(0, host="evil\x1b[2J\nname"))
    assert findings(server)["run"].seen.isprintable()


def test_keys_of_older_runs(server, client):
    assert findings(server)["left over"].seen == "no keys of older runs of this name"
    client.set("degan:r:0:old:state", bytes(2**20), ex=100)
    client.xadd("degan:r:1:old:out", {"h": b"x"})
    client.expire("degan:r:1:old:out", 100)
    client.set("degan:rr:0:old:state", b"of another run")
    found = findings(server)["left over"]
    assert found.state == OK and found.seen.startswith("2 keys") and " MiB" in found.seen
    client.persist("degan:r:1:old:out")
    found = findings(server)["left over"]
    assert found.state == WARN and found.fix == "redis-cli DEL degan:r:1:old:out"
