"""The words of the command line reach their place: the launcher's options, its voice, and the order of a start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import config
from config import UsageError
from launch import __main__ as launcher
from launch import handover, local, plan, servers
from launch.folder import RunFolder
from launch.interrupts import Interrupts
from launch.plan import Commands, Limits, Plan
from launch.servers import Program
from launch.voice import Voice

COMMANDS = Commands(compare=("compare",), doctor=("doctor",))
LIMITS = Limits(report_s=7.0)


@pytest.fixture
def handed(monkeypatch):
    """The command that was handed over, its name, and its time limit."""
    found: list = []
    monkeypatch.setattr(
        handover, "run", lambda command, doing, limit, voice: found.append((command, doing, limit)) or 5
    )
    return found


def call(*words: str) -> int:
    return launcher.main(list(words), COMMANDS, LIMITS)


# --- words ------------------------------------------------------------------------------------------


def test_the_words_of_a_local_run(monkeypatch):
    made, ran = [], []
    monkeypatch.setattr(plan, "make", lambda *words, **more: made.append((words, more)) or "the plan")
    monkeypatch.setattr(local, "run", lambda found, voice, line: ran.append((found, line)) or 9)
    words = ["local", "a.yaml", "--out", "o", "--workers", "4", "--bus", "fake", "--servers", "one", "--port", "7000"]
    words += ["--set", "a=1", "--set", "b=2", "--resume", "latest"]
    assert call(*words) == 9 and ran == [("the plan", ["python", "-m", "launch", *words])]
    rest = {"commands": COMMANDS, "limits": LIMITS}
    asked = {"workers": 4, "overrides": ["a=1", "b=2"], "bus": "fake", "one_server": True, "port": 7000, "resume": True}
    assert made.pop() == (("a.yaml", "o"), asked | rest)
    call("local", "a.yaml", "--out", "o")
    asked = {"workers": None, "overrides": [], "bus": "auto", "one_server": False, "port": None, "resume": False}
    assert made.pop() == (("a.yaml", "o"), asked | rest)


def test_the_words_of_a_comparison(handed):
    assert call("compare", "a", "b", "--out=c") == 5
    assert handed.pop() == (["compare", "--out=c", "--", "a", "b"], "comparing", 7.0)
    call("compare", "--json", "--markdown", "a", "b")
    assert handed.pop()[0] == ["compare", "--markdown", "--json", "--", "a", "b"]


def test_the_words_of_a_look_at_all_nodes(handed, monkeypatch, tmp_path):
    looked = []
    monkeypatch.setattr(servers, "find", lambda bus: looked.append(bus) or SimpleNamespace(about=lambda: "redis 7"))
    assert call("doctor", "smoke", "--set", "seed=2", "--set", "peers=2", "--out", "o", "--json") == 5
    words = ["doctor", "--set=seed=2", "--set=peers=2", "--out=o", "--json", "--local-redis=redis 7", "--", "smoke"]
    assert handed.pop() == (words, "the doctor", 7.0) and looked == ["auto"]
    call("doctor", "smoke", "--set=peers=[redis://a:1, redis://b:1]")
    assert handed.pop()[0] == ["doctor", "--set=peers=[redis://a:1, redis://b:1]", "--", "smoke"] and len(looked) == 1
    monkeypatch.setattr(servers, "find", lambda bus: (_ for _ in ()).throw(UsageError("none there")))
    call("doctor", "smoke")
    assert handed.pop()[0] == ["doctor", "--no-local-redis=none there", "--", "smoke"]


def test_an_error_that_a_person_can_fix_is_one_line_and_code_2(handed, monkeypatch, capsys):
    monkeypatch.setattr(handover, "run", lambda *words: (_ for _ in ()).throw(UsageError("it is so")))
    assert call("compare", "a", "b") == 2
    assert capsys.readouterr() == ("", "error: it is so\n")
    monkeypatch.setattr(handover, "run", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call("compare", "a", "b") == 130


# --- the voice --------------------------------------------------------------------------------------


def test_a_line_of_the_voice_is_printed_and_logged(tmp_path, capsys):
    voice, log = Voice(), tmp_path / "log.txt"
    voice.log("before there is a log")
    voice.log_to(log)
    voice.log("one\ntwo")
    voice.show("only heard")
    voice.note("only logged")
    voice.error("bad")
    assert capsys.readouterr() == ("before there is a log\none\ntwo\nonly heard\n", "bad\n")
    said = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    assert said == ["before there is a log", "one", "two", "only logged", "bad"]
    voice.forget_log()
    voice.log("after")
    assert "after" not in log.read_text() and capsys.readouterr().out == "after\n"


def test_an_unwritable_log_is_reported_once(tmp_path, capsys):
    voice = Voice()
    voice.log_to(tmp_path / "not there" / "log.txt")
    voice.note("one")
    voice.note("two")
    assert capsys.readouterr().err.count("cannot write the launcher's log") == 1


# --- a start ----------------------------------------------------------------------------------------


class Started:
    """A start over stand-ins for servers and workers; `order` is the list of events."""

    def __init__(self, folder: Path, prepare: str = 'test -f "$1" && echo data is there', resume: bool = False, **more):
        self.order: list[str] = []
        commands = Commands(prepare=("/bin/sh", "-c", prepare))
        program = Program("redis", "/usr/bin/redis-server")
        self.plan = Plan(config.load("smoke"), folder, program, port=7000, resume=resume, commands=commands, **more)
        self.folder = RunFolder(folder)
        self.urls = [f"redis://127.0.0.1:700{n}/0" for n in range(3)]
        self.servers = SimpleNamespace(version="7.0.15", addresses=["A", "B", "C"], start=self._start_servers)
        self.fleet = SimpleNamespace(start=lambda: self.order.append("workers start"))
        self.voice = SimpleNamespace(log=self.order.append, note=self._note, log_to=lambda path: None)

    def _start_servers(self, folder, count, base, interrupts) -> list[str]:
        self.order.append(f"{count} servers from {base}")
        return self.urls

    def _note(self, text: str) -> None:
        self.order.append(f"note: {text}")

    def run(self) -> list[str]:
        line = ["python", "-m", "launch", "local", "a b"]
        local._start(self.plan, self.folder, self.servers, self.fleet, self.voice, Interrupts(), line)
        return self.order


@pytest.mark.parametrize(("resume", "verb"), [(False, "start"), (True, "go on")])
def test_a_run_is_started_in_order(tmp_path, resume, verb):
    one = Started(tmp_path / "run", resume=resume)
    assert one.run() == [
        "note: python -m launch local 'a b'",
        "3 servers from 7000",
        "redis 7.0.15 at A, B, C",
        "data is there",
        f"3 workers {verb} in {tmp_path}/run",
        "workers start",
    ]
    # The settings are there before the data is prepared, with the servers' addresses.
    assert config.load(tmp_path / "run").peers == one.urls
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["redis"]["urls"] == one.urls and record["redis"]["version"] == "7.0.15"
    assert record["command"] == ["python", "-m", "launch", "local", "a b"]


def test_one_server_for_all(tmp_path):
    one = Started(tmp_path / "run", one_server=True)
    one.urls = one.urls[:1]
    assert "1 servers from 7000" in one.run() and config.load(tmp_path / "run").peers == one.urls * 3


def test_no_worker_starts_without_data(tmp_path):
    one = Started(tmp_path / "run", prepare="echo no data >&2; exit 2")
    with pytest.raises(UsageError, match="^no data$"):
        one.run()
    assert "workers start" not in one.order


def test_every_line_of_a_start_is_printed_once(tmp_path):
    said: list[str] = []
    voice = SimpleNamespace(log=said.append)
    with open(tmp_path / "output", "w+b") as file:
        file.write(b"one\ntwo\nhal")
        file.flush()
        at = local._log_new(file, 0, voice)
        assert (said, at) == (["one", "two"], 8)
        assert local._log_new(file, at, voice) == 8 and len(said) == 2
        os.pwrite(file.fileno(), b"f\n", 11)
        assert local._log_new(file, at, voice) == 13 and said[2:] == ["half"]


@pytest.mark.parametrize("what", ["servers", "workers"])
def test_a_start_that_fails_leaves_nothing(tmp_path, monkeypatch, what):
    """Workers end first, then servers, and files go last; a person sees the first error."""
    one, order = Started(tmp_path / "run"), []

    def fail(*words):
        raise UsageError(f"no {what}")

    if what == "servers":
        one.servers.start = fail
    else:
        one.fleet.start = fail
    one.servers.stop, one.fleet.kill = lambda: order.append("servers"), lambda: order.append("workers")
    monkeypatch.setattr(local, "Servers", lambda program: one.servers)
    monkeypatch.setattr(local, "Fleet", lambda plan, folder: one.fleet)
    with pytest.raises(UsageError, match=f"no {what}"):
        local.run(one.plan, Voice(), ["line"])
    assert not (tmp_path / "run").exists() and order[:2] == ["workers", "servers"]
