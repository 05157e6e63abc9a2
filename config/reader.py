"""From a YAML file and `--set` overrides to an `Experiment`, and back; every error names its key.

The file may come from someone else. So the reader uses the safe loader, limits the size and refuses
aliases (an alias can blow a small file up to gigabytes). YAML 1.1 reads `2e-4` as a string; the
loader here reads `2e-4` as a number.
"""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import yaml

from config.errors import SettingsError, UsageError
from config.renamed import KEYS, renamed_blocks
from config.settings.experiment import Experiment

# The name of an experiment in a folder of its own, as in a run folder.
FILE = "experiment.yaml"
MAX_FILE_BYTES = 256 * 1024
EXPERIMENTS = Path(__file__).parent / "experiments"

# Settings that may differ from worker to worker; all the others must agree (see `agreed`).
PRIVATE = ("peers", "connect_timeout_s", "device", "data.root", "data.download", "run.log_every", "security.folder")

# Settings that one kind of learner does not read. Its workers need not agree on these.
OF_CLASSIFIERS = ("classifier", "optimiser.lr")
OF_GANS = (
    *("model", "loss", "regularisation"),
    *("optimiser.generator_lr", "optimiser.discriminator_lr", "optimiser.ema_decay"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 2e-4 a number and aliases refused."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """The counterpart of `_Loader`: the text "2e-4" is written with quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def find_experiment(name: str | Path) -> Path:
    """The file `name`, or degan's own experiment of that name.

    Raises:
        UsageError: there is neither; the message lists degan's own experiments.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        if path.is_dir() and (path / FILE).is_file():
            return path / FILE
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    bundled = EXPERIMENTS / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in (Path("."), Path("config/experiments")) and bundled.is_file():
        return bundled
    known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
    raise UsageError(f"no experiment file {path}; the ones that come with degan: {known}")


def parse(text: str, where: str = "settings") -> Any:
    """YAML text to plain values.

    Raises:
        SettingsError: not YAML, too large, or with aliases.
    """
    if len(text) > MAX_FILE_BYTES:
        raise SettingsError(f"{where}: larger than {MAX_FILE_BYTES} bytes; this is no experiment file")
    try:
        # The loader is a subclass of SafeLoader: plain values only, no objects.
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except Exception as error:
        # PyYAML does not catch the errors of its own constructors: `!!int ""` is an IndexError.
        raise SettingsError(f"{where}: not valid YAML: {error or type(error).__name__}") from None


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read an experiment file, apply `a.b=c` overrides and check everything.

    Args:
        path: a file, a run folder, or the name of an experiment that comes with degan.
        overrides: as given to `--set`; values are YAML. A new `name` (or `kind`) drops the keys of its
            block that the new kind does not have, so `mode.name=local` works on any experiment.

    Raises:
        SettingsError: an unknown key, a wrong type or range; the message names the path of the key.
        UsageError: the file is missing or cannot be read.
    """
    file = find_experiment(path)
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None
    data = parse(text, str(file))
    if not isinstance(data, dict):
        raise SettingsError(f"{file}: expected a mapping of settings, found {type(data).__name__}")
    data = renamed_blocks(data)
    tags = []
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set {item}: expected a.b=value")
        tags.append((key.strip().split("."), parse(value, f"--set {key}")))
    # Tags first: they decide which of the other keys exist.
    for keys, value in sorted(tags, key=lambda pair: pair[0][-1] not in ("name", "kind")):
        _override(data, keys, value)
    return build(data)


def build(data: dict[str, Any]) -> Experiment:
    """Plain values to an `Experiment`.

    Raises:
        SettingsError: as `load`.
    """
    _check_keys(Experiment, data, "")
    try:
        experiment = msgspec.convert(data, Experiment, strict=True)
    except msgspec.ValidationError as error:
        raise SettingsError(_readable(str(error))) from None
    experiment.check()
    return experiment


def dump(experiment: Experiment) -> str:
    """The resolved settings as YAML; `load` of that file gives the same `Experiment`."""
    absent = "model" if experiment.model is None else "classifier"
    data = {key: value for key, value in msgspec.to_builtins(experiment).items() if key != absent}
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None)


def agreed(experiment: Experiment) -> dict[str, Any]:
    """The settings on which all workers must agree: `{"mode.slack": 2, ...}`."""
    flat = _flatten(msgspec.to_builtins(experiment))
    unread = OF_CLASSIFIERS if experiment.classifier is None else OF_GANS
    shared = {key: value for key, value in flat.items() if key not in PRIVATE and not key.startswith(unread)}
    shared["peers (how many)"] = experiment.workers
    return shared


def _flatten(data: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {path: list(data) if isinstance(data, tuple) else data}
    flat = {}
    for key, value in data.items():
        flat.update(_flatten(value, f"{path}.{key}" if path else key))
    return flat


def _override(data: dict[str, Any], keys: list[str], value: Any) -> None:
    block: dict[str, Any] = data
    kind: Any = Experiment
    for depth, key in enumerate(keys[:-1]):
        inner = block.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is a plain value, not a block")
        kind = _field_types(kind).get(key, None) if kind is not None else None
        block = inner
    last = keys[-1]
    union = _tagged(kind)
    if union and last == union[0] and isinstance(value, str) and value in union[1]:
        allowed = _field_types(union[1][value]).keys()
        for key in [key for key in block if key not in allowed]:
            del block[key]
    block[last] = value


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    if kind is None:
        return []
    if get_origin(kind) is not None:
        return [struct for arg in get_args(kind) for struct in _structs(arg)]
    return [kind] if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []


def _tagged(kind: Any) -> tuple[str, dict[str, type[msgspec.Struct]]] | None:
    """The tag field and the structs by tag, where `kind` is a tagged union."""
    by_tag = {str(s.__struct_config__.tag): s for s in _structs(kind) if s.__struct_config__.tag is not None}
    fields = {str(s.__struct_config__.tag_field) for s in by_tag.values()}
    return (fields.pop(), by_tag) if by_tag else None


@functools.cache
def _types_of(struct: type) -> dict[str, Any]:
    """The types of a struct's fields, resolved from the texts of its annotations; cached."""
    return get_type_hints(struct, include_extras=True)


def _field_types(struct: Any) -> dict[str, Any]:
    structs = _structs(struct)
    if len(structs) != 1:
        return {}
    return _types_of(structs[0])


def _check_keys(kind: Any, data: Any, path: str) -> None:
    """Unknown keys and unknown tags, with the nearest right word; msgspec then checks the values."""
    structs = _structs(kind)
    if not structs or not isinstance(data, dict):
        return
    struct, allowed = structs[0], set()
    union = _tagged(kind)
    if union:
        field, by_tag = union
        where = f"{path}.{field}"
        if field not in data:
            raise SettingsError(f"{where}: missing; one of {', '.join(by_tag)}")
        if not isinstance(data[field], str) or data[field] not in by_tag:
            raise SettingsError(
                f"{where}: unknown {path.rsplit('.', 1)[-1]} {data[field]!r}{_nearest(data[field], by_tag)}"
            )
        struct, allowed = by_tag[data[field]], {field}
    types = _types_of(struct)
    allowed |= types.keys()
    for key, value in data.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in allowed:
            hint = f"; it is {KEYS[inner]} now" if inner in KEYS else _nearest(key, allowed)
            raise SettingsError(f"{inner}: unknown key{hint}")
        if key in types:
            _check_keys(types[key], value, inner)
            _check_literal(types[key], value, inner)


def _check_literal(kind: Any, value: Any, path: str) -> None:
    words = [word for word in get_args(kind) if isinstance(word, str)]
    if words and isinstance(value, str) and value not in words:
        raise SettingsError(f"{path}: unknown value {value!r}{_nearest(value, words)}")


def _nearest(word: Any, known: Any) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


# The words of an error message in place of a pattern.
_PATTERNS = {
    "name": "1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or a digit",
    "device": "auto, cpu, cuda or cuda:N",
}


def _readable(message: str) -> str:
    """msgspec's "Expected `int` >= 1 - at `$.mode.parts`" as degan's "mode.parts: expected int >= 1"."""
    problem, _, where = message.partition(" - at ")
    path = where.strip("`").removeprefix("$").lstrip(".")
    missing = re.fullmatch(r"Object missing required field `(.*)`", problem)
    if missing:
        return f"{f'{path}.' if path else ''}{missing[1]}: missing"
    problem = problem.replace("`", "")
    problem, pattern, _ = problem.partition(" matching regex ")
    if pattern:
        problem = f"Expected {_PATTERNS.get(path, 'another text')}"
    return f"{path or 'settings'}: {problem[:1].lower()}{problem[1:]}"
