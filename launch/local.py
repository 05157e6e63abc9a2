"""One run on this machine from start to end: folder, servers, data, workers, summary, report."""

from __future__ import annotations

import os
import shlex
import tempfile
from typing import IO

import config
from config import UsageError
from degan.runs.folder import METRICS, STATS
from launch import environment, processes, table
from launch.board import Board
from launch.fleet import Fleet
from launch.folder import RunFolder
from launch.interrupts import Interrupted, Interrupts
from launch.plan import Plan
from launch.servers import Servers
from launch.supervise import Ending, Supervisor
from launch.voice import Voice

TAIL_LINES = 12


def run(plan: Plan, voice: Voice, command_line: list[str]) -> int:
    """Start the run, watch the run, and log how it ended; nothing that was started is left running.

    Args:
        command_line: the words that the person typed, for the record.

    Returns:
        The exit code: 0, the failed worker's, 1 where a worker had died, 128 + n after signal n.

    Raises:
        UsageError: the run could not be started; the run folder is as it was before.
    """
    folder, servers = RunFolder(plan.out), Servers(plan.program)
    fleet = Fleet(plan, folder)
    with Interrupts() as interrupts:
        try:
            try:
                _start(plan, folder, servers, fleet, voice, interrupts, command_line)
            except BaseException:
                fleet.kill()
                servers.stop()
                voice.forget_log()
                folder.discard()
                raise
            board = Board(folder, fleet.workers, plan.experiment.run.steps)
            with table.display(board, voice, plan.limits.plain_every_s) as display:
                ending = Supervisor(fleet, servers, interrupts, voice, plan.limits, display.update).run()
        except Interrupted as interrupted:
            voice.error(f"{interrupted}; no worker was started")
            return interrupted.exit_code
        finally:
            fleet.kill()
            servers.stop()
        _conclude(plan, folder, board, voice, interrupts, ending)
    return ending.exit_code


def _start(
    plan: Plan,
    folder: RunFolder,
    servers: Servers,
    fleet: Fleet,
    voice: Voice,
    interrupts: Interrupts,
    command_line: list[str],
) -> None:
    folder.open()
    try:
        folder.track("log.txt")
        voice.log_to(folder.path / "log.txt")
        voice.note(shlex.join(command_line))
        urls = servers.start(folder, plan.servers, plan.port, interrupts)
        voice.log(f"{plan.program.kind} {servers.version or ''} at {', '.join(servers.addresses)}")
        folder.write(folder.settings.name, config.dump(plan.settings_at(urls)))
        about = environment.describe(plan.program, servers.version, urls, command_line)
        folder.write("environment.json", about)
    except OSError as error:
        raise UsageError(f"cannot write to {folder.path}: {error.strerror or error}") from None
    _prepare(plan, folder, voice, interrupts)
    verb = "go on" if plan.resume else "start"
    voice.log(f"{plan.workers} worker{'s' if plan.workers > 1 else ''} {verb} in {folder.path}")
    fleet.start()


def _prepare(plan: Plan, folder: RunFolder, voice: Voice, interrupts: Interrupts) -> None:
    """Prepare the data and the metrics' classifier, once for all workers, before the first worker starts."""
    command = [*plan.commands.prepare, "--config", str(folder.settings)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = processes.start(command, output, errors)
        said = 0

        def tick() -> bool:
            nonlocal said
            said = _log_new(output, said, voice)
            return interrupts.count > 0

        ended = processes.wait(process, plan.limits.prepare_s, tick)
        tick()
        interrupts.check()
        if not ended:
            raise UsageError(f"preparing the data took longer than {plan.limits.prepare_s:.0f} s and was stopped")
        lines = _lines(errors)
    if process.returncode == 2 and lines:
        raise UsageError(lines[-1].removeprefix("degan: "))
    if process.returncode != 0:
        how = processes.how_it_ended(process.returncode)
        raise UsageError("\n  ".join([f"preparing the data failed ({how}); its last lines:", *lines[-TAIL_LINES:]]))
    if lines:
        voice.note("\n".join(lines))


def _log_new(output: IO[bytes], said: int, voice: Voice) -> int:
    """Log the whole lines from byte `said` on; returns the byte for the next call."""
    # The child shares this file's position for its writes, so the read must not move the position.
    data = _read(output, said)
    whole = data[: data.rfind(b"\n") + 1]
    for text in whole.decode("utf-8", "replace").splitlines():
        voice.log(text)
    return said + len(whole)


def _read(file: IO[bytes], start: int) -> bytes:
    return os.pread(file.fileno(), max(0, os.fstat(file.fileno()).st_size - start), start)


def _lines(file: IO[bytes]) -> list[str]:
    return [text.rstrip() for text in _read(file, 0).decode("utf-8", "replace").splitlines() if text.strip()]


def _conclude(
    plan: Plan, folder: RunFolder, board: Board, voice: Voice, interrupts: Interrupts, ending: Ending
) -> None:
    """Log the summary, the report, the command to go on, and last the error."""
    board.update()
    voice.log(table.aligned(board.rows))
    _report(plan, folder, voice, interrupts)
    if ending.exit_code > 128:
        if any(folder.path.glob("w*/checkpoints/*")):
            voice.log(f"to go on: {plan.go_on}")
        else:
            voice.log(f"no worker had saved a checkpoint; to begin again in the same folder: {plan.go_on}")
    failed = ending.failed
    if failed is not None:
        said = "".join(f"\n  {text}" for text in failed.last_lines())
        how = processes.how_it_ended(ending.exit_code)
        voice.error(f"worker {failed.number} failed ({how}); the end of its log {failed.log}:{said}")


def _report(plan: Plan, folder: RunFolder, voice: Voice, interrupts: Interrupts) -> None:
    results = [folder.path / METRICS, *folder.path.glob(f"w*/{STATS}")]
    if not any(file.is_file() and file.stat().st_size for file in results):
        return
    before = interrupts.count
    with tempfile.TemporaryFile() as output:
        process = processes.start([*plan.commands.report, str(folder.path)], output)
        ended = processes.wait(process, plan.limits.report_s, lambda: interrupts.count > before)
        lines = _lines(output)
    report = folder.path / "report.html"
    if process.returncode == 0 and report.exists():
        voice.log(f"report: {report}")
        return
    why = (lines or [processes.how_it_ended(process.returncode)])[-1] if ended else "it was stopped"
    voice.log(f"no report could be made: {why}")
    voice.note("\n".join(lines))
