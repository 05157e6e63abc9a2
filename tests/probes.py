"""Probes of a world: each is a function that finds where a setting has arrived in a world that was run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.config.test_settings_ranges import same
from tests.worlds import World

# A pair of 3 -> 4 -> 4 -> 100 and 100 -> 4 -> 4 -> 1.
G, D = 3 * 4 + 4 + 4 * 4 + 4 + 4 * 100 + 100, 100 * 4 + 4 + 4 * 4 + 4 + 4 + 1
ALTERNATING = {(G, G + D), (0, G)}


def sees(*places: str) -> Callable[[World], Any]:
    """The same value in every call of each place: `Screen.factor`, `RedisBus.run`."""

    def found(world: World) -> Any:
        values = [world.calls.only(*place.rsplit(".", 1)) for place in places]
        return values[0] if all(same(value, values[0]) for value in values) else values

    return found


def reads_data(name: str) -> Callable[[World], Any]:
    """A setting of `data` in all calls that prepare, load or split the data."""

    def found(world: World) -> Any:
        seen = [getattr(data, name) for place in ("prepare", "load") for data in world.calls.all(place, "data")]
        assert {"train", "test"} <= set(world.calls.all("load", "part"))
        return seen[0] if seen == [seen[0]] * len(seen) else seen

    return found


def logged(world: World) -> list[set[int]]:
    shown = (world.lines(f"w{worker}/stats.jsonl") for worker in world.workers)
    return [{line["step"] for line in lines} for lines in shown if lines]


def sections(world: World) -> set[tuple[int, int]]:
    return set(world.calls.all("GanPair.gradients", "section"))


def seeds(world: World) -> set[int]:
    found = [
        *world.calls.all("spawn_seed", "seed"),
        *world.calls.all("Shard", "seed"),
        *world.calls.all("split", "seed"),
    ]
    return set(found)


def purposes(world: World) -> set[str]:
    return {path[0] for path in world.calls.all("spawn_seed", "path")}


def timeouts(world: World) -> set[float | None]:
    places = ("Waiting.until", "SerialPool.drain")
    return {value for place in places for value in world.calls.all(place, "timeout_s")}


def kinds(kind: str) -> Callable[[World], tuple[int, str]]:
    """The number of values and the codec of a kind of vectors."""

    def found(world: World) -> tuple[int, str]:
        layouts = [layout[kind] for layout in world.calls.all("RoundLayout", "kinds")]
        (only,) = {(size, codec.name) for size, codec in layouts}
        return only

    return found


def local_steps(world: World) -> set[int]:
    """The numbers of steps that members take from one global model to their answer."""
    taken: dict[int, list[int]] = {}
    for key, call in world.calls.log:
        runs = taken.setdefault(id(call["self"]), [0]) if key.startswith("GanPair.") else []
        if key == "GanPair.load":
            runs.append(0)
        elif key == "GanPair.gradients":
            runs[-1] += call["section"][0] > 0 or call["section"] == (0, G + D)
    return {count for runs in taken.values() for count in runs if count}


def has_moments(world: World) -> set[bool]:
    """Whether the models that are loaded come with Adam's moments."""
    loaded = (vectors for vectors in world.calls.all("GanPair.load", "vectors") if "generator" in vectors)
    return {"generator.exp_avg" in vectors for vectors in loaded}


def states(world: World) -> set[int]:
    """The rounds after which the leader has put its generator."""
    names = world.calls.all("Rounds.put", "name")
    return {int(name.partition(".")[2]) for name in names if name.startswith("g")}


def fingerprints(world: World) -> bool:
    """Messages bear the fingerprint of all that was agreed on, and not the one of a layout that only measures."""
    layouts = {*world.calls.all("ExchangeLayout", "fingerprint"), *world.calls.all("RoundLayout", "fingerprint")}
    agreed = [call["seed"] for call in world.calls.all("fingerprint", "agreed")]
    return layouts - {bytes(8)} == set(world.calls.all("fingerprint", "->")) and set(agreed) == {7}


def put_as(prefix: str) -> Callable[[World], set[str]]:
    """The codecs with which states are put that have names with this prefix."""
    return lambda world: {
        codec.name for name, codec in world.calls.all("Rounds.put", "name", "codec") if name.startswith(prefix)
    }


def is_called(*keys: str) -> Callable[[World], list[bool]]:
    return lambda world: [bool(world.calls.all(key, "->")) for key in keys]
