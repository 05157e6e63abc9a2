"""Processes that have torch loaded from their beginning: one server for all tests, which forks for each request.

Loading torch takes 4 s of CPU time, and every test process would otherwise have a fork server of its own.
The first `Fork` of a session starts the server: `python -m tests.forks SOCKET PID`; the server ends with the process
PID, which is the pytest of the session (with xdist its controller). It binds its socket, then loads the libraries.

    a client connects -> the server forks a guardian -> the guardian reads (function, arguments, sys.path, folder,
    environment), forks the process that calls the function, sends its pid, waits, and sends its exit code
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path

SOCKET, OWNER = "DEGAN_TEST_FORKS", "DEGAN_TEST_FORKS_OWNER"
START_S = 60.0


def own() -> None:
    """Make this process the owner of a server, which need not be started yet; called by the pytest of a session."""
    os.environ[SOCKET] = str(Path(tempfile.gettempdir()) / f"degan-forks-{uuid.uuid4().hex[:12]}" / "socket")
    os.environ[OWNER] = str(os.getpid())


def _connect() -> Connection:
    """A connection to the server of the session, which is started if there is none."""
    if SOCKET not in os.environ:
        own()
    path = Path(os.environ[SOCKET])
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with open(path.with_name("lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            root = Path(__file__).resolve().parent.parent
            command = [sys.executable, "-m", "tests.forks", str(path), os.environ[OWNER]]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            subprocess.run(command, cwd=root, start_new_session=True, check=True, timeout=START_S, **quiet)
    return Client(str(path), "AF_UNIX")


class Fork:
    """A process that calls a function; see `multiprocessing.Process` for its exit code.

    Args:
        function: a function at the top of a module.
        arguments: its arguments, which can be pickled.
    """

    def __init__(self, function: Callable, *arguments):
        self._connection = _connect()
        name = f"{function.__module__}:{function.__qualname__}"
        self._connection.send((name, arguments, sys.path, os.getcwd(), dict(os.environ)))
        self.pid: int = self._connection.recv()
        self._code: int | None = None

    def join(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; returns the exit code, minus the number of a signal, or None after the time."""
        if self._code is None and self._connection.poll(timeout_s):
            self._code = self._connection.recv()
            self._connection.close()
        return self._code

    def is_alive(self) -> bool:
        return self.join(0) is None

    def kill(self) -> None:
        # The process may end in between.
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


# --- the server -----------------------------------------------------------------------------------


def _call(name: str, arguments: tuple, paths: list[str], folder: str, environment: dict[str, str]) -> None:
    sys.path[:] = paths
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(*arguments)


def _guard(connection: Connection) -> None:
    """Fork the process of a request, and tell of its end. The process does not outlive the client."""
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    process = multiprocessing.get_context("fork").Process(target=_call, args=connection.recv())
    process.start()
    connection.send(process.pid)
    if process.sentinel not in wait([process.sentinel, connection]):
        # A client sends nothing more, so this is its end.
        process.kill()
    process.join()
    connection.send(process.exitcode)


def _end_with(owner: int, path: str) -> None:
    """End this server if its owner has ended."""
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        shutil.rmtree(Path(path).parent, ignore_errors=True)
        os._exit(0)


def serve(path: str, owner: int) -> None:
    """Fork for each connection, until the owner has ended."""
    with Listener(path, "AF_UNIX", backlog=64) as listener:
        if os.fork():
            os._exit(0)  # The starter waits for this process: from now on a client can connect.
        import tests.forks_preload  # noqa: F401

        # A timer, and no thread, because threads and forks do not go together.
        signal.signal(signal.SIGALRM, lambda *_: _end_with(owner, path))
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
        # The system reaps the guardians.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                try:
                    _guard(connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
