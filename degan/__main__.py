"""`degan COMMAND`: one name for all commands, each imported only when it is used."""

from __future__ import annotations

import importlib
import sys

# command: (module with main(argv) -> int, whether main gets the command's own name, one line of help)
COMMANDS = {
    "local": ("launch.__main__", True, "train with all workers and their Redis servers on this machine"),
    "worker": ("degan.worker.__main__", False, "run one worker of an experiment: degan worker 0 --config FILE"),
    "generate": ("degan.generate", False, "write samples of a trained generator"),
    "evaluate": ("degan.evaluate", False, "measure a run's generators"),
    "report": ("degan.report", False, "write a run's report.html"),
    "doctor": ("launch.__main__", True, "check every node of an experiment, and this host, before it trains"),
    "secure": ("launch.__main__", True, "make certificates, users and keys for the hosts of a run"),
    "compare": ("degan.compare", False, "hold runs against each other: one page, Markdown or JSON"),
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch `argv` (by default the command line's words) and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"degan: no command {words[0]!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, named, _ = COMMANDS[words[0]]
    try:
        command = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("config", "degan", "launch", "peers"):
            raise
        print(f"degan {words[0]} needs the package {error.name}; pip install {error.name}", file=sys.stderr)
        return 2
    return command(words if named else words[1:])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {about}" for name, (_, _, about) in COMMANDS.items()]
    return "\n".join(["usage: degan COMMAND ...", "", *lines, "", "degan COMMAND --help says more."])


if __name__ == "__main__":
    sys.exit(main())
