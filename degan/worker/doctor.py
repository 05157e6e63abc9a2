"""`python -m degan.worker.doctor EXPERIMENT`: every node and this host, checked before or during a run.

    settings -> this host: data, networks (and with them the bytes that a node needs), device, memory, disk
             -> every node, all at the same time (`peers.doctor.checkup`)
             -> a table, or one JSON document; exit code 2 if anything failed, else 0

The doctor starts and downloads nothing, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

import config
from config import UsageError
from peers.bus.redis.client import address, split_socket
from peers.bus.redis.tls import Access
from peers.doctor.checkup import look
from peers.doctor.findings import FAIL, OK, WARN, Finding, mib, printable
from peers.doctor.node import Visit
from peers.session.lease import heartbeat_s
from peers.session.processes import is_dead

WIDTH = 100
MOST_AT_ONCE = 32
# A worker's vectors: weights, gradient, Adam's moments, the average, the window, the agreed weights, those in flight.
VECTORS = 10
# The channels of images where the data is missing; for a folder the largest possible number.
CHANNELS = {"digits": 1, "mnist": 1, "fashion-mnist": 1, "cifar10": 3, "folder": 3}
# The guess for a data set that is not here yet.
CLASSES = 10


class Section(NamedTuple):
    """The findings of one place: a node, or this host (which has no workers of its own in the table)."""

    node: str
    workers: tuple[int, ...]
    is_own: bool
    findings: list[Finding]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="degan doctor", description="Check every node of an experiment, and this host.", allow_abbrev=False
    )
    found.add_argument("file", metavar="EXPERIMENT", help="experiment file, or the name of one that comes along")
    found.add_argument("--json", action="store_true", help="print everything as one JSON document")
    found.add_argument("--out", metavar="DIR", help="the run folder that will be used (default: runs/NAME)")
    found.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting")
    # The launcher passes its own server program here, where `peers` is a number.
    found.add_argument("--local-redis", metavar="WHICH", help=argparse.SUPPRESS)
    found.add_argument("--no-local-redis", metavar="WHY", help=argparse.SUPPRESS)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Check an experiment; 0 if nothing failed, else 2. Settings that cannot be read are one line on stderr."""
    words = parser().parse_args(argv)
    try:
        settings = config.load(words.file, words.set)
        sections = check(settings, words.file, Path(words.out or Path("runs") / settings.name), _launcher(words))
    except UsageError as error:
        print(f"degan doctor: {error}", file=sys.stderr)
        return 2
    print(as_json(sections) if words.json else as_text(settings, sections))
    return 2 if any(finding.state == FAIL for section in sections for finding in section.findings) else 0


def check(settings: config.Experiment, file: str, out: Path, launcher: Finding) -> list[Section]:
    """Check everything, this host first.

    Args:
        file: the experiment file of the settings.
        out: the run folder that will be used.
        launcher: the finding in place of the nodes where `peers` is a number.
    """
    from degan import modes
    from degan.modes.connect import access_of

    found = [_settings(settings, file)]
    source, data = _data(settings)
    learner = _learner(settings, source)
    needs, saved_bytes = modes.needs(settings, learner), _checkpoint_bytes(learner)
    guess = "" if source is not None else " (guessed, for the data is not here)"
    networks = Finding("networks", OK, f"{learner.size:,} values{guess}; a worker needs {needs}")
    found += [data, networks, _device(settings.device)]
    nodes = _nodes(settings)
    with ThreadPoolExecutor(max_workers=MOST_AT_ONCE) as pool:
        own = {node: is_here(node) for node in nodes}
        # The doctor connects as the first worker of this host.
        access = access_of(settings, min((nodes[node][0] for node in nodes if own[node]), default=0))
        sections = list(pool.map(lambda node: _node(settings, node, nodes[node], needs, own[node], access), nodes))
    if not nodes:
        found.append(launcher)
        here = settings.workers
    else:
        here = sum(len(section.workers) for section in sections if section.is_own)
        if not here:
            found.append(Finding("this host", OK, "none of the nodes is on this host: it only looks on"))
    found += [_memory(here, needs), _disk(settings, out, max(1, here), saved_bytes)]
    return [Section("this host", (), True, found), *sections]


