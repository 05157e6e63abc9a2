"""`python -m degan.worker N --config FILE`: one worker, on its host, until the last step."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO

import config
from config import UsageError
from degan.runs.journal import log
from degan.worker.number import worker_number
from degan.worker.signals import Signals

try:
    import fcntl
except ImportError:  # Only Unix has fcntl.
    fcntl = None

# The time that a replaced worker has to end by itself.
TAKEOVER_S = 10.0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m degan.worker", description="Train one worker of an experiment, on this host."
    )
    found.add_argument("number", nargs="?", help="which worker this is, from 0; else RANK and the like say")
    found.add_argument("--config", required=True, metavar="FILE", help="the experiment file, the same on every host")
    found.add_argument("--out", metavar="DIR", help="the run folder (default: runs/NAME)")
    found.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting")
    found.add_argument("--resume", metavar="latest|PATH", help="go on from a checkpoint")
    found.add_argument("--takeover", action="store_true", help="replace a worker of this number that still runs")
    found.add_argument("--dry-run", action="store_true", help="check the settings, the data and the models, then stop")
    return found


def main(argv: list[str]) -> int:
    """Run one worker.

    Returns:
        0 when done or asked to stop; 1 when the run failed; 2 when a person has to fix something.
    """
    arguments = parser().parse_args(argv)
    try:
        settings = config.load(arguments.config, arguments.set)
        number, source = worker_number(arguments.number, settings.workers, os.environ, platform.node())
        if arguments.number is None:
            log(f"this is worker {number}, from {source}")
        out = Path(arguments.out or Path("runs") / settings.name)
        signals = Signals()
        code = _live(settings, number, out, signals, arguments.resume, arguments.dry_run, arguments.takeover)
        while code is None:
            code = _live(settings, number, out, signals, "latest")
        return code
    except UsageError as error:
        print(f"degan.worker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        log("stopped before the first step")
        return 0


def _live(
    settings: config.Experiment,
    number: int,
    out: Path,
    signals: Signals,
    resume: str | None,
    is_dry: bool = False,
    may_take_over: bool = False,
) -> int | None:
    """One incarnation of the worker: an exit code, or None if its lease expired and it must begin another."""
    # Torch takes seconds to load; a mistyped key is reported before that.
    from degan import modes
    from degan.artifacts.checkpoints import Checkpoints
    from degan.worker.faults import FaultInjector, script
    from degan.worker.loop import Loop
    from degan.worker.setup import Setup
    from peers.errors import LeaseExpiredError, PeersError, SetupError

    plan = script(os.environ, settings).for_worker(number)
    setup = Setup.build(settings, number)
    if is_dry:
        log(
            f"worker {number} of {settings.workers}: {len(setup.shard):,} samples, "
            f"{setup.learner.size:,} values, device {setup.learner.device}; nothing was started"
        )
        return 0
    folder = out / f"w{number}"
    if may_take_over:
        _end_holder(folder, number)
    injector = FaultInjector(plan)
    if plan.faults:
        log("this worker injects faults into itself, as DEGAN_FAULTS says: " + ", ".join(map(str, plan.faults)))
        injector.hold(setup.learner, settings)
    hooks = (injector.begin, injector.saving) if plan.faults else ()
    kept = (settings.run.keep_checkpoints, log, settings.run.keep_best)
    checkpoints = Checkpoints(folder / "checkpoints", *kept, *hooks[1:])
    steps = _resumable(checkpoints, resume, folder, settings)
    _prepare_folder(folder)
    mode = None
    # Before the pid is written: a process that reads the pid may send a signal.
    signals.install()
    lock = _lock_folder(folder, number)
    try:
        context = modes.Context(settings, number, setup.learner, setup.facts, setup.peer_info, log, may_take_over)
        mode = modes.build(context)
        Loop(setup, mode, out, checkpoints, steps, signals, log, *hooks[:1]).run()
        return 0
    except SetupError as error:
        raise UsageError(str(error)) from None
    except LeaseExpiredError as error:
        if signals.is_leaving:
            log(f"{error}; stopping, as this worker was told to")
            return 0
        signals.has_begun = False
        log(f"{error}; the others went on, joining them again")
        return None
    except PeersError as error:
        print(f"degan.worker: worker {number} failed: {error}", file=sys.stderr)
        return 1
    except UsageError:
        raise
    except Exception:
        traceback.print_exc()
        print(f"degan.worker: worker {number} failed; this is a defect, please report the lines above", file=sys.stderr)
        return 1
    finally:
        if mode is not None:
            mode.close()
        lock.close()
        _tidy(folder)


def _lock_folder(folder: Path, number: int) -> IO[str]:
    """The folder's `pid` file with this process's pid, locked while open: two workers may not share a folder."""
    file = open(folder / "pid", "a+", encoding="utf-8")  # noqa: SIM115
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        other = file.read().strip() or "another one"
        file.close()
        raise UsageError(
            f"worker {number} is already running on {platform.node()} as process {other}, in {folder}; "
            "give this one another number or another --out, stop that one first, or replace it with --takeover"
        ) from None
    except OSError:
        pass  # A file system without locks.
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _end_holder(folder: Path, number: int) -> None:
    """End the worker that holds a folder's lock: first with SIGTERM, then with SIGKILL. Raises UsageError."""
    signals, deadline = ["SIGTERM", "SIGKILL"], 0.0
    while folder.exists():
        try:
            _lock_folder(folder, number).close()
            return
        except UsageError:
            if time.monotonic() >= deadline:
                pid = _holder(folder / "pid")
                if pid is None or not signals:
                    raise
                name, deadline = signals.pop(0), time.monotonic() + TAKEOVER_S
                log(f"taking worker {number} over from process {pid}, which gets a {name}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, getattr(signal, name))
        time.sleep(0.1)


def _holder(path: Path) -> int | None:
    """The process that a `pid` file names, if a process of this machine with that number has the file open. In a
    shared folder the number may be another machine's."""
    try:
        pid = int(path.read_text(encoding="utf-8"))
        opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except (OSError, ValueError):
        return None
    return pid if str(path.resolve()) in opened else None


def _tidy(folder: Path) -> None:
    """Remove the folder of an incarnation that was refused before it wrote a file."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == ["pid"]:
            (folder / "pid").unlink()
            folder.rmdir()
            folder.parent.rmdir()


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def _resumable(checkpoints, resume: str | None, folder: Path, settings: config.Experiment) -> list[int]:
    """The steps that this worker may resume from, newest last."""
    from degan.artifacts.checkpoints import check_same_experiment, read

    if resume is None:
        if checkpoints.steps():
            raise UsageError(
                f"{folder} holds checkpoints of an earlier run; add --resume latest to go on, or choose another --out"
            )
        return []
    if resume == "latest":
        steps = checkpoints.whole_steps()
        if not steps:
            log(f"nothing to resume in {checkpoints.folder}; starting at the beginning")
    else:
        path = Path(resume).resolve()
        if path.parent != checkpoints.folder.resolve():
            raise UsageError(f"--resume {resume}: expected latest, or a folder in {checkpoints.folder}")
        steps = [read(path).step]
    if steps:
        newest = checkpoints.load(steps[-1])
        check_same_experiment(newest, config.agreed(settings), str(checkpoints.folder / f"{steps[-1]:06d}"))
    return steps


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
