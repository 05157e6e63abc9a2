"""Become a command that dies with its parent: `python -I -S launch/child.py PARENT_PID COMMAND...`.

How it works. On Linux the wrapper asks the kernel to kill it when its parent ends (the request
survives exec), checks that the parent has not ended already, and becomes the command. The process id stays
the same, and nothing of the wrapper is left. Elsewhere the wrapper stays, runs the command as a child and
checks its parent's id a few times a second.

What always holds: when the launcher has ended, even by `kill -9`, the command ends too.

For the kernel the parent is a *thread*: a process must start this wrapper from its main thread.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1
POLL_S = 0.2
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
NOT_FOUND = 127


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; exit at once where the parent has ended already."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def watch(parent: int, command: list[str]) -> int:
    """Run `command` as a child of this process, and kill it when `parent` ends: for systems without prctl.

    Returns:
        The command's exit code, as a shell counts it (128 + n for signal n).
    """
    import subprocess

    process = subprocess.Popen(command)
    for name in PASSED_ON:
        signal.signal(getattr(signal, name), lambda number, frame: process.send_signal(number))
    while True:
        try:
            code = process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                process.kill()
                process.wait()
                return 1
            continue
        if code < 0:
            # End as the command did, so that the launcher sees a signal where there was one.
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        return code if code >= 0 else 128 - code


def main(argv: list[str]) -> int:
    """Run `argv[1:]` as a child that does not outlive process `argv[0]`."""
    parent, command = int(argv[0]), argv[1:]
    # Python ignores these signals at its start, and an ignored signal stays ignored after exec.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        if not sys.platform.startswith("linux"):
            return watch(parent, command)
        die_with_parent(parent)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror or error}", file=sys.stderr)
    return NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
