"""Every setting by its path, found in the structs themselves, so that a table of settings is known to be complete.

`run.steps` is a setting of a plain block, `mode[federated].quorum` one that only this mode has.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from config.settings.experiment import Experiment

# The key that picks the struct of a block.
TAGS = {"mode": "name", "model": "name", "classifier": "name", "data.split": "kind"}
# The ranges of leaders and cohorts are tried with this number of workers.
SMALLEST = {"name": "small", "peers": 4, "data": {"name": "digits"}, "model": {"name": "mlp"}}
# Settings of an experiment with a classifier, in place of a GAN's model.
OF_CLASSIFIERS = ("classifier", "optimiser.lr")


class Leaf(NamedTuple):
    """A setting: its path, the path that a person types, its type, its default (NODEFAULT where it must be given)."""

    path: str
    key: str
    kind: Any
    default: Any


@functools.cache
def leaves() -> dict[str, Leaf]:
    """All settings by path."""
    return {leaf.path: leaf for leaf in _of(Experiment, "", "")}


def _of(struct: type, path: str, key: str):
    defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
    for name, kind in get_type_hints(struct, include_extras=True).items():
        inner_path, inner_key = f"{path}{name}", f"{key}{name}"
        structs = _structs(kind)
        if not structs:
            yield Leaf(inner_path, inner_key, kind, defaults[name])
        elif structs[0].__struct_config__.tag is None:
            yield from _of(structs[0], f"{inner_path}.", f"{inner_key}.")
        else:
            for one in structs:
                yield from _of(one, f"{inner_path}[{one.__struct_config__.tag}].", f"{inner_key}.")


def _structs(kind: Any) -> list[type]:
    if get_origin(kind) is not None:
        return [struct for arg in get_args(kind) for struct in _structs(arg)]
    return [kind] if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []


def tags() -> set[str]:
    """The structs that a key may pick, such as `mode[federated]`."""
    return {leaf.path.rpartition("]")[0] + "]" for leaf in leaves().values() if "[" in leaf.path}


def plain(path: str, *value: Any, **more: Any) -> dict[str, Any]:
    """The smallest experiment in which a setting has this value, or stays as it is, as plain values.

    Args:
        more: further blocks; those of `SMALLEST` are always there.
    """
    data: dict[str, Any] = SMALLEST | more
    if path.startswith(OF_CLASSIFIERS):
        data = {key: block for key, block in data.items() if key != "model"} | {"classifier": {"name": "mlp"}}
    block, key = data, ""
    *blocks, last = path.split(".")
    for word in blocks:
        name, _, tag = word.rstrip("]").partition("[")
        key = f"{key}.{name}" if key else name
        if tag and block.get(name, {}).get(TAGS[key]) != tag:
            block[name] = {TAGS[key]: tag} | ({"groups": [[0]]} if tag == "classes" else {})
        block[name] = dict(block.get(name) or {})
        block = block[name]
    if value:
        block[last] = value[0]
    return data


def read(experiment: Experiment, path: str) -> Any:
    """The value of a setting in an experiment."""
    found = experiment
    for word in path.split("."):
        name, _, tag = word.rstrip("]").partition("[")
        found = getattr(found, name)
        assert not tag or found.__struct_config__.tag == tag, f"{path}: the experiment has no {tag}"
    return found
