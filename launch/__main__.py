"""`python -m launch COMMAND`: parses and checks the command line, runs the command; errors become one line."""

from __future__ import annotations

import argparse
import datetime
import sys
from typing import NamedTuple

from config import UsageError
from launch.plan import Commands, Limits
from launch.servers import KINDS
from launch.voice import Voice

EPILOG = """examples:
  python -m launch local smoke --out runs/first --set run.steps=100
  python -m launch compare runs/first runs/second --out compare.html
  python -m launch doctor experiment.yaml
  python -m launch secure experiment.yaml --out secrets
"""


class Call(NamedTuple):
    """The arguments of a command: the words that were typed, the commands to call, and the limits; see `main`."""

    words: argparse.Namespace
    voice: Voice
    command_line: list[str]
    commands: Commands
    limits: Limits


def main(argv: list[str], commands: Commands | None = None, limits: Limits | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name.
        commands: the command lines of workers, preparation and report; tests give a stand-in.
        limits: the longest waits.

    Returns:
        The exit code; 2, with one line, for an error that the person can fix.
    """
    words = _parser().parse_args(argv)
    voice = Voice()
    try:
        command_line = ["python", "-m", "launch", *argv]
        return words.run(Call(words, voice, command_line, commands or Commands(), limits or Limits()))
    except UsageError as error:
        voice.error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Start degan runs, hold them against each other, and look whether all is well.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_local(commands)
    _add_compare(commands)
    _add_doctor(commands)
    _add_secure(commands)
    return parser


def _add_local(commands: argparse._SubParsersAction) -> None:
    local = commands.add_parser("local", help="all workers and their Redis servers on this machine", allow_abbrev=False)
    local.add_argument("file", metavar="FILE", help="experiment file, run folder, or the name of one that comes along")
    local.add_argument("--out", metavar="DIR", required=True, help="the run folder")
    local.add_argument("--workers", metavar="N", type=int, help="how many; default: what the file says in peers")
    local.add_argument("--bus", choices=("auto", *KINDS), default="auto", help="which Redis; default: the first found")
    local.add_argument("--servers", choices=("each", "one"), default="each", help="one Redis a worker, or one for all")
    local.add_argument("--port", metavar="BASE", type=int, help="the first Redis port; default: any free ones")
    local.add_argument("--set", metavar="a.b=c", action="append", default=[], help="change a setting; repeatable")
    local.add_argument("--resume", choices=("latest",), help="go on with the run in DIR from its newest checkpoints")
    local.set_defaults(run=_run_local)


def _run_local(call: Call) -> int:
    from launch import local, plan

    words = call.words
    made = plan.make(
        words.file,
        words.out,
        workers=words.workers,
        overrides=words.set,
        bus=words.bus,
        one_server=words.servers == "one",
        port=words.port,
        resume=words.resume is not None,
        commands=call.commands,
        limits=call.limits,
    )
    return local.run(made, call.voice, call.command_line)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser("compare", help="runs against each other, on one page", allow_abbrev=False)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, finished or not")
    compare.add_argument("--out", metavar="FILE", help="the page; default: compare.html")
    compare.add_argument(
        "--markdown", action="store_true", help="print the tables as Markdown (a page only with --out)"
    )
    compare.add_argument("--json", action="store_true", help="print everything as JSON (a page only with --out)")
    compare.set_defaults(run=_run_compare)


def _run_compare(call: Call) -> int:
    from launch import handover

    words = call.words
    options = [f"--out={words.out}"] if words.out is not None else []
    options += [f"--{name}" for name in ("markdown", "json") if getattr(words, name)]
    # "--" before the folders, because the name of a folder may begin with a dash.
    return handover.run(
        [*call.commands.compare, *options, "--", *words.runs], "comparing", call.limits.report_s, call.voice
    )


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser("doctor", help="every node of an experiment, and this host", allow_abbrev=False)
    doctor.add_argument("file", metavar="FILE", help="experiment file, run folder, or the name of one that comes along")
    doctor.add_argument("--json", action="store_true", help="print everything as one JSON document")
    doctor.add_argument("--out", metavar="DIR", help="the run folder that will be used; default: runs/NAME")
    doctor.add_argument("--set", metavar="a.b=c", action="append", default=[], help="change a setting; repeatable")
    doctor.set_defaults(run=_run_doctor)


def _run_doctor(call: Call) -> int:
    import config
    from launch import handover, servers

    words = call.words
    options = [f"--set={item}" for item in words.set]
    options += [f"--out={words.out}"] if words.out is not None else []
    options += ["--json"] if words.json else []
    if isinstance(config.load(words.file, words.set).peers, int):
        # There are no nodes yet. The doctor reports the server that `local` would start instead.
        try:
            options.append(f"--local-redis={servers.find('auto').about()}")
        except UsageError as error:
            options.append(f"--no-local-redis={error}")
    return handover.run(
        [*call.commands.doctor, *options, "--", words.file], "the doctor", call.limits.report_s, call.voice
    )


def _add_secure(commands: argparse._SubParsersAction) -> None:
    secure = commands.add_parser(
        "secure", help="certificates, users and keys for the hosts of a run", allow_abbrev=False
    )
    secure.add_argument("file", metavar="EXPERIMENT", help="experiment file; its `peers` name the hosts")
    secure.add_argument("--out", metavar="DIR", required=True, help="a new folder for all of it")
    secure.add_argument("--days", metavar="N", type=int, default=365, help="how long they are valid; default: 365")
    secure.add_argument("--hosts", metavar="a,b,c", default="", help="hosts in worker order, instead of those in peers")
    secure.set_defaults(run=_run_secure)


def _run_secure(call: Call) -> int:
    try:
        from launch import secure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "cryptography":
            raise
        raise UsageError("secure needs the package cryptography; pip install cryptography") from None
    words = call.words
    hosts = [host.strip() for host in words.hosts.split(",")] if words.hosts else []
    now = datetime.datetime.now(datetime.timezone.utc)
    return secure.run(words.file, words.out, words.days, hosts, call.voice, now)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
