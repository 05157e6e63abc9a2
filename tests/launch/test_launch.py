"""The launcher with a stand-in for the worker: the started processes, the refusals, and no process left running."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import config
from peers.bus.redis.client import split_socket

pytestmark = pytest.mark.timeout(100)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and uses pidfds")

ROOT = Path(__file__).resolve().parent.parent.parent

# One file is worker, preparation and report; the environment sets the behaviour of each:
# STAND_IN = {"0": "finish" | "wait" | "deaf" | "late" | "exit N", "prepare": ..., "report": ...}. A worker
# that waits reads a pipe in its folder until the test opens the other end.
STAND_IN = r"""
import json, os, pathlib, re, signal, socket, sys

role, words = sys.argv[1], sys.argv[2:]
todo = json.loads(os.environ.get("STAND_IN", "{}")).get(words[0] if role == "worker" else role, "finish")
if role != "worker":
    if role == "report" and todo == "finish":
        pathlib.Path(words[0], "report.html").write_text("pictures")
    if todo.startswith("exit"):
        sys.exit(print(f"{role}: no such data", file=sys.stderr) or int(todo[5:]))
    if todo == "wait":
        print("downloading", flush=True)
        signal.pause()
    sys.exit(print("data is there"))

number, out = int(words[0]), pathlib.Path(words[words.index("--out") + 1])
home = out / f"w{number}"
urls = re.findall(r"redis://([0-9.]+):([0-9]+)/0", pathlib.Path(words[words.index("--config") + 1]).read_text())
with socket.create_connection(urls[number], 5) as server:
    server.sendall(b"*1\r\n$4\r\nPING\r\n")
    assert server.recv(7) == b"+PONG\r\n"

def save(number, frame):
    (home / "checkpoints" / signal.Signals(number).name).mkdir(parents=True)
    sys.exit(0)

for asked in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(asked, {"deaf": signal.SIG_IGN, "late": signal.SIG_DFL}.get(todo, save))
if not (home / "gate").exists():
    os.mkfifo(home / "gate")
if todo != "late":
    (home / "pid").write_text(str(os.getpid()))
print("threads", os.environ["OMP_NUM_THREADS"], "words", *words, flush=True)
step = 20 if "--resume" in words else 0
with open(home / "stats.jsonl", "a") as stats:
    for k in (1, 2):
        row = dict(step=step + 10 * k, time_s=5.0 * k, d_loss=0.5, g_loss=1.5, sent_bytes=3 << 20, received_bytes=1536,
                   staleness_mean=1.25, staleness_max=2, live_peers=1, dropped={"late": 2, "invalid": 1})
        stats.write(json.dumps(row) + "\n")
if number == 0:
    with open(out / "metrics.jsonl", "a") as metrics:
        for at, name, value in ((0, "_floor", 3.5), (0, "", 99.0), (10, "", 42.0)):
            line = dict(step=at, worker=0, metric="fid64_classifier" + name, value=value)
            metrics.write(json.dumps(line) + "\n")
if todo in ("wait", "deaf", "late"):
    open(home / "gate").close()
if todo.startswith("exit"):
    print("worker: the shard is empty", file=sys.stderr)
    sys.exit(int(todo[5:]))
"""

DRIVER = """
import sys
from launch.__main__ import main
from launch.plan import Commands, Limits
call = [(sys.executable, sys.argv[1], role) for role in ("worker", "prepare", "report")]
sys.exit(main(sys.argv[2:], Commands(*call), Limits(plain_every_s=0.0)))
"""


class Launch:
    """A launcher in a process of its own, with its output line by line."""

    def __init__(self, folder: Path, words: list[str], todo: dict[str, str], stdout=subprocess.PIPE) -> None:
        script = folder / "stand_in.py"
        script.write_text(STAND_IN)
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        environment |= {"STAND_IN": json.dumps(todo), "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(script), *words],
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout == subprocess.PIPE else stdout,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.text = ""

    def until(self, *wanted: str) -> None:
        """Read on until every text has come."""
        while not all(words in self.text for words in wanted):
            line = self.process.stdout.readline()
            assert line, f"the launcher ended without saying {wanted}:\n{self.text}"
            self.text += line

    def end(self) -> int:
        """The exit code; all output is in `text`."""
        self.text += self.process.stdout.read()
        return self.process.wait()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def launch(tmp_path):
    started = []

    def start(*words: str, todo: dict[str, str] | None = None, **options) -> Launch:
        words = ("local", "smoke", "--out", "run", "--workers", "2", "--set", "run.steps=20", *words)
        started.append(Launch(tmp_path, list(words), todo or {}, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        if one.process.stdout:
            one.process.stdout.close()


def open_gate(folder: Path) -> None:
    """Let a waiting worker go on; return when it has read the byte."""
    with open(folder / "gate", "w"):
        pass


def free_port() -> int:
    """A port below those that the system gives out by itself, so that no other process takes it meanwhile."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no free port")


