"""`python -m launch secure`: certificates, users, passwords and a run key for an experiment's hosts, in one folder.

Each worker's subfolder holds the secrets of its host. No other host has them, except the run key, which all hosts
share. An intruder on one host therefore has the rights of that worker, and the run key. The CA's own key stays on the
machine that made it.
"""

from __future__ import annotations

import datetime
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

import config
from config import UsageError
from config.reader import FILE as SETTINGS
from config.security import CA, CERTIFICATE, KEY, PASSWORD, RUN_KEY
from launch import nodes
from launch.certificates import Authority, is_local
from launch.voice import Voice

CA_KEY = "ca.key"
MAX_DAYS = 3650


def run(file: str, out: str, days: int, hosts: Sequence[str], voice: Voice, now: datetime.datetime) -> int:
    """Write all files and log the host of each.

    Args:
        file: the experiment.
        out: the folder, which must not have secrets yet.
        days: how long the certificates are valid.
        hosts: in the place of those in the experiment's `peers`; empty for these.
        now: a time with a zone.

    Raises:
        UsageError: there are no hosts, or the folder already has secrets.
    """
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"--days {days}: expected 1 to {MAX_DAYS}")
    experiment = config.load(file)
    places = nodes.nodes_of(experiment, hosts)
    folder = Path(out).absolute()
    _check_free(folder, len(places))
    # The settings are checked before anything is written.
    settings = config.build(
        {
            **config.parse(config.dump(experiment)),
            "peers": [node.url for node in places],
            "security": {"folder": f"{folder}/w{{worker}}"},
        }
    )
    authority = Authority(f"degan {experiment.name}", days, now)
    passwords = [secrets.token_urlsafe(32) for _ in places]
    run_key = secrets.token_hex(32)
    try:
        _make_folder(folder)
        _write(folder / CA, authority.certificate)
        _write(folder / CA_KEY, authority.key)
        _write(folder / SETTINGS, config.dump(settings).encode(), 0o644)
        for worker, node in enumerate(places):
            certificate, key = authority.issue(f"worker-{worker}", [node.host])
            mine = folder / f"w{worker}"
            _make_folder(mine)
            _write(mine / CA, authority.certificate, 0o644)
            _write(mine / CERTIFICATE, certificate, 0o644)
            _write(mine / KEY, key)
            _write(mine / PASSWORD, f"{passwords[worker]}\n".encode())
            _write(mine / RUN_KEY, f"{run_key}\n".encode())
            if _leads(places, worker):
                _write(mine / nodes.CONF, nodes.conf(node, is_local(node.host)).encode(), 0o644)
                _write(mine / nodes.USERS, nodes.users(experiment.name, places, node.place, passwords).encode())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {folder}: {error}") from None
    for line in _instructions(folder, places, authority.until):
        voice.log(line)
    return 0


def _leads(places: Sequence[nodes.Node], worker: int) -> bool:
    """Whether a worker is the first of the workers that share its Redis: its folder has that server's files."""
    return places[worker].place not in [node.place for node in places[:worker]]


def _check_free(folder: Path, workers: int) -> None:
    for name in (CA, CA_KEY, SETTINGS, *(f"w{worker}" for worker in range(workers))):
        if os.path.lexists(folder / name):
            raise UsageError(f"{folder} has {name} already; choose another --out, or take the old folder away")


def _make_folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a new file with permissions `mode` from its first byte on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(handle, "wb") as file:
        file.write(content)
    path.chmod(mode)


def _instructions(folder: Path, places: Sequence[nodes.Node], until: datetime.datetime) -> list[str]:
    at = shlex.quote(str(folder))
    lines = [
        f"made {folder}, valid until {until:%Y-%m-%d}; make a new one before then",
        "copy to each host, and only there:",
    ]
    for worker, node in enumerate(places):
        if is_local(node.host):
            lines.append(f"  worker {worker}: {node.host} is this machine; nothing to copy")
        else:
            there = f"[{node.host}]" if ":" in node.host else node.host
            lines.append(f"  worker {worker}: ssh {node.host} mkdir -p -m 700 {at} &&")
            lines.append(f"    scp -rp {at}/w{worker} {at}/{SETTINGS} {there}:{at}/")
    lines.append("(to another path: set security.folder in experiment.yaml there.) Then, on each host:")
    for worker, _ in enumerate(places):
        server = (
            f"cd {at}/w{worker} && redis-server {nodes.CONF}"
            if _leads(places, worker)
            else "(its Redis is started already)"
        )
        lines.append(f"  {server}")
        lines.append(f"  python -m degan.worker {worker} --config {at}/{SETTINGS}")
    lines.append(f"{folder / CA_KEY} could make more workers: keep it here, or delete it; copy it nowhere")
    return lines
