"""Checkpoints: one folder for each step, complete or absent, read without executing anything.

    checkpoints/000500/model.safetensors      generator.*, discriminator.*, ema.*
                       optimiser.safetensors  Adam's moments, random generators, the mode's arrays
                       manifest.json          step, counters, data position, cursors, sha256 of the files

A checkpoint is written into a temporary folder, synced to disk and renamed. A folder whose files do not
have the checksums of its manifest is skipped and logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from config import UsageError
from degan.artifacts.upgrade import upgrade

FORMAT = 2
MODEL, OPTIMISER, MANIFEST = "model.safetensors", "optimiser.safetensors", "manifest.json"


@dataclass
class Checkpoint:
    """The content of one checkpoint.

    Attributes:
        step: the last step before the checkpoint.
        model, optimiser: tensors by name.
        values: everything small; plain JSON values.
        agreed: the settings of its experiment (`config.agreed`).
    """

    step: int
    model: dict[str, torch.Tensor]
    optimiser: dict[str, torch.Tensor]
    values: dict[str, Any]
    agreed: dict[str, Any]


class Checkpoints:
    """One worker's checkpoints.

    Args:
        folder: usually RUN/wN/checkpoints.
        keep: how many of the newest checkpoints stay.
        log: called with one line for a person.
        keeps_best: whether the best checkpoint stays as well.
        written: called with each file after its write; may raise OSError, as a full disk does.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        log: Callable[[str], None] = lambda line: None,
        keeps_best: bool = True,
        written: Callable[[Path], None] = lambda path: None,
    ):
        self.folder, self._keep, self._log, self._keeps_best = folder, keep, log, keeps_best
        self._written = written

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint; returns its folder. An old checkpoint of the same step is replaced.

        Raises:
            UsageError: the checkpoint cannot be written (a full disk); the earlier checkpoints stay as they were.
        """
        temporary = self.folder / f".{checkpoint.step:06d}.{os.getpid()}"
        try:
            return self._save(checkpoint, temporary)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            where = f"of step {checkpoint.step} in {self.folder}"
            raise UsageError(f"cannot save the checkpoint {where}: {reason}") from None

    def _save(self, checkpoint: Checkpoint, temporary: Path) -> Path:
        final = self.folder / f"{checkpoint.step:06d}"
        # A process that was killed during a save leaves a temporary folder behind.
        for torn in self.folder.glob(".[0-9]*.[0-9]*"):
            shutil.rmtree(torn, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in ((MODEL, checkpoint.model), (OPTIMISER, checkpoint.optimiser)):
            save_file(tensors, temporary / name)
            self._written(temporary / name)
        manifest = {
            "format": FORMAT,
            "step": checkpoint.step,
            "files": {name: _sha256(temporary / name) for name in (MODEL, OPTIMISER)},
            "agreed": checkpoint.agreed,
            "values": checkpoint.values,
        }
        manifest["sum"] = _manifest_sum(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        self._written(temporary / MANIFEST)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _sync(self.folder)
        best = self.best_step() if self._keeps_best else None
        for step in self.steps()[: -self._keep]:
            if step != best:
                shutil.rmtree(self.folder / f"{step:06d}", ignore_errors=True)
        return final

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints after `step`: the worker trains these steps again, perhaps with another result."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.folder / f"{later:06d}", ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps of all checkpoints, damaged ones included; oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if re.fullmatch(r"\d{6,}", path.name))

    def whole_steps(self) -> list[int]:
        """Steps of the checkpoints whose files have the checksums of their manifest."""
        return [step for step in self.steps() if self._is_whole(step)]

    def _is_whole(self, step: int) -> bool:
        try:
            read_manifest(self.folder / f"{step:06d}")
            return True
        except UsageError as error:
            self._log(f"passing over a damaged checkpoint: {error}")
            return False

    def best_step(self) -> int | None:
        """The step with the best samples (the lowest `score` among the values); None where none has a score."""
        scores = {}
        for step in self.steps():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                manifest = json.loads((self.folder / f"{step:06d}" / MANIFEST).read_text(encoding="utf-8"))
                scores[step] = float(manifest["values"]["score"])
        return min(scores, key=lambda step: (scores[step], -step), default=None)

    def values(self, step: int) -> dict[str, Any]:
        """The values of the checkpoint of a step, without its tensors. Raises as `read_manifest`."""
        return read_manifest(self.folder / f"{step:06d}")["values"]

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step. Raises as `read`."""
        return read(self.folder / f"{step:06d}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, after a check of its own checksum and those of its files.

    Raises:
        UsageError: no checkpoint, or a damaged one.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] not in (1, FORMAT):
            raise UsageError(f"{folder}: checkpoint format {manifest['format']}, this degan reads 1 and {FORMAT}")
        if manifest["sum"] != _manifest_sum(manifest):
            raise UsageError(f"{folder / MANIFEST} is damaged: its sum is not its own")
        for name in (MODEL, OPTIMISER):
            if _sha256(folder / name) != manifest["files"][name]:
                raise UsageError(f"{folder / name} is damaged: its sha256 is not the manifest's")
        return manifest if manifest["format"] == FORMAT else upgrade(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{folder} is no whole checkpoint ({type(error).__name__}: {error})") from None


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises as `read_manifest`."""
    manifest = read_manifest(folder)
    try:
        model, optimiser = load_file(folder / MODEL), load_file(folder / OPTIMISER)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder} is no whole checkpoint ({error})") from None
    return Checkpoint(int(manifest["step"]), model, optimiser, manifest["values"], manifest["agreed"])


def check_same_experiment(checkpoint: Checkpoint, agreed: dict[str, Any], where: str) -> None:
    """Refuse a checkpoint of another experiment; the settings of the blocks `run` and `bus` may differ.

    Raises:
        UsageError: names the key that differs.
    """
    free = ("run.", "bus.")
    mine = {key: value for key, value in json.loads(json.dumps(agreed)).items() if not key.startswith(free)}
    theirs = {key: value for key, value in checkpoint.agreed.items() if not key.startswith(free)}
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise UsageError(
                f"{where} is of another experiment: {key} is {theirs.get(key)!r} there and {mine.get(key)!r} here"
            )


def _manifest_sum(manifest: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != "sum"})
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