def socket_folders(folder: Path) -> set[Path]:
    """The folders of the sockets of a run's servers."""
    near = [split_socket(url)[1] for url in config.load(folder / "run").peers]
    return {Path(url.removeprefix("unix://").partition("?")[0]).parent for url in near if url.startswith("unix:")}


def ended(pids: list[int]) -> list[int]:
    """File descriptors that become readable when these processes have ended."""
    return [os.pidfd_open(pid) for pid in pids]


def all_end(descriptors: list[int], timeout_s: float = 10.0) -> bool:
    try:
        return all(select.select([one], [], [], timeout_s)[0] for one in descriptors)
    finally:
        for one in descriptors:
            os.close(one)


# --- a run that goes well -----------------------------------------------------------------------


def test_a_run_from_start_to_end(launch, tmp_path):
    run = launch()
    assert run.end() == 0, run.text
    assert "data is there" in run.text
    assert "w0 finished  step 20/20  steps/s 2  d_loss 0.5  g_loss 1.5  staleness 1.2 (max 2)" in run.text
    summary = next(line for line in run.text.splitlines() if line.startswith("w0") and line.endswith("3.5"))
    assert " ".join(summary.split()) == "w0 finished 20/20 2 3.0 MiB 1.5 KiB 3 99 42 3.5"
    assert run.text.splitlines()[-1] == "report: run/report.html"

    folder = tmp_path / "run"
    assert not any(sockets.exists() for sockets in socket_folders(tmp_path))
    peers = config.load(folder / "experiment.yaml").peers
    assert len(set(peers)) == 2 and all(url.startswith("redis://127.0.0.1:") for url in peers)
    record = json.loads((folder / "environment.json").read_text())
    assert record["redis"]["urls"] == peers and record["packages"]["redis"] and record["redis"]["version"]
    assert "report: run/report.html" in (folder / "log.txt").read_text()
    words = "words 1 --config run/experiment.yaml --out run"
    assert (folder / "w1" / "log.txt").read_text() == f"threads 1 {words}\n"


def test_the_live_table_on_a_terminal(launch, tmp_path):
    master, terminal = pty.openpty()
    run = launch(stdout=terminal, todo={"0": "wait"})
    os.close(terminal)
    shown = b""
    while b"training" not in shown:
        shown += os.read(master, 65536)
    open_gate(tmp_path / "run/w0")
    try:
        while more := os.read(master, 65536):
            shown += more
    except OSError:  # The other end of the terminal is closed.
        pass
    os.close(master)
    assert run.process.wait() == 0
    assert b"staleness" in shown and b"report: run/report.html" in shown


def test_one_server_for_all_and_ports_counted_from_a_base(launch, tmp_path):
    port = free_port()
    run = launch("--servers", "one", "--port", str(port))
    assert run.end() == 0, run.text
    peers = config.load(tmp_path / "run").peers
    assert [split_socket(url)[0] for url in peers] == [f"redis://127.0.0.1:{port}/0"] * 2
    assert peers[0] == peers[1], "one server has one socket"


# --- endings ------------------------------------------------------------------------------------


