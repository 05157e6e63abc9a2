"""A new mode has three places: its settings, their place in the union, and a module; no other file changes.

A copy of degan gets a toy mode, and the test uses that copy as a person would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = '''"""A toy: it adds a number to every weight in each step."""

from __future__ import annotations

from config.errors import SettingsError
from config.settings.base import Positive, Settings
from config.settings.modes.base import Rest, Updates


class Toy(Settings, frozen=True, tag_field="name", tag="toy"):
    """Adds `number` to every weight."""

    number: Positive = 3
    updates: Updates = "simultaneous"

    def check(self, rest: Rest) -> None:
        if self.number > rest.workers:
            raise SettingsError(f"mode.number: {self.number} is more than {rest.workers} workers")
'''

MODE = '''"""A toy: it adds a number to every weight in each step, and trains nothing."""

from __future__ import annotations

from degan.modes import Context
from degan.modes.local import Local
from degan.modes.needs import Needs


class Toy(Local):
    """A mode without peers: all but its step is as where each trains alone."""

    def __init__(self, context: Context):
        super().__init__(context.settings, context.worker, context.learner, context.log)
        self._context = context

    def step(self, step, next_batch, is_sync_point):
        learner = self._context.learner
        learner.parameters((0, learner.size))[:] += self._context.settings.mode.number
        return {"toy_loss": float(step)}


def build(context: Context) -> Toy:
    return Toy(context)


def needs(settings, learner) -> Needs:
    return Needs(vector_bytes=4 * learner.size)
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of degan with the toy mode, in a folder of its own."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("config", "peers", "degan", "launch"):
        shutil.copytree(ROOT / package, folder / package)
    modes = folder / "config" / "settings" / "modes"
    (modes / "toy.py").write_text(SETTINGS, encoding="utf-8")
    union = (modes / "__init__.py").read_text(encoding="utf-8")
    assert "\nMode = Local |" in union
    union = union.replace("\nMode = Local |", "from config.settings.modes.toy import Toy\n\nMode = Toy | Local |")
    (modes / "__init__.py").write_text(union, encoding="utf-8")
    (folder / "degan" / "modes" / "toy.py").write_text(MODE, encoding="utf-8")
    return folder


def call(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
    )


RUN = ("launch", "local", "smoke", "--set", "mode.name=toy", "--set", "peers=1", "--set", "run.steps=4")


def test_a_toy_mode_is_launched_measured_and_reported(copy, tmp_path):
    out = tmp_path / "run"
    more = ("mode.number=1", "run.log_every=2", "run.evaluate_every=0", "run.snapshot_every=4")
    done = call(copy, *RUN, *(word for one in more for word in ("--set", one)), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (out / "w0" / "stats.jsonl").read_text().splitlines()]
    assert [(line["step"], line["toy_loss"]) for line in lines] == [(2, 1.5), (4, 3.5)]
    assert "name: toy" in (out / "experiment.yaml").read_text()
    assert (out / "report.html").is_file()


def test_the_toy_modes_own_check_runs_and_its_keys_are_known(copy):
    refused = call(copy, *RUN, "--out", "runs/toy", "--set", "mode.number=9")
    assert refused.returncode == 2 and "mode.number: 9 is more than 1 workers" in refused.stderr
    unknown = call(copy, *RUN, "--out", "runs/toy", "--set", "mode.slack=9")
    assert unknown.returncode == 2 and "mode.slack: unknown key" in unknown.stderr
