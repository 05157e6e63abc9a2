"""The worker number of this process: from the command line, or from a scheduler's variables."""

from __future__ import annotations

import re
from collections.abc import Mapping

from config import UsageError

VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")


def worker_number(given: str | None, workers: int, environment: Mapping[str, str], host: str) -> tuple[int, str]:
    """The worker number and its source.

    Args:
        given: the number on the command line, or None.
        workers: number of workers of the experiment.
        environment: the process's environment.
        host: the host name, whose trailing number (pod-3) is the last resort.

    Raises:
        UsageError: no number, or one outside 0..workers-1.
    """
    source, text = "the command line", given
    if text is None:
        for name in VARIABLES:
            if environment.get(name):
                source, text = f"the variable {name}", environment[name]
                break
    if text is None:
        ordinal = re.search(r"-(\d+)$", host.split(".", maxsplit=1)[0])
        if ordinal:
            source, text = f"the host name {host}", ordinal[1]
    if text is None:
        raise UsageError(f"which worker is this? give a number from 0 to {workers - 1}: python -m degan.worker 0 ...")
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise UsageError(f"worker {text!r} (from {source}) is no number; expected 0 to {workers - 1}")
    number = int(text)
    if number >= workers:
        raise UsageError(f"worker {number} (from {source}) is outside 0..{workers - 1}; `peers` lists {workers}")
    return number, source
