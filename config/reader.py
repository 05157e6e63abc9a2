"""From a YAML file and `--set` overrides to an `Experiment`, and back; every error names its key.

The file may come from someone else, so it is read with the safe loader, up to a size, without
aliases (an alias can blow a small file up to gigabytes). YAML 1.1 reads `2e-4` as a string; the
loader here reads it as the number it is.
"""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
import yaml

from config.errors import SettingsError, UsageError
from config.renamed import KEYS, renamed_blocks
from config.settings import Experiment, Federated, MultiDiscriminator

MAX_FILE_BYTES = 256 * 1024
EXPERIMENTS = Path(__file__).parent / "experiments"

# Settings that may differ from worker to worker; all the others must agree (see `agreed`).
PRIVATE = ("peers", "connect_timeout_s", "device", "data.root", "data.download", "run.log_every", "security.folder")

# Settings that one kind of learner does not read: they are no part of what its workers agree on.
OF_CLASSIFIERS = ("classifier", "optimiser.lr")
OF_GANS = (
    *("model", "loss", "regularisation"),
    *("optimiser.generator_lr", "optimiser.discriminator_lr", "optimiser.ema_decay"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 2e-4 a number and aliases refused."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Its counterpart: the text "2e-4" is written with quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def find_experiment(name: str | Path) -> Path:
    """The file `name`, or the experiment of that name that comes with degan.

    Raises:
        UsageError: there is neither; the message lists what comes with degan.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        if path.is_dir() and (path / "experiment.yaml").is_file():
            return path / "experiment.yaml"
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
        # PyYAML lets what its constructors stumble over pass: `!!int ""` is an IndexError.
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


def build(data: dict) -> Experiment:
    """Plain values to an `Experiment`.

    Raises:
        SettingsError: as `load`.
    """
    _check_keys(Experiment, data, "")
    try:
        experiment = msgspec.convert(data, Experiment, strict=True)
    except msgspec.ValidationError as error:
        raise SettingsError(_readable(str(error))) from None
    _check_together(experiment)
    return experiment


def dump(experiment: Experiment) -> str:
    """The resolved settings as YAML; `load` of it gives the same `Experiment`."""
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


def _override(data: dict, keys: list[str], value: Any) -> None:
    block, kind = data, Experiment
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


def _structs(kind: Any) -> list[type]:
    if kind is None:
        return []
    if get_origin(kind) is not None:
        return [struct for arg in get_args(kind) for struct in _structs(arg)]
    return [kind] if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []


def _tagged(kind: Any) -> tuple[str, dict[str, type]] | None:
    """The tag field and the structs by tag, where `kind` is a tagged union."""
    structs = [struct for struct in _structs(kind) if struct.__struct_config__.tag is not None]
    if not structs:
        return None
    return structs[0].__struct_config__.tag_field, {struct.__struct_config__.tag: struct for struct in structs}


@functools.cache
def _types_of(struct: type) -> dict[str, Any]:
    """The types of a struct's fields; read out of their texts once."""
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


# What a person should read where a text has a pattern.
_PATTERNS = {
    "name": "1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or a digit",
    "device": "auto, cpu, cuda or cuda:N",
}


def _readable(message: str) -> str:
    """msgspec says "Expected `int` >= 1 - at `$.mode.parts`"; we say "mode.parts: expected int >= 1"."""
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


def _check_together(experiment: Experiment) -> None:
    """What no single field can check."""
    urls = experiment.peers if isinstance(experiment.peers, list) else []
    if isinstance(experiment.peers, list) and not urls:
        raise SettingsError("peers: empty; list one Redis URL a worker, or give a number for the local launcher")
    for index, url in enumerate(urls):
        if not re.match(r"^(redis|rediss|unix)://", url):
            raise SettingsError(f"peers[{index}]: {url!r} is no Redis URL; write redis://host:6379")
        try:
            urlsplit(url).port  # noqa: B018
        except ValueError as error:
            # Without what may be a password; the reason may quote a piece of one that has a slash in it.
            shown, why = re.sub(r"//.*@", "//", url), str(error) if "@" not in url else "its host or port is none"
            raise SettingsError(f"peers[{index}]: {shown!r} is no Redis URL: {why}; write redis://host:6379") from None
    _check_learner(experiment)
    mode = experiment.mode
    if getattr(mode, "exchange", "") == "parameters" and mode.slack is None and mode.codec in ("int8", "topk", "sign"):
        raise SettingsError(
            f"mode.codec: {mode.codec} carries differences, and with slack: null the workers agree on nothing that "
            "they could be differences to; give a slack, or use float16, bfloat16 or raw"
        )
    if getattr(mode, "exchange", "") == "parameters" and mode.slack is None and mode.parts == "auto":
        raise SettingsError(
            "mode.parts: auto changes the number of parts in a round that all have reached, and with slack: null there "
            "is none; give mode.slack or mode.parts a number"
        )
    if getattr(mode, "exchange", "") == "gradients" and mode.slack is None and mode.own == "delayed":
        raise SettingsError("mode.own: delayed applies what all have published by the bound; give mode.slack a number")
    if getattr(mode, "exchange", "") == "gradients" and mode.updates == "alternating":
        raise SettingsError(
            "mode.updates: alternating trains the generator against the discriminator that has just been updated, and "
            "exchange: gradients updates both after the exchange; set mode.exchange: parameters, or "
            "updates: simultaneous"
        )
    if experiment.bus.min_peers >= experiment.workers:
        least, most = experiment.bus.min_peers, experiment.workers - 1
        raise SettingsError(f"bus.min_peers: {least}, but a worker of this experiment has only {most} peers")
    _check_robust(experiment)
    _check_leader_based(experiment)
    split = experiment.data.split
    if getattr(split, "groups", None) is not None:
        if not split.groups or not all(split.groups):
            raise SettingsError("data.split.groups: every group needs at least one class")
        if len(split.groups) > experiment.workers:
            raise SettingsError(
                f"data.split.groups: {len(split.groups)} groups for {experiment.workers} workers; "
                "the data of some groups would be used by nobody"
            )
    block = "model" if experiment.classifier is None else "classifier"
    is_mlp = getattr(experiment, block).__struct_config__.tag == "mlp"
    if experiment.data.name == "gaussian-ring" and not is_mlp:
        raise SettingsError(f"{block}.name: gaussian-ring has points, not images; use mlp")


def _check_learner(experiment: Experiment) -> None:
    """An experiment is one of a GAN or of a classifier."""
    if experiment.model is None and experiment.classifier is None:
        raise SettingsError("model: missing; give a GAN as model or a classifier as classifier")
    if experiment.classifier is None:
        return
    if experiment.model is not None:
        raise SettingsError("classifier: an experiment trains a GAN or a classifier; take out model or classifier")
    mode = experiment.mode
    if isinstance(mode, MultiDiscriminator):
        raise SettingsError("mode.name: multi_discriminator trains a GAN; give model instead of classifier")
    if getattr(mode, "updates", "") == "alternating":
        raise SettingsError("mode.updates: alternating is for a GAN's two networks; a classifier is one")
    if getattr(mode, "order", "") == "discriminator_first":
        raise SettingsError("mode.order: discriminator_first is for a GAN's two networks; a classifier is one")
    for name in ("loss", "regularisation"):
        (default,) = [field.default for field in msgspec.structs.fields(Experiment) if field.name == name]
        if getattr(experiment, name) != default:
            raise SettingsError(f"{name}: belongs to GANs; a classifier learns by cross entropy")


def _check_robust(experiment: Experiment) -> None:
    """Rules that bear hostile workers need like things of all workers to choose among."""
    mode, workers = experiment.mode, experiment.workers
    if 0 < experiment.bus.norm_gate < 1:
        raise SettingsError("bus.norm_gate: below 1 it would leave out what is usual; give it 1 or more, or 0 for none")
    rule = getattr(mode, "reduce", "mean")
    if rule in ("mean", "sum"):
        return
    if rule == "trimmed_mean" and 2 * mode.byzantine >= workers:
        raise SettingsError(
            f"mode.byzantine: of {workers} workers fewer than half can be borne, not {mode.byzantine}; "
            "lower mode.byzantine, or use more workers"
        )
    if getattr(mode, "optimiser_state", "") == "average":
        raise SettingsError(
            f"mode.reduce: {rule} is for models, and optimiser_state: average sends Adam's moments with them; "
            "set mode.optimiser_state: keep or reset"
        )
    exchange = getattr(mode, "exchange", None)
    if exchange is not None and mode.slack is None:
        raise SettingsError(
            f"mode.reduce: {rule} chooses among what all have published by the bound; give mode.slack a number"
        )
    if exchange == "gradients" and mode.own == "immediate":
        raise SettingsError(
            f"mode.reduce: {rule} chooses among what all have published, and with own: immediate ours is not among it; "
            "set mode.own: delayed"
        )


def _check_leader_based(experiment: Experiment) -> None:
    """The modes with a leader."""
    mode, workers = experiment.mode, experiment.workers
    if not isinstance(mode, Federated | MultiDiscriminator):
        return
    leaders = mode.leaders
    if isinstance(leaders, int) and leaders > workers:
        raise SettingsError(f"mode.leaders: {leaders} leaders, but there are only {workers} workers")
    if isinstance(leaders, list):
        strangers = [leader for leader in leaders if leader >= workers]
        if strangers:
            raise SettingsError(f"mode.leaders: {strangers[0]} is no worker; there are 0 to {workers - 1}")
        if not leaders or len(set(leaders)) < len(leaders):
            raise SettingsError("mode.leaders: name at least one worker, and each only once")
    if not mode.leader_trains and workers == 1:
        raise SettingsError("mode.leader_trains: the only worker leads, so nobody would train; use more workers")
    if mode.deadline.floor_s > mode.deadline.ceiling_s:
        raise SettingsError("mode.deadline: floor_s is above ceiling_s")
    if isinstance(mode, Federated):
        if mode.cohort is not None and mode.cohort > workers - (not mode.leader_trains):
            those = f"only {workers} workers" + ("" if mode.leader_trains else ", and the leader does not train")
            raise SettingsError(f"mode.cohort: {mode.cohort} workers a round, but there are {those}")
        proposal = "weighting: kl" if mode.weighting == "kl" else ""
        proposal = "sampling: balanced" if mode.sampling == "balanced" else proposal
        if proposal and not mode.share_histograms:
            raise SettingsError(
                f"mode.{proposal} needs to know what classes each worker holds; set mode.share_histograms: true, "
                "or use sampling: uniform with weighting: size or uniform"
            )
        has_moments = mode.optimiser_state == "average" and experiment.optimiser.algorithm == "adam"
        if has_moments and mode.codec == "float16":
            raise SettingsError(
                "mode.codec: float16 makes zeros of Adam's second moments, which optimiser_state: average sends with "
                "the model, and the next step divides by them; set mode.codec: bfloat16 or raw"
            )
        return
    if mode.swap_every and workers == 1:
        raise SettingsError("mode.swap_every: one worker has nobody to swap its discriminator with; set it to 0")
    judges = workers - (not mode.leader_trains)
    if isinstance(mode.batches, int) and mode.batches > judges:
        raise SettingsError(f"mode.batches: {mode.batches} batches for {judges} that judge; nobody would look at some")
