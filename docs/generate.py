"""Writes docs/settings.md from the structs of `config`: `python -m docs.generate`.

Types, ranges, defaults and kinds come from the structs, explanations from `docs.explained`. The page is in the
repository, not made while the site is built: README and the code hosts link to it, and a change of a setting shows
in the page's diff. `tests/docs/test_settings.py` fails where the page is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.inspect import (
    BoolType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NoneType,
    StrType,
    StructType,
    TupleType,
    Type,
    UnionType,
    type_info,
)

import config
from docs.explained import EXPLANATIONS, RENAMED, RENAMED_VALUES

PAGE = Path(__file__).parent / "settings.md"
# Numbers above this bound only keep out what a field of the wire cannot hold.
UNBOUNDED = 1e6
PATTERNS = {"name": "1 to 64 letters, digits, `.`, `_`, `-`", "device": "`auto`, `cpu`, `cuda`, `cuda:N`"}

HEAD = """\
# Settings

<!-- Written by `python -m docs.generate`; change the structs in config or docs/explained.py. -->

An experiment is one YAML file. Its blocks are the sections of this page. A block with several kinds has a `name` (a
split has a `kind`), and the kind decides which other keys exist.

* An unknown key or value is an error that names the nearest right word. The exit code is 2.
* `--set mode.slack=0` overrides a key on the command line; values are YAML. A new `name` drops the keys that the new
  kind does not have, so `--set mode.name=local` works on every experiment.
* Times end in `_s` and are in seconds. Sizes end in `_bytes`.
* All workers must agree on all settings but these: {private}.
"""


class Block(NamedTuple):
    """One section of the page: a struct, the path of its keys in `EXPLANATIONS`, and how a person writes it."""

    path: str
    title: str
    struct: StructType


def blocks(struct: StructType, path: str = "", title: str = "") -> Iterator[Block]:
    """A struct and every struct below it, in the order of their fields.

    Args:
        path: of the block, with the kind where it has several.
        title: the block as a person writes it in YAML.
    """
    yield Block(path, title, struct)
    for field in struct.fields:
        for inner in structs_of(field.type):
            tag = f".{inner.tag}" if inner.tag is not None else ""
            yield from blocks(inner, join(path, field.name + tag), title_below(title, field, inner))


def title_below(title: str, field: Field, inner: StructType) -> str:
    """The title of a struct that a field of a titled block holds."""
    if title.endswith("}"):
        # `mode: {name: federated}` and another mode may both have a `deadline`.
        return title.removesuffix("}") + f", {field.name}: {{...}}}}"
    kind = f": {{{inner.tag_field}: {inner.tag}}}" if inner.tag is not None else ""
    return join(title, field.name) + kind


def anchor(title: str) -> str:
    """The anchor of a heading, as MkDocs and the code hosts make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def settings_blocks() -> list[Block]:
    """Every block of an experiment."""
    return list(blocks(type_info(config.Experiment)))


def structs_of(kind: Type) -> list[StructType]:
    """The structs among what a field accepts."""
    options = kind.types if isinstance(kind, UnionType) else (kind,)
    return [option for option in options if isinstance(option, StructType)]


def join(path: str, name: str) -> str:
    """`path.name`, and `name` alone at the top."""
    return f"{path}.{name}" if path else name


def settings() -> dict[str, Field]:
    """Every setting that is a plain value, by the path that it has today."""
    found = {}
    for block in settings_blocks():
        for field in block.struct.fields:
            path = join(block.path, field.name)
            if not structs_of(field.type):
                found[path] = field
    return found


def page() -> str:
    """The whole page as Markdown."""
    sections = [HEAD.format(private=", ".join(f"`{path}`" for path in private()))]
    sections += [section(block) for block in settings_blocks()]
    return "\n".join([*sections, renamed()])


def private() -> list[str]:
    """Settings that may differ from worker to worker."""
    built = config.build({"name": "any", "data": {"name": "digits"}, "model": {"name": "mlp"}})
    agreed = config.agreed(built)
    return sorted(path for path in flat(msgspec.to_builtins(built)) if path not in agreed)


def flat(data: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of the plain values of nested maps."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, join(path, key))
        else:
            yield join(path, key)


def section(block: Block) -> str:
    """A heading, what the struct says of itself, and a row for each key."""
    about = (inspect.getdoc(block.struct.cls) or "").strip()
    heading = f"## `{block.title}`" if block.title else "## The top level"
    rows = [row(block, field) for field in block.struct.fields]
    rows = [line for line in rows if line]
    table = ["| key | values | default | meaning |", "| --- | --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join([heading, "", about, "", *table])


def row(block: Block, field: Field) -> str:
    """One key as a row of its table."""
    path = join(block.path, field.name)
    inner = structs_of(field.type)
    linked = [f"(#{anchor(title_below(block.title, field, one))})" for one in inner]
    if inner and inner[0].tag is not None:
        kinds = ", ".join(f"[`{one.tag}`]{link}" for one, link in zip(inner, linked, strict=True))
        return (
            f"| `{field.name}` | {inner[0].tag_field}: {kinds} | {default(path, field)} | a block with several kinds |"
        )
    if inner:
        return f"| `{field.name}` | [a block]{linked[0]} | | |"
    name = path.rpartition(".")[2]
    return f"| `{name}` | {values(path, field.type)} | {default(path, field)} | {EXPLANATIONS[path]} |"


def values(path: str, kind: Type) -> str:
    """What a field accepts, for a person.

    Raises:
        TypeError: a type that no setting has had so far.
    """
    match kind:
        case UnionType():
            return " or ".join(values(path, option) for option in kind.types)
        case LiteralType():
            return ", ".join(sorted(f"`{value}`" for value in kind.values))
        case BoolType():
            return "`true`, `false`"
        case NoneType():
            return "`null`"
        case IntType() | FloatType():
            word = "integer" if isinstance(kind, IntType) else "number"
            return f"{word}{limits(kind)}"
        case StrType():
            return PATTERNS[path] if kind.pattern else "text"
        case ListType():
            return f"list of {values(path, kind.item_type)}"
        case TupleType():
            return f"{len(kind.item_types)} x {values(path, kind.item_types[0])}"
    raise TypeError(f"{path}: say in docs/generate.py how a {type(kind).__name__} is shown")


def limits(kind: IntType | FloatType) -> str:
    """The range of a number: from, to."""
    words = []
    for sign, bound in ((">=", kind.ge), (">", kind.gt), ("<=", kind.le), ("<", kind.lt)):
        if bound is not None and abs(bound) < UNBOUNDED:
            words.append(f"{sign} {bound}")
    return f" {', '.join(words)}" if words else ""


def default(path: str, field: Field) -> str:
    """The default as YAML; empty where a person must give a value."""
    if field.required:
        return "required"
    found = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if structs_of(field.type):
        return "" if found is None else f"`{type_info(type(found)).tag}`"
    value = msgspec.to_builtins(found)
    return f"`{json.dumps(value).strip(chr(34))}`"


def renamed() -> str:
    """The table of names that settings had before."""
    rows = [f"| `{old}` | {f'`{new}`' if new else 'removed'} |" for old, new in RENAMED.items()]
    for path, words in RENAMED_VALUES.items():
        rows += [f"| `{path}: {old}` | `{path}: {new}` |" for old, new in words.items()]
    return "\n".join(["## Old names", "", "| before | today |", "| --- | --- |", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
