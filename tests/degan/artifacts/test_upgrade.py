"""Checkpoints of format 1 become those of format 2: settings and the exchange's state have today's names."""

from __future__ import annotations

import pytest

from config import SettingsError
from degan.artifacts.upgrade import upgrade
from peers.types import Cursor


def manifest(**mode):
    agreed = {"mode.carry": "gradients", "mode.own": "published", "mode.remote": "lump", "bus.strikes": 10, "seed": 3}
    return {"format": 1, "step": 5, "agreed": agreed, "values": {"counters": {"applied": 5}, "mode": mode}}


def test_an_exchange_of_format_1():
    rule = {"broken": [[0, 4]], "left_at": [], "strikes": [[2, "b", 1]]}
    parts = {"parts": 8, "since": 16, "wishes": [[17, 1, 4]]}
    old = manifest(carry=rule, followed={"1": ["a", [7], [40]]}, parts=parts)
    found = upgrade(old)
    assert found["agreed"] == {"mode.exchange": "gradients", "mode.own": "delayed", "bus.offences": 10, "seed": 3}
    assert found["values"]["counters"] == {"applied": 5} and found["step"] == 5
    assert found["values"]["mode"] == {
        "rule": {"broken": [[0, 4]], "offences": [[2, "b", 1]]},
        "followed": {"1": ["a", 7, 40]},
        "parts": {"parts": 8, "since": 16, "proposals": [[17, 1, 4]]},
    }
    assert Cursor.from_plain(found["values"]["mode"]["followed"]["1"]) == Cursor("a", 7, 40)
    assert old["values"]["mode"].keys() == {"carry", "followed", "parts"}, "the read values stay as they are"


def test_rounds_of_a_leader_stay_as_they_are():
    assert upgrade(manifest(version=[1, 4], term=2))["values"]["mode"] == {"version": [1, 4], "term": 2}
    assert upgrade(manifest())["values"]["mode"] == {}


def test_a_checkpoint_that_no_run_can_continue_is_refused():
    with pytest.raises(ValueError, match="too many values"):
        upgrade(manifest(carry={"strikes": []}, followed={"1": ["a", [7, 6], [40, 35]]}, parts={}))
    old = manifest()
    old["agreed"]["mode.remote"] = "hold"
    with pytest.raises(SettingsError, match="mode.remote: there is no 'hold' any more"):
        upgrade(old)
