"""The agreement of workers that meet: every setting that is not private, by its key, and nothing else."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import msgspec
import pytest
import torch

import config
from config import UsageError
from degan import modes
from degan.artifacts.checkpoints import Checkpoint, check_same_experiment
from degan.learners.gan_pair import GanPair
from degan.modes.connect import agreement, fingerprint
from degan.runs.folder import Run
from peers.errors import DisagreementError
from tests.config.test_settings_ranges import KINDS, TABLE, USUAL, same
from tests.fleets import in_threads, memory_buses
from tests.leaves import TAGS, leaves, plain

# By hand: the settings that each host may have its own way.
PRIVATE = {"peers", "connect_timeout_s", "device", "data.root", "data.download", "run.log_every", "security.folder"}
# The settings that a resumed run may change: its length, its periods, and its patience.
MAY_CHANGE = ("run.", "bus.")
TINY = {"name": "mlp", "latent": 2, "hidden": 3, "image_size": 4}
PAIR = SimpleNamespace(facts={"model (number of values)": 77, "model (sample shape)": [1, 8, 8]})


def other(path: str) -> object:
    """A valid value of a setting that is not its default."""
    usual = "small" if path == "name" else "digits" if path == "data.name" else TABLE[path].default
    usual = [[0]] if path.endswith("groups") else usual
    return next((value for value in TABLE[path].good if not same(value, usual) and value != [1]), None)


# These settings have only one valid value.
CHANGED = {path: other(path) for path in TABLE if path not in ("peers", "model[degan].image_size")}


def both(path: str) -> tuple[config.Experiment, config.Experiment]:
    """Two experiments that differ in one setting."""
    return config.build(plain(path)), config.build(plain(path, CHANGED[path]))


def differing(one: dict, two: dict) -> set[str]:
    return {key for key in one.keys() | two.keys() if one.get(key, msgspec.UNSET) != two.get(key, msgspec.UNSET)}


def test_every_setting_that_is_not_private_is_agreed_on():
    wrong = {}
    for path in CHANGED:
        key = leaves()[path].key
        one, two = (agreement(settings, PAIR, {}) for settings in both(path))
        expected = set() if key in PRIVATE else {key}
        if (found := differing(one, two)) != expected or (fingerprint(one) == fingerprint(two)) != (not expected):
            wrong[path] = found
    assert wrong == {}


@pytest.mark.parametrize("block", KINDS)
def test_the_kind_of_a_block_is_agreed_on(block):
    for kind in KINDS[block]:
        usual = USUAL.get(block, "mlp")
        one, two = (config.agreed(config.build(plain(f"{block}[{name}].x"))) for name in (usual, kind))
        assert (f"{block}.{TAGS[block]}" in differing(one, two)) == (kind != usual)


def test_the_agreement_besides_the_settings():
    settings = config.build(plain("seed"))
    found = agreement(settings, PAIR, {"data (classes)": ["a"], "data (samples)": 5})
    more = {
        "data (classes)": ["a"],
        "data (samples)": 5,
        "protocol": 3,
        "model (number of values)": 77,
        "model (sample shape)": [1, 8, 8],
        "peers (how many)": 4,
    }
    assert {key: found[key] for key in more} == more
    assert found.keys() - more.keys() == {leaves()[p].key for p in leaves() if p in found} | {
        leaf.key for leaf in leaves().values() if leaf.path.startswith(("mode[partial", "model[mlp]"))
    } | {"mode.name", "model.name", "data.split.kind"}
    # The number of workers counts, not their addresses.
    for peers, expected in ((4, set()), (["redis://a"] * 4, set()), (3, {"peers (how many)"})):
        assert (
            differing(config.agreed(settings), config.agreed(config.build(plain("seed") | {"peers": peers})))
            == expected
        )


def test_values_are_compared_as_the_wire_gives_them_back():
    """A tuple comes back as a list, and null comes back as null."""
    settings = config.build(plain("optimiser.betas", [0.1, 0.2]))
    found = config.agreed(settings)
    assert found["optimiser.betas"] == [0.1, 0.2] and isinstance(found["optimiser.betas"], list)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found)) == found


def test_the_fingerprint_is_eight_bytes_of_all_that_was_agreed_in_any_order():
    found = fingerprint({"a": 1, "b": 2})
    assert len(found) == 8 and found == fingerprint({"b": 2, "a": 1})
    assert len({found, fingerprint({"a": 2, "b": 1}), fingerprint({"a": 1}), fingerprint({"a": 1, "c": 2})}) == 4


def test_a_run_goes_on_only_with_the_settings_that_may_change():
    wrong = {}
    for path in CHANGED:
        key = leaves()[path].key
        one, two = map(config.agreed, both(path))
        may_change = key in PRIVATE or key.startswith(MAY_CHANGE)
        try:
            check_same_experiment(Checkpoint(3, {}, {}, {}, one), two, "here")
            found = ""
        except UsageError as error:
            found = str(error)
        expected = "" if may_change else f"here is of another experiment: {key} is "
        if not found.startswith(expected) or bool(found) == may_change:
            wrong[path] = found
    assert wrong == {}


def test_settings_that_do_not_load_are_shared_without_what_is_private():
    flat = {key: "x" for key in sorted(PRIVATE - {"peers"})} | {"seed": 7, "mode.slack": 2}
    blocks: dict = {"peers": 4}
    for key, value in flat.items():
        *path, last = key.split(".")
        block = blocks
        for part in path:
            block = block.setdefault(part, {})
        block[last] = value
    assert Run(plain=blocks).shared_settings == {"seed": 7, "mode.slack": 2, "peers (how many)": 4}


@pytest.mark.parametrize("mode", ["partial_exchange", "federated", "multi_discriminator"])
def test_two_workers_that_differ_in_a_codec_refuse_each_other_by_its_key(mode, monkeypatch):
    monkeypatch.setattr("peers.session.meet.SEEN_S", 0.0)
    waiting = memory_buses(2)
    monkeypatch.setattr(f"degan.modes.{mode}.open_bus", lambda settings, worker, log, may_take_over: waiting[worker])
    said, both_said = [], threading.Barrier(2)

    def meet(worker: int) -> None:
        codec = ("raw", "bfloat16")[worker]
        settings = config.build(plain(f"mode[{mode}].codec", codec, peers=2, model=TINY))
        peer_info = {"samples": 8, "histogram": [8]}
        pair = GanPair(settings, (1, 4, 4), worker, torch.device("cpu"))
        made = modes.build(modes.Context(settings, worker, pair, {}, peer_info, lambda line: None))
        try:
            with pytest.raises(DisagreementError) as caught:
                made.begin([], {}, None)
            said.append(str(caught.value))
            # The other worker would not see a worker that leaves first.
            both_said.wait(60)
        finally:
            made.close()

    in_threads([lambda: meet(0), lambda: meet(1)])
    assert all("do not train the same: mode.codec is " in text for text in said) and len(said) == 2
