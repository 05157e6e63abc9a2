"""`launch doctor`: its findings on this host and the nodes, as a table and as JSON, and its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import redis
import torch

import config
from degan.worker import doctor
from launch import servers as launch_servers
from launch.__main__ import main as launch_main
from launch.plan import Commands
from peers.session.processes import this_host
from tests import servers
from tests.checkups import listener, rows, silence
from tests.workers import Worker, experiment

NODE_CHECKS = ["reachable", "version", "access", "writing", "run", "left over", "maxmemory", "policy"]
NODE_CHECKS += ["output buffer", "persistence", "clock", "round trip", "goodput"]


@pytest.fixture(scope="module")
def server():
    """A well configured server; two checks still warn: the server may be old, and it has no password."""
    well = ("--maxmemory", "512mb", "--client-output-buffer-limit", "normal", "64mb", "32mb", "5")
    with servers.redis_server(options=well) as url:
        yield url


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """A function that runs the doctor on peers; returns the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def with_peers(peers: object, *words: str) -> tuple[int, str, str]:
        code = doctor.main([str(experiment(tmp_path, "checked", peers)), *words])
        return code, *capsys.readouterr()

    return with_peers


def states(outcome: tuple[int, str, str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(state, text) by node and check, from the output of --json."""
    return {(row["node"], row["check"]): (row["state"], row["seen"]) for row in json.loads(outcome[1])}


def host(outcome: tuple[int, str, str], check: str) -> tuple[str, str]:
    return states(outcome)["this host", check]


# --- the whole output -------------------------------------------------------------------------------


def test_all_is_well(call, server):
    code, table, text = call([server] * 2)
    assert (code, text) == (0, "")
    assert "(workers 0, 1, this host's)" in table and "0 failed, " in table
    assert max(map(len, table.splitlines())) <= 100 and table.isascii()
    checks = [check for check, _ in rows(table)]
    assert checks == ["settings", "data", "networks", "device", "memory", "disk", *NODE_CHECKS]


def test_json_and_table_agree(call, server):
    peers = [server, f"redis://127.0.0.1:{servers.free_port()}"]
    code, table, _ = call(peers)
    json_code, text, errors = call(peers, "--json")
    found = json.loads(text)
    assert code == json_code == 2 and errors == ""
    assert all(list(row) == ["node", "workers", "check", "state", "seen", "fix"] for row in found)
    assert rows(table) == [(row["check"], row["state"]) for row in found]
    assert [row["workers"] for row in found if row["check"] == "reachable"] == [[0], [1]]
    assert "1 failed" in table


def test_a_node_that_has_to_be_fixed_and_then_is(call):
    with servers.redis_server(options=("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")) as url:
        code, table, _ = call([url])
        assert code == 2 and "maxmemory-policy is allkeys-lru" in table
        assert "-> set it to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction" in table
        client = redis.Redis.from_url(url)
        client.config_set("maxmemory-policy", "noeviction")
        client.close()
        assert call([url])[0] == 0


@pytest.mark.timeout(60)
def test_nodes_are_looked_at_together(call):
    """Twenty silent nodes, one after the other, would take longer than the timeout of this test."""
    with listener(silence) as port:
        code, text, _ = call([f"redis://127.0.0.1:{port}/{number}" for number in range(20)], "--json")
    silent = [row for row in json.loads(text) if row["check"] == "reachable"]
    assert code == 2 and len(silent) == 20 and all("says nothing" in row["seen"] for row in silent)


def test_two_workers_may_name_one_node_with_and_without_its_socket(call, server, tmp_path):
    outcome = call([server, f"{server}?socket={tmp_path}/none.sock"], "--json")
    found = [row for row in json.loads(outcome[1]) if row["check"] == "socket"]
    assert [(row["workers"], row["state"]) for row in found] == [([0, 1], "fail")]


def test_while_a_run_is_going_on(call, server, tmp_path):
    """The doctor names the run, and the run goes on."""
    file, gate = experiment(tmp_path, "checked", [server]), tmp_path / "gate"
    worker = Worker(["0", "--config", file, "--out", tmp_path / "run"], tmp_path / "log", {6: f"hold:{gate}"})
    try:
        worker.until("begins at step 0")
        outcome = call([server], "--json")
        state, seen = states(outcome)[server.partition("//")[2].partition("/")[0], "run"]
        assert outcome[0] == 0 and state == "ok" and f"training: worker 0 on {this_host().split('/', 1)[0]}" in seen
        assert f"process {worker.pid}," in seen
        gate.touch()
        assert worker.end() == 0
    finally:
        worker.kill()


# --- this host --------------------------------------------------------------------------------------


def test_a_data_set_that_is_not_here(call, tmp_path):
    missing = ["--json", "--set", "data.name=mnist", "--set", f"data.root={tmp_path}", "--set", "model.image_size=28"]
    outcome = call(1, *missing)
    state, seen = host(outcome, "data")
    assert outcome[0] == 2 and state == "fail" and f"looked for {tmp_path}/MNIST" in seen
    # The networks can be checked all the same.
    assert "guessed" in host(outcome, "networks")[1]
    outcome = call(1, *missing, "--set", "data.download=true", "--local-redis", "one")
    assert outcome[0] == 0 and host(outcome, "data")[0] == "warn" and not (tmp_path / "MNIST").exists()


def test_a_shard_that_is_too_small(call):
    outcome = call(1, "--json", "--set", "data.batch_size=5000", "--set", "data.download=true")
    assert outcome[0] == 2 and host(outcome, "data")[0] == "fail"


def test_a_gpu_that_is_not_here(call):
    outcome = call(1, "--json", "--set", "device=cuda:9999")
    assert outcome[0] == 2 and host(outcome, "device")[0] == "fail" and "cuda:9999" in host(outcome, "device")[1]
    outcome = call(1, "--json", "--set", "device=auto")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert host(outcome, "device")[0] == "ok" and f"auto: {expected} would be used" in host(outcome, "device")[1]


def test_where_the_run_folder_will_be(call, tmp_path):
    (tmp_path / "file").touch()
    outcome = call(1, "--json", "--out", str(tmp_path / "file"))
    assert outcome[0] == 2 and host(outcome, "disk")[0] == "fail"
    state, seen = host(call(1, "--json", "--out", str(tmp_path / "new" / "run")), "disk")
    assert state == "ok" and str(tmp_path) in seen and not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small(call):
    outcome = call(1, "--json", "--set", f"run.keep_checkpoints={2**50}")
    assert outcome[0] == 2 and "free in" in host(outcome, "disk")[1] and host(outcome, "disk")[0] == "fail"
    assert host(call(1, "--json", "--set", "run.checkpoint_every=0"), "disk")[0] == "ok"


def test_memory_that_is_too_small(call):
    """The backlog of these settings is larger than the memory of any host."""
    huge = ["--set", "bus.unbounded_backlog=1000000000000", "--set", "mode.slack=null"]
    outcome = call(1, "--json", *huge)
    assert host(outcome, "memory")[0] == "warn" and host(call(1, "--json"), "memory")[0] == "ok"


def test_a_host_without_a_node(call):
    outcome = call(["redis://192.0.2.1:1?socket_connect_timeout=1"], "--json")
    assert "only looks on" in host(outcome, "this host")[1]


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("redis://127.0.0.1:6379", True),
        ("redis://localhost", True),
        ("unix:///tmp/redis.sock", True),
        ("redis://192.0.2.1:6379", False),
        ("redis://no-such-host.invalid:6379", False),
    ],
)
def test_the_nodes_of_this_host(url, here):
    assert doctor.is_here(url) is here


# --- as a command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--set", "mode.slak=1"], ["--set", "peers=[redis://host:port]"], ["--set", "seed"]])
def test_a_mistyped_setting_is_one_line(call, capsys, tmp_path, words):
    code, out, text = call(1, "--json", *words)
    assert (code, out) == (2, "") and text.startswith("degan doctor: ") and text.count("\n") == 1
    assert launch_main(["doctor", str(tmp_path / "checked.yaml"), *words]) == 2
    out, text = capsys.readouterr()
    assert out == "" and text.startswith("error: ") and text.count("\n") == 1


def test_a_password_is_nowhere(call, server):
    port = server.rpartition(":")[2]
    code, table, text = call([f"redis://me:geheim@127.0.0.1:{port}"])
    assert code == 2 and "geheim" not in table + text
    code, table, text = call(["redis://me:ge/heim@127.0.0.1:1"])
    assert code == 2 and "heim" not in table + text


STAND_IN = """\
import sys
print(*sys.argv[1:], sep="\\n")
sys.exit(2)
"""


def test_the_launcher_hands_over_and_answers(tmp_path, capsys):
    (tmp_path / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    commands = Commands(doctor=(sys.executable, str(tmp_path / "stand_in.py")))
    file = str(experiment(tmp_path, "checked", 2))
    assert launch_main(["doctor", file, "--set", "seed=5", "--out=-x", "--json"], commands) == 2
    *before, local, dashes, name = capsys.readouterr().out.splitlines()
    assert before == ["--set=seed=5", "--out=-x", "--json"] and (dashes, name) == ("--", file)
    assert local == f"--local-redis={launch_servers.find('auto').about()}"
    file = str(experiment(tmp_path, "checked", ["redis://host"]))
    assert launch_main(["doctor", file], commands) == 2
    assert capsys.readouterr().out.splitlines() == ["--", file]


def test_the_redis_that_the_launcher_would_start(call, monkeypatch, capsys, tmp_path):
    for kind in launch_servers.KINDS:
        described = launch_servers.find(kind).about()
        assert any(char.isdigit() for char in described) and "unknown" not in described
        assert host(call(3, "--json", "--local-redis", described), "redis") == (
            "ok",
            f"the local launcher would use {described}",
        )
    outcome = call(3, "--json", "--no-local-redis", "no Redis for the workers: install one")
    assert outcome[0] == 2 and host(outcome, "redis")[0] == "fail"
    assert host(call(3, "--json"), "redis")[0] == "warn"


def test_by_its_own_command(tmp_path, capsys):
    """The command is that of a person, with nothing replaced."""
    assert launch_main(["doctor", str(experiment(tmp_path, "checked", 2)), "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["check"] for row in found} == {"settings", "data", "networks", "device", "redis", "memory", "disk"}


def test_every_experiment_that_comes_along_can_be_checked():
    """The networks, and with them the needs of a node, follow from the settings alone."""
    for path in sorted(Path(config.reader.EXPERIMENTS).glob("*.yaml")):
        settings = config.load(path)
        if settings.data.name in doctor.CHANNELS and settings.data.name != "folder":
            assert doctor._learner(settings, None).size > 0
