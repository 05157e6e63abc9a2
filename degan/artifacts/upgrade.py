"""Reads checkpoints of format 1, which degan 0.1 wrote, as format 2.

The files are the same. Settings have other names (`config.renamed`), and so have the values that the exchange keeps
beside its arrays. A cursor is now a round and a number; in format 1 a cursor was a list of each.
"""

from __future__ import annotations

from typing import Any

from config.renamed import renamed


def upgrade(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint of format 1 as one of format 2.

    Raises:
        KeyError, TypeError, ValueError: not a manifest of format 1, or of a step with two rounds (no step has two now).
        config.SettingsError: the checkpoint's settings contain one that was removed.
    """
    values = dict(manifest["values"])
    mode = dict(values.get("mode", {}))
    if "carry" in mode:
        rule = dict(mode.pop("carry"))
        broken = {"broken": rule["broken"]} if "broken" in rule else {}
        mode["rule"] = broken | {"offences": rule.get("strikes", [])}
        mode["followed"] = {peer: _cursor(plain) for peer, plain in mode["followed"].items()}
        if mode["parts"]:
            mode["parts"] = {("proposals" if name == "wishes" else name): x for name, x in mode["parts"].items()}
    values["mode"] = mode
    return {**manifest, "agreed": renamed(manifest["agreed"]), "values": values}


def _cursor(plain: list[Any]) -> list[Any]:
    incarnation, (round,), (sequence,) = plain
    return [incarnation, round, sequence]
