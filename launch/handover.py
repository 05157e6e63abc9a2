"""Runs a command of the packages below that ends by itself, and passes its output and its exit code on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from config import UsageError
from launch import processes
from launch.interrupts import Interrupts
from launch.voice import Voice


def run(command: Sequence[str], doing: str, timeout_s: float, voice: Voice) -> int:
    """Run `command` to its end; `doing` names the command in the error of a timeout.

    Returns:
        The command's exit code, or 128 + n after signal n.

    Raises:
        UsageError: the command took longer than its limit.
    """
    with Interrupts() as interrupts, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = processes.start(command, output, errors)
        ended = processes.wait(process, timeout_s, lambda: interrupts.count > 0)
        if interrupts.count:
            return interrupts.exit_code
        if not ended:
            raise UsageError(f"{doing} took longer than {timeout_s:.0f} s and was stopped")
        for file, log in ((output, voice.show), (errors, voice.error)):
            file.seek(0)
            text = file.read().decode("utf-8", "replace").rstrip("\n")
            if text:
                log(text)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
