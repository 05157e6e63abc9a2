"""Runs held against each other, by the command that knows how: what it says is said, what it answers is answered."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from config import UsageError
from launch import processes
from launch.interrupts import Interrupts
from launch.plan import Commands, Limits
from launch.voice import Voice


def run(runs: Sequence[str], options: Sequence[str], voice: Voice, commands: Commands, limits: Limits) -> int:
    """Compare the run folders `runs`; `options` are the command's own.

    Returns:
        The command's exit code, or 128 + n after signal n.

    Raises:
        UsageError: it took longer than a report may.
    """
    with Interrupts() as interrupts, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        # "--" before the folders: the name of one may begin with a dash.
        process = processes.start([*commands.compare, *options, "--", *runs], output, errors)
        ended = processes.wait(process, limits.report_s, lambda: interrupts.count > 0)
        if interrupts.count:
            return interrupts.exit_code
        if not ended:
            raise UsageError(f"comparing took longer than {limits.report_s:.0f} s and was stopped")
        for file, say in ((output, voice.show), (errors, voice.error)):
            file.seek(0)
            text = file.read().decode("utf-8", "replace").rstrip("\n")
            if text:
                say(text)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
