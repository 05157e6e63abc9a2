"""The present names of the settings of degan 0.1, so that its run folders stay readable.

A file of 0.1 is read with its present meaning. A removed key is ignored where it has the value that is now the only
one, and refused with any other value.
"""

from __future__ import annotations

from typing import Any

from config.errors import SettingsError

KEYS = {"mode.carry": "mode.exchange", "mode.hostile": "mode.byzantine", "bus.strikes": "bus.offences"}
VALUES = {"mode.own": {"fresh": "immediate", "published": "delayed"}}
GONE = {"mode.remote": "lump", "bus.minority": "pause"}


def renamed(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, as 0.1 or today's degan has them, under today's names.

    Raises:
        SettingsError: a removed setting has a value that no run can have any more.
    """
    found = {}
    for key, value in flat.items():
        if key in GONE:
            if value != GONE[key]:
                raise SettingsError(f"{key}: there is no {value!r} any more, only what was {GONE[key]!r}; take it out")
            continue
        if isinstance(value, str):
            value = VALUES.get(key, {}).get(value, value)
        found[KEYS.get(key, key)] = value
    return found


def renamed_blocks(data: dict[str, Any]) -> dict[str, Any]:
    """As `renamed`, of an experiment file's blocks; the rest of the file stays as it is.

    Raises:
        SettingsError: as `renamed`.
    """
    found = dict(data)
    for block in ("mode", "bus"):
        if isinstance(data.get(block), dict):
            flat = renamed({f"{block}.{key}": value for key, value in data[block].items()})
            found[block] = {key.partition(".")[2]: value for key, value in flat.items()}
    return found
