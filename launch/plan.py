"""The plan of a local run: resolved settings, and every check before anything is written or started."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config
from config import Experiment, UsageError
from degan.runs.folder import SETTINGS
from launch import processes, servers

MISSING = object()


@dataclass(frozen=True)
class Commands:
    """The command lines with which the launcher calls the packages below; tests replace them by stand-ins.

    Arguments are appended. `worker`: the worker's number, `--config FILE --out DIR` and, for a resumed run,
    `--resume latest`. `prepare`: `--config FILE`. `report`: the run folder. `compare`: run folders and options.
    `doctor`: options and an experiment file.
    """

    worker: tuple[str, ...] = (sys.executable, "-m", "degan.worker")
    prepare: tuple[str, ...] = (sys.executable, "-m", "degan.worker.prepare")
    report: tuple[str, ...] = (sys.executable, "-m", "degan.report")
    compare: tuple[str, ...] = (sys.executable, "-m", "degan.compare")
    doctor: tuple[str, ...] = (sys.executable, "-m", "degan.worker.doctor")


@dataclass(frozen=True)
class Limits:
    """The launcher's longest waits, and the period of its plain lines."""

    prepare_s: float = 3600.0
    together_s: float = 60.0
    terminate_s: float = 10.0
    report_s: float = 300.0
    plain_every_s: float = 5.0


@dataclass(frozen=True)
class Plan:
    """One local run, checked and not yet started."""

    experiment: Experiment
    out: Path
    program: servers.Program
    one_server: bool = False
    port: int | None = None
    resume: bool = False
    # The options of this run, for the command that resumes it.
    options: tuple[str, ...] = ()
    commands: Commands = field(default_factory=Commands)
    limits: Limits = field(default_factory=Limits)

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self.experiment.workers

    @property
    def servers(self) -> int:
        """Number of Redis servers."""
        return 1 if self.one_server else self.workers

    def settings_at(self, urls: list[str]) -> Experiment:
        """The settings of the run with its servers' URLs, one for each worker."""
        peers = [urls[number % len(urls)] for number in range(self.workers)]
        # These servers are local to this machine, and have no users.
        return config.build({**config.parse(config.dump(self.experiment)), "peers": peers, "security": {}})

    def worker_command(self, number: int, resume: bool) -> list[str]:
        """The command line of worker `number`, also for a person who restarts it by hand."""
        files = ["--config", str(self.out / SETTINGS), "--out", str(self.out)]
        return [*self.commands.worker, str(number), *files, *(["--resume", "latest"] if resume else [])]

    @property
    def go_on(self) -> str:
        """The command with which a person resumes the run."""
        out = str(self.out)
        return shlex.join(["python", "-m", "launch", "local", out, "--out", out, *self.options, "--resume", "latest"])


def make(
    file: str,
    out: str,
    workers: int | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    bus: str = "auto",
    one_server: bool = False,
    port: int | None = None,
    resume: bool = False,
    commands: Commands | None = None,
    limits: Limits | None = None,
) -> Plan:
    """Resolve the settings and do all checks that need no writing.

    Args:
        workers: number of workers; None for the file's number. The file's own Redis URLs are not used.
        overrides: `a.b=c`, as given to `--set`.
        bus: "auto" or one of `servers.KINDS`.
        port: the first server's port; None for any free ones.
        resume: go on with the run in `out`.

    Raises:
        UsageError: one line with the error and its fix.
    """
    if workers is not None:
        overrides = [*overrides, f"peers={workers}"]
    experiment = config.load(file, overrides)
    folder = Path(out).expanduser()
    _check_folder(folder, experiment, resume)
    program = servers.find(bus)
    if port is not None:
        servers.check_ports(port, 1 if one_server else experiment.workers)
    options = ["--bus", bus] if bus != "auto" else []
    options += ["--servers", "one"] if one_server else []
    options += ["--port", str(port)] if port is not None else []
    return Plan(
        experiment=experiment,
        out=folder,
        program=program,
        one_server=one_server,
        port=port,
        resume=resume,
        options=tuple(options),
        commands=commands or Commands(),
        limits=limits or Limits(),
    )


def _check_folder(folder: Path, experiment: Experiment, resume: bool) -> None:
    try:
        holds_run = (folder / SETTINGS).exists()
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}; choose another --out") from None
    if not resume:
        if holds_run:
            raise UsageError(f"{folder} already holds a run; choose another --out, or go on with it: --resume latest")
        return
    if not holds_run:
        raise UsageError(f"{folder} holds no run to resume (no {SETTINGS}); leave out --resume, or correct --out")
    check_agreement(config.load(folder / SETTINGS), experiment, folder)
    for file in sorted(folder.glob("w*/pid")):
        pid = processes.live_pid(file)
        if pid is not None:
            raise UsageError(f"worker {file.parent.name[1:]} of {folder} is still running (pid {pid}); stop it first")


def check_agreement(before: Experiment, now: Experiment, folder: Path) -> None:
    """Refuse to resume with other settings; `run.steps` alone may be raised.

    Raises:
        UsageError: names the first key that differs, with both values.
    """
    old, new = config.agreed(before), config.agreed(now)
    for key in {**old, **new}:
        was, value = old.get(key, MISSING), new.get(key, MISSING)
        if was == value or (key == "run.steps" and value > was):
            continue
        fix = "it may be raised, not lowered" if key == "run.steps" else "resume with the run's own settings"
        raise UsageError(f"{key}: {_shown(value)}, but the run in {folder} has {_shown(was)}; {fix}")


def _shown(value: Any) -> str:
    return "not set" if value is MISSING else str(value)
