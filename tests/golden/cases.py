"""The runs whose weights are kept: each mode's smoke experiment, synchronous, without the measuring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import config
from degan import compare, generate
from tests.golden import runs, weights

QUIET = ("run.evaluate_every=0", "run.snapshot_every=0", "run.log_every=100", "device=cpu", "connect_timeout_s=60")
# Of variants the first steps are enough.
SHORT = "run.steps=12"
# By name: the experiment, and what is changed in it.
CASES = {
    "local": ("smoke", "mode.name=local", "peers=1"),
    "parameters": ("smoke", "mode.slack=0"),
    "gradients": ("smoke", "mode.slack=0", "mode.exchange=gradients"),
    "fegan": ("smoke-fegan",),
    "mdgan": ("smoke-mdgan",),
    "local-alternating": ("smoke", "mode.name=local", "mode.updates=alternating", "peers=1", SHORT),
    "parameters-int8": ("smoke", "mode.slack=0", "mode.codec=int8", SHORT),
    "gradients-topk": ("smoke", "mode.slack=0", "mode.exchange=gradients", "mode.codec=topk", SHORT),
    "flgan": ("smoke-flgan", "mode.optimiser_state=average", "mode.codec=bfloat16", SHORT),
}
# By mode: the small run folders that later code must read, made by the launcher.
FOLDERS = {
    "local": ("smoke", "mode.name=local", "peers=2"),
    "partial_exchange": ("smoke", "mode.slack=0", "peers=2"),
    "federated": ("smoke-fegan", "mode.local_steps=2", "peers=3", "mode.fraction=1.0"),
    "multi_discriminator": ("smoke-mdgan", "mode.state_every=4", "peers=2"),
}
SMALL = (
    *(
        "model.latent=4",
        "model.hidden=6",
        "model.image_size=8",
        "device=cpu",
        "connect_timeout_s=60",
        "run.steps=8",
        "run.log_every=2",
    ),
    *("run.evaluate_every=4", "run.evaluate_samples=64", "run.snapshot_every=8", "run.checkpoint_every=4"),
    *("run.keep_checkpoints=2", "run.keep_best=false"),
)


def settings(name: str) -> config.Experiment:
    experiment, *changes = CASES[name]
    return config.load(experiment, [*changes, *QUIET])


def folder_settings(folder: Path) -> config.Experiment:
    """Those of a kept run folder, to go on with in one process."""
    workers = config.load(folder / "experiment.yaml").workers
    return config.load(folder / "experiment.yaml", [f"peers={workers}", "run.evaluate_every=0"])


def train(name: str, out: Path) -> dict[str, dict]:
    """Train a case; returns the facts of the final weights of each worker."""
    wanted = settings(name)
    runs.live(wanted, out)
    return found_in(wanted, out)


def found_in(wanted: config.Experiment, out: Path) -> dict[str, dict]:
    """The facts of the final weights of each worker, by number as text."""
    initial = runs.initial(wanted)
    return {str(w): weights.facts(weights.read(out, w), initial) for w in range(wanted.workers)}


def generated(folder: Path, scratch: Path) -> np.ndarray:
    """Six samples of the last worker's average, uint8 (6, height, width, channels)."""
    file, workers = scratch / "made.npz", config.load(folder / "experiment.yaml").workers
    last = max(w for w in range(workers) if (folder / f"w{w}" / "checkpoints").is_dir())
    assert generate.main([str(folder), "--worker", str(last), "--count", "6", "--seed", "3", "--out", str(file)]) == 0
    with np.load(file) as found:
        return found["images"]


def compared(folders: list[Path]) -> str:
    """Run folders held against each other, as JSON text."""
    (text,) = compare.compare(folders, None, as_data=True)
    found = json.loads(text)
    for run in found["runs"]:
        # Where it lies says nothing of the run.
        del run["folder"]
    return json.dumps(found, indent=1)
