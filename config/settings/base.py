"""The parts of all blocks of settings: the frozen struct, and the ranges of its fields."""

from __future__ import annotations

from typing import Annotated

import msgspec

# Upper bounds keep infinity out of the run, and all values that MessagePack, Redis or an allocation cannot hold.
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Width = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e7)]
# The name is a folder's name as well, so not "..". The pattern ends with \Z, because $ accepts a line end.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all blocks: frozen, and an unknown key is an error."""