@linux
def test_kill_9_of_the_launcher_leaves_no_child_and_no_socket(launch, tmp_path):
    run = launch(todo={"0": "wait", "1": "deaf"})
    run.until("w0 training", "w1 training")
    children = run.children()
    assert len(children) == 5  # two workers, two servers, and the process that removes the folder of the sockets
    (folder,) = socket_folders(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700 and len(list(folder.iterdir())) == 2
    descriptors = ended(children)
    run.process.kill()
    assert all_end(descriptors)
    assert not folder.exists()


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_workers_stop_together_when_asked(launch, tmp_path, number, code):
    run = launch(todo={"0": "wait", "1": "wait"})
    run.until("w0 training", "w1 training")
    descriptors, (sockets,) = ended(run.children()), socket_folders(tmp_path)
    run.process.send_signal(number)
    assert run.end() == code, run.text
    assert all_end(descriptors) and not sockets.exists()
    assert (tmp_path / "run/w0/checkpoints/SIGUSR2").is_dir() and (tmp_path / "run/w1/checkpoints/SIGUSR2").is_dir()
    assert run.text.endswith("to go on: python -m launch local run --out run --resume latest\n")
    assert "report: run/report.html" in run.text


def test_a_second_ctrl_c_kills_at_once(launch):
    run = launch(todo={"0": "deaf", "1": "deaf"})
    run.until("w0 training", "w1 training")
    run.process.send_signal(signal.SIGINT)
    run.until("Ctrl-C: the workers agree")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert "worker 0 was killed: on request" in run.text and "worker 1 was killed: on request" in run.text


def test_ctrl_c_before_a_worker_listens_asks_each_by_itself(launch, tmp_path):
    run = launch(todo={"0": "wait", "1": "late"})
    run.until("w0 training", "w1 training")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert "worker 1 was still starting; it had nothing to save" in run.text
    assert (tmp_path / "run/w0/checkpoints/SIGTERM").is_dir()


def test_ctrl_c_while_preparing_leaves_nothing(launch, tmp_path):
    run = launch(todo={"prepare": "wait"})
    run.until("downloading")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert not (tmp_path / "run").exists()


def test_a_killed_worker_is_reported_and_the_others_go_on(launch, tmp_path):
    run = launch(todo={"0": "wait", "1": "wait"})
    run.until("w0 training", "w1 training")
    os.kill(int((tmp_path / "run/w1/pid").read_text()), signal.SIGKILL)
    run.until("worker 1 died: killed by SIGKILL; the others go on", "restart it with: ")
    assert "worker 1 --config run/experiment.yaml --out run --resume latest" in run.text
    open_gate(tmp_path / "run/w0")
    assert run.end() == 1
    assert "w0 finished" in run.text and "w1 died" in run.text


@linux
def test_servers_stay_up_for_a_worker_restarted_by_hand(launch, tmp_path):
    run = launch(todo={"0": "wait", "1": "wait"})
    run.until("w0 training", "w1 training")
    os.kill(int((tmp_path / "run/w1/pid").read_text()), signal.SIGKILL)
    run.until("restart it with: ")
    by_hand = run.text.rpartition("restart it with: ")[2].split()
    environment = {**os.environ, "STAND_IN": '{"1": "wait"}', "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(by_hand, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as restarted:
        try:
            run.until("w1 training  step 40/20")
            open_gate(tmp_path / "run/w0")
            run.until(f"worker 1 (pid {restarted.pid}), restarted by hand, still runs")
            for url in split_socket(config.load(tmp_path / "run").peers[1]):
                with redis.Redis.from_url(url, protocol=2) as client:
                    assert client.ping()
            open_gate(tmp_path / "run/w1")
            assert restarted.wait() == 0
            assert run.end() == 1, run.text
        finally:
            restarted.kill()


@pytest.mark.parametrize("code", [1, 2])
def test_a_failing_worker_stops_all_and_is_shown_last(launch, tmp_path, code):
    run = launch(todo={"0": "wait", "1": f"exit {code}"})
    assert run.end() == code
    last = run.text.splitlines()[-3:]
    assert last[0] == f"worker 1 failed (exit code {code}); the end of its log run/w1/log.txt:"
    assert last[2] == "  worker: the shard is empty"


def test_a_failing_report_is_reported_and_changes_no_exit_code(launch):
    run = launch(todo={"report": "exit 1"})
    assert run.end() == 0
    assert run.text.endswith("no report could be made: report: no such data\n")


# --- refusals: one line, exit code 2, nothing half-written ------------------------------------------


def refused(run: Launch, said: str) -> None:
    assert run.end() == 2, run.text
    assert said in run.text.splitlines()[-1] and "Traceback" not in run.text


def test_missing_data_is_one_line_and_leaves_no_folder(launch, tmp_path):
    refused(launch(todo={"prepare": "exit 2"}), "error: prepare: no such data")
    assert not (tmp_path / "run").exists()


def test_missing_data_leaves_a_folder_as_it_was(launch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    refused(launch(todo={"prepare": "exit 2"}), "no such data")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_refusals(launch, tmp_path):
    refused(launch("--set", "mode.slak=2"), "did you mean 'slack'?")
    refused(launch("--port", "65535"), "expected 2 ports between 1 and 65535")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(launch("--port", str(port)), f"port {port} cannot be used: Address already in use")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").write_text("a file, which not even root can use as a folder")
    refused(launch(), "cannot write to run: not a folder; choose another --out")


def test_an_existing_run_is_refused_and_resumed(launch, tmp_path):
    assert launch().end() == 0
    before = (tmp_path / "run/experiment.yaml").read_bytes()
    refused(launch(), "run already holds a run")
    refused(launch("--resume", "latest", "--set", "mode.slack=7"), "mode.slack: 7, but the run in run has 2")
    refused(launch("--resume", "latest", "--set", "run.steps=10"), "may be raised, not lowered")
    refused(launch("--resume", "latest", "--out", "other"), "other holds no run to resume")
    refused(launch("--resume", "latest", todo={"prepare": "exit 2"}), "no such data")
    assert (tmp_path / "run/experiment.yaml").read_bytes() == before
    run = launch("--resume", "latest", "--set", "run.steps=40")
    assert run.end() == 0, run.text
    assert "w1 finished  step 40/40" in run.text
    assert config.load(tmp_path / "run").run.steps == 40