# --- nodes ------------------------------------------------------------------------------------------


def _nodes(settings: config.Experiment) -> dict[str, tuple[int, ...]]:
    """The URL of each node, once, with the node's workers; empty where `peers` is a number."""
    if isinstance(settings.peers, int):
        return {}
    workers: dict[str, list[int]] = {}
    urls: dict[str, str] = {}
    for worker, url in enumerate(settings.peers):
        # Of two workers of one node, one may name its socket and the other may not.
        far, near = split_socket(url)
        workers.setdefault(far, []).append(worker)
        if near != far or far not in urls:
            urls[far] = url
    return {url: tuple(workers[far]) for far, url in urls.items()}


def _node(
    settings: config.Experiment,
    url: str,
    workers: tuple[int, ...],
    needs: Any,
    is_own: bool,
    access: tuple[Access, bytes | None],
) -> Section:
    visit = Visit(
        url=url,
        run=settings.name,
        workers=workers,
        is_own=is_own,
        needed_bytes=len(workers) * needs.redis_bytes,
        step_bytes=len(workers) * needs.step_bytes,
        lease_s=settings.bus.lease_s,
        beat_s=heartbeat_s(settings.bus.lease_s),
        is_dead=is_dead,
        access=access[0],
        run_key=access[1],
    )
    return Section(address(url), workers, is_own, look(visit))


def is_here(url: str) -> bool:
    """Whether a node is on this host: one of its addresses can be bound here."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    try:
        found = socket.getaddrinfo(parts.hostname or "localhost", 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        return False
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(where)
                return True
        except OSError:
            continue
    return False


def _launcher(words: argparse.Namespace) -> Finding:
    """The server program that the local launcher would start."""
    if words.local_redis is not None:
        return Finding("redis", OK, printable(f"the local launcher would use {words.local_redis}"))
    if words.no_local_redis is not None:
        return Finding("redis", FAIL, "the local launcher has none to start", printable(words.no_local_redis))
    return Finding("redis", WARN, "not looked at: `peers` is a number", "python -m launch doctor looks what there is")


# --- this host --------------------------------------------------------------------------------------


def _settings(settings: config.Experiment, file: str) -> Finding:
    mode = settings.mode.__struct_config__.tag
    where = f"{settings.workers} local workers" if isinstance(settings.peers, int) else f"{settings.workers} workers"
    return Finding("settings", OK, printable(f"{config.find_experiment(file)}: {settings.name}, {where}, {mode}"))


def _data(settings: config.Experiment) -> tuple[Any, Finding]:
    """The training data, or None, and the finding. Nothing is downloaded."""
    from degan.data.sources import prepare
    from degan.worker.prepare import check_data

    is_there = False
    try:
        prepare(msgspec.structs.replace(settings.data, download=False), settings.image_size)
        is_there = True
        source = check_data(settings)
    except UsageError as error:
        why, _, fix = printable(str(error)).partition("; ")
        if settings.data.download and settings.data.root is not None and not is_there:
            return None, Finding("data", WARN, f"not here yet: {why}", "nothing to do: data.download fetches it")
        return None, Finding("data", FAIL, why, fix)
    return source, Finding(
        "data", OK, f"{settings.data.name}: {len(source):,} samples in {len(source.classes)} classes"
    )


def _device(name: str) -> Finding:
    import torch

    from degan.worker.setup import pick_device

    try:
        device = pick_device(name)
    except UsageError as error:
        why, _, fix = str(error).partition("; ")
        return Finding("device", FAIL, why, fix)
    seen = f"auto: {device} would be used" if name == "auto" else name
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        seen += f" ({about.name}, {mib(about.total_memory)})"
    return Finding("device", OK, seen)


def _learner(settings: config.Experiment, source: Any):
    """The networks that a worker trains, on the CPU."""
    import torch

    from degan.learners import build

    side = settings.image_size
    guessed = (2,) if settings.data.name == "gaussian-ring" else (CHANNELS[settings.data.name], side, side)
    shape, classes = (guessed, CLASSES) if source is None else (source.sample_shape, len(source.classes))
    return build.build(settings, shape, classes, 0, torch.device("cpu"))


def _checkpoint_bytes(learner: Any) -> int:
    """The approximate size of a checkpoint on disk: networks and moments, twice the vector for the mode's arrays."""
    from degan.artifacts.learner_state import model_tensors
    from degan.learners.names import is_moment
    from degan.modes.needs import float_bytes

    networks = sum(tensor.numel() * tensor.element_size() for tensor in model_tensors(learner).values())
    moments = {name: size for name, size in learner.sizes.items() if is_moment(name)}
    return networks + float_bytes(moments) + 8 * learner.size


