"""Starting and stopping processes: the launcher starts and stops all its processes here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).with_name("child.py")
POLL_S = 0.05
# A killed process ends almost at once; a longer time means a disk or driver that hangs.
KILLED_S = 10.0
TAIL_BYTES = 16 * 1024


def start(
    command: Iterable[str], output: IO[bytes], errors: IO[bytes] | None = None, one_thread: bool = False
) -> subprocess.Popen:
    """Start `command` as a child that dies with this process, in a session of its own.

    Must be called from the main thread (see `launch.child`). A terminal's Ctrl-C does not reach the child.

    Args:
        output: a file for the standard output, and for the standard error too where `errors` is None.
        one_thread: one OpenMP and one MKL thread, unless the user has set these.
    """
    wrapper = [sys.executable, "-I", "-S", str(CHILD), str(os.getpid())]
    return subprocess.Popen(
        [*wrapper, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if errors is None else errors,
        env=_environment(one_thread),
        start_new_session=True,
    )


def _environment(one_thread: bool) -> dict[str, str]:
    environment = dict(os.environ)
    if ROOT.name not in ("site-packages", "dist-packages"):
        paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    # A config.py in the current folder must not replace degan's package `config`.
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    if one_thread:
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("MKL_NUM_THREADS", "1")
    return environment


def stop(
    processes: Iterable[subprocess.Popen],
    number: signal.Signals | None,
    grace_s: float,
    tick: Callable[[], bool] = lambda: False,
) -> list[subprocess.Popen]:
    """Send signal `number` (none where None), wait up to `grace_s`, then kill the rest; all have ended on return.

    Args:
        tick: called between two polls; True ends the wait.

    Returns:
        The processes that had to be killed.
    """
    running = [process for process in processes if process.poll() is None]
    deadline = time.monotonic() + grace_s
    if number is not None:
        for process in running:
            process.send_signal(number)
    while running and time.monotonic() < deadline and not tick():
        time.sleep(POLL_S)
        running = [process for process in running if process.poll() is None]
    for process in running:
        kill(process)
    for process in running:
        process.wait(KILLED_S)
    return running


def wait(process: subprocess.Popen, timeout_s: float, tick: Callable[[], bool]) -> bool:
    """Wait for the end of `process`; kill it after `timeout_s`, or when `tick`, called between two polls, returns True.

    Returns:
        Whether the process ended by itself.
    """
    return not stop([process], None, timeout_s, tick)


def kill(process: subprocess.Popen) -> None:
    """Kill a process with all processes of its session; no effect on an ended process."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # The child has not made its own session yet, or the session has ended already.
            process.kill()


def signal_pid(pid: int | None, number: signal.Signals) -> None:
    """Send a signal to a process that is not a child of this one; no effect where there is none."""
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def how_it_ended(code: int) -> str:
    """`exit code 2`, or `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def last_lines(path: Path, count: int = 12, start: int = 0) -> list[str]:
    """The last lines of a file from byte `start` on; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def live_pid(path: Path) -> int | None:
    """The process id in file `path`, if that process lives and is the one that wrote the file.

    A process id is given out again after its owner's death. The second owner is younger than the file.
    """
    try:
        pid = int(path.read_text())
        written = path.stat().st_mtime
        os.kill(pid, 0)
    except (OSError, ValueError, OverflowError):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, ticks = fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return pid
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    if state in "ZX" or age_s + 1 < time.time() - written:
        return None
    return pid