def _memory(here: int, needs: Any) -> Finding:
    """This host's free memory against the needs of the workers of its nodes, without the data."""
    wanted = here * (VECTORS * needs.vector_bytes + needs.redis_bytes)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return Finding("memory", WARN, "cannot be seen (no /proc/meminfo)")
    seen = f"{mib(free)} free; the vectors of {here} workers and their Redis take up to {mib(wanted)}"
    if wanted > free:
        return Finding("memory", WARN, seen, "fewer workers on this host, or smaller bus.replay_bytes")
    return Finding("memory", OK, seen)


def _disk(settings: config.Experiment, out: Path, here: int, saved_bytes: int) -> Finding:
    """The free disk space for the checkpoints at the present or future run folder."""
    run, kept = settings.run, 0
    if settings.checkpoint_every:
        # The best checkpoint stays beside the newest ones.
        kept = run.keep_checkpoints + bool(run.keep_best and run.evaluate_every)
    # One more checkpoint exists while it is written. The last one is written in any case.
    wanted = here * (kept + 1) * saved_bytes
    folder = next((path for path in (out, *out.absolute().parents) if path.exists()), Path("/"))
    where = printable(str(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", FAIL, f"nothing can be written in {where}", "choose another --out")
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("disk", WARN, printable(f"cannot be seen ({where}: {error.strerror})"))
    seen = f"{mib(free)} free in {where}; the checkpoints that are kept take about {mib(wanted)}"
    if free < wanted:
        return Finding("disk", FAIL, seen, "choose another --out, or lower run.keep_checkpoints")
    return Finding("disk", OK, seen)


# --- the output -------------------------------------------------------------------------------------


def as_json(sections: Sequence[Section]) -> str:
    """All findings as a list of {node, workers, check, state, seen, fix}."""
    rows = [
        {"node": section.node, "workers": list(section.workers), **finding._asdict()}
        for section in sections
        for finding in section.findings
    ]
    return json.dumps(rows, indent=1)


def as_text(settings: config.Experiment, sections: Sequence[Section]) -> str:
    """The table: a block for each place, a line for each check and one for its fix."""
    lines = []
    for section in sections:
        if section.workers:
            numbers = ", ".join(map(str, section.workers))
            here = ", this host's" if section.is_own else ""
            plural = "s" if len(section.workers) > 1 else ""
            lines.append(f"Redis at {section.node} (worker{plural} {numbers}{here})")
        else:
            lines.append(f"this host, {platform.node()}")
        for check, state, seen, fix in section.findings:
            lines += _wrapped(f"  {state:<4}  {check:<14}  ", seen)
            lines += _wrapped(" " * 24 + "-> ", fix) if fix else []
        lines.append("")
    findings = [finding for section in sections for finding in section.findings]
    if any("redis-cli" in finding.fix for finding in findings):
        lines += ["redis-cli: on the node itself, or with -h HOST -p PORT, and --askpass where it has a password", ""]
    states = [finding.state for finding in findings]
    counts = f"{states.count(FAIL)} failed, {states.count(WARN)} warnings, {states.count(OK)} ok"
    return "\n".join([*lines, counts])


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    ) or [first]


if __name__ == "__main__":
    sys.exit(main())
