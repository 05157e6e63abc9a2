"""Every setting's default and range: a value at the border is taken, and one beyond is refused by its key.

The table is by hand. A setting without a row in it fails the test, and so does a row without a setting.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
import pytest

import config
from config import SettingsError
from tests.leaves import SMALLEST, leaves, plain, read, tags

LARGEST, TINY, NAN, INF = 2**63 - 1, 5e-324, math.nan, math.inf
NEEDED = object()
NO_NUMBERS = (None, "1", True, [1])


def above(value: float) -> float:
    return math.nextafter(value, INF)


def below(value: float) -> float:
    return math.nextafter(value, -INF)


class Row(NamedTuple):
    """A default, the accepted values, and the refused values."""

    default: Any
    good: tuple = ()
    bad: tuple = ()

    def but(self, good: tuple = (), bad: tuple = ()) -> Row:
        """The row with more accepted and refused values; values that are accepted now leave the refused ones."""
        kept = tuple(value for value in self.bad if not any(same(value, one) for one in good))
        return Row(self.default, self.good + good, kept + bad)


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or one != one and other != other)


def whole(default: Any, least: int, most: int = LARGEST) -> Row:
    return Row(default, (least, most), (least - 1, most + 1, 1.5, *NO_NUMBERS))


def real(default: Any, good: tuple, bad: tuple) -> Row:
    return Row(default, good, (*bad, NAN, INF, -INF, *NO_NUMBERS))


def words(default: Any, *some: str) -> Row:
    return Row(default, some, ("nosuch", "", some[0].upper(), 1, None, True))


def switch(default: bool) -> Row:
    return Row(default, (True, False), (0, 1, "true", None))


WIDTH = (1, 16384)
RATE = ((TINY, 1e6), (0.0, -TINY, above(1e6)))
WEIGHT = ((0.0, 1e6), (-TINY, above(1e6)))
FRACTION = ((0.0, below(1.0)), (-TINY, 1.0))
SHARE = ((TINY, 1.0), (0.0, above(1.0)))
SECONDS = ((TINY, 1e7), (0.0, -TINY, above(1e7)))
LEADERS = whole(None, 1, 4).but((None, [1], [3, 0], [0, 1, 2, 3]), ([], [4], [-1], [1, 1], [0.5]))
ROBUST = ("mean", "clipped_mean", "median", "trimmed_mean", "centered_clip")
NO_SUM = words("mean", *ROBUST).but((), ("sum",))

TABLE = {
    "name": Row(NEEDED, ("a", "9", "a" * 64, "a.b-c_D"), ("", "a" * 65, ".a", "-a", "a/b", "a b", "ä", 5, None)),
    "seed": whole(1, 0),
    "peers": whole(1, 1).but((["redis://a"], ["rediss://a:1", "unix:///x"]), ([], [""], ["a:1"], ["http://a"])),
    "connect_timeout_s": real(30.0, *SECONDS),
    "device": Row("auto", ("auto", "cpu", "cuda", "cuda:0", "cuda:9999"), ("", "cuda:", "cuda:10000", "gpu", "CPU", 1)),
    "data.name": words(NEEDED, "digits", "mnist", "fashion-mnist", "cifar10", "folder", "gaussian-ring"),
    "data.root": Row(None, (None, "x"), (1, True, [])),
    "data.download": switch(False),
    "data.batch_size": whole(32, 1),
    "data.split[classes].groups": Row(
        NEEDED, ([[0]], [[LARGEST]], [[0]] * 4), ([], [[]], [[-1]], [[LARGEST + 1]], [[0]] * 5, [0], None)
    ),
    "data.split[dirichlet].alpha": real(0.5, *RATE),
    "data.split[dirichlet].min_samples": whole(10, 1),
    "data.split[shards].per_worker": whole(2, 1),
    "data.split[fegan].magic_num": whole(None, 1, 10**9).but((None,)),
    "data.split[fegan].ramp": whole(200, 1, 10**6),
    "data.split[fegan].min_samples": whole(10, 1),
    "data.split[mixed].even": real(0.5, (0.0, 1.0), (-TINY, above(1.0))),
    "model[lsgan].latent": whole(100, *WIDTH),
    "model[lsgan].image_size": Row(32, (32, 64), (31, 33, 128, "32", 32.5, None)),
    "model[lsgan].norm_eps": real(0.8, *RATE),
    "model[dcgan].latent": whole(64, *WIDTH),
    "model[dcgan].width": whole(32, *WIDTH),
    "model[dcgan].image_size": Row(32, (32, 64), (31, 33, 128, "32", 32.5, None)),
    "model[mlp].latent": whole(64, *WIDTH),
    "model[mlp].hidden": whole(256, *WIDTH),
    "model[mlp].image_size": whole(28, 4, 256),
    "model[degan].latent": whole(100, *WIDTH),
    "model[degan].image_size": Row(28, (28,), (27, 29, 32, "28", None)),
    "classifier[gn_lenet].image_size": whole(28, 8, 256),
    "classifier[resnet].depth": Row(8, (8, 14, 20, 32, 44, 56), (7, 9, 26, 62, "8", 8.5, None)),
    "classifier[resnet].width": whole(16, 8, 1024).but((), (12,)),
    "classifier[resnet].norm": words("group", "group", "batch"),
    "classifier[resnet].image_size": whole(32, 8, 256),
    "classifier[mlp].hidden": whole(256, *WIDTH),
    "classifier[mlp].image_size": whole(28, 4, 256),
    "loss": words("non_saturating", "non_saturating", "least_squares", "hinge", "wasserstein_gp"),
    "regularisation.r1_gamma": real(0.0, *WEIGHT),
    "regularisation.gradient_penalty": real(10.0, *WEIGHT),
    "optimiser.algorithm": words("adam", "adam", "sgd"),
    "optimiser.lr": real(1e-3, *RATE),
    "optimiser.generator_lr": real(2e-4, *RATE),
    "optimiser.discriminator_lr": real(2e-4, *RATE),
    "optimiser.betas": Row(
        (0.5, 0.999),
        ([0.0, 0.0], [below(1.0), below(1.0)]),
        ([1.0, 0.5], [0.5, 1.0], [-TINY, 0.5], [0.5, -TINY], [0.5], [0.5] * 3, [NAN, 0.5], 0.5, None),
    ),
    "optimiser.ema_decay": real(0.999, *FRACTION),
    "mode[local].updates": words("simultaneous", "simultaneous", "alternating"),
    "mode[partial_exchange].parts": whole(4, 1, 1024).but(("auto",), ("Auto",)),
    "mode[partial_exchange].slack": whole(2, 0).but((None,)),
    "mode[partial_exchange].codec": words("float16", "raw", "float16", "bfloat16", "int8", "topk", "sign"),
    "mode[partial_exchange].topk_fraction": real(0.01, *SHARE),
    "mode[partial_exchange].rounding": words("nearest", "nearest", "stochastic"),
    "mode[partial_exchange].exchange": words("parameters", "gradients", "parameters"),
    "mode[partial_exchange].own": words("immediate", "immediate", "delayed"),
    "mode[partial_exchange].reduce": words("mean", *ROBUST, "sum"),
    "mode[partial_exchange].byzantine": whole(1, 0),
    "mode[partial_exchange].updates": words("simultaneous", "simultaneous", "alternating"),
    "mode[federated].leaders": LEADERS,
    "mode[federated].leader_trains": switch(True),
    "mode[federated].fraction": real(0.5, *SHARE),
    "mode[federated].cohort": whole(None, 1, 4).but((None,)),
    "mode[federated].sampling": words("uniform", "uniform", "balanced"),
    "mode[federated].share_histograms": switch(True),
    "mode[federated].local_steps": whole(50, 1),
    "mode[federated].order": words("generator_first", "generator_first", "discriminator_first"),
    "mode[federated].weighting": words("size", "uniform", "size", "kl"),
    "mode[federated].scheme": words("exp", "exp", "linear", "dirac"),
    "mode[federated].sign": words("divergent_less", "divergent_less", "as_released"),
    "mode[federated].optimiser_state": words("keep", "keep", "reset", "average"),
    "mode[federated].quorum": real(0.5, *SHARE),
    "mode[federated].deadline.floor_s": real(10.0, (TINY, 300.0), (0.0, -TINY, above(300.0))),
    "mode[federated].deadline.ceiling_s": real(300.0, (10.0, 1e7), (below(10.0), above(1e7))),
    "mode[federated].codec": words("raw", "raw", "float16", "bfloat16").but((), ("int8", "topk", "sign")),
    "mode[federated].reduce": NO_SUM,
    "mode[federated].byzantine": whole(1, 0),
    "mode[federated].stragglers.fraction": real(0.0, *FRACTION),
    "mode[federated].stragglers.local_steps": whole("half", 1).but(("half",), ("all",)),
    "mode[multi_discriminator].leaders": LEADERS,
    "mode[multi_discriminator].leader_trains": switch(True),
    "mode[multi_discriminator].batches": whole(1, 1, 4).but(("log",), ("Log",)),
    "mode[multi_discriminator].discriminator_steps": whole(1, 1),
    "mode[multi_discriminator].swap_every": real(None, *WEIGHT).but((None,)),
    "mode[multi_discriminator].swap_optimiser": switch(True),
    "mode[multi_discriminator].state_every": whole(100, 1),
    "mode[multi_discriminator].quorum": real(0.5, *SHARE),
    "mode[multi_discriminator].deadline.floor_s": real(10.0, (TINY, 300.0), (0.0, -TINY, above(300.0))),
    "mode[multi_discriminator].deadline.ceiling_s": real(300.0, (10.0, 1e7), (below(10.0), above(1e7))),
    "mode[multi_discriminator].codec": words("float16", "raw", "float16", "bfloat16", "int8").but((), ("topk", "sign")),
    "mode[multi_discriminator].feedback_codec": words("float16", "raw", "float16", "bfloat16", "int8").but(
        (), ("topk",)
    ),
    "mode[multi_discriminator].reduce": NO_SUM,
    "mode[multi_discriminator].byzantine": whole(1, 0),
    "bus.lease_s": real(30.0, (1.0, 1e6), (below(1.0), above(1e6))),
    "bus.replay_bytes": whole(None, 0).but((None,)),
    "bus.unbounded_backlog": whole(64, 1),
    "bus.finish_timeout_s": real(60.0, *SECONDS),
    "bus.stall_timeout_s": real(600.0, *SECONDS),
    "bus.min_peers": whole(0, 0, 3),
    "bus.norm_gate": real(10.0, (0.0, 1.0, 1e6), (TINY, below(1.0), -TINY, above(1e6))),
    "bus.offences": whole(10, 0),
    "security.folder": Row(None, (None, "x"), (1, True, [])),
    "run.steps": whole(2000, 1),
    "run.log_every": whole(10, 1),
    "run.evaluate_every": whole(500, 0),
    "run.evaluate_samples": whole(5000, 64),
    "run.snapshot_every": whole(500, 0),
    "run.checkpoint_every": whole(None, 0).but((None,)),
    "run.keep_checkpoints": whole(3, 1),
    "run.keep_best": switch(True),
}
# The structs that a block may be, with settings of their own or without.
KINDS = {
    "mode": ("local", "partial_exchange", "federated", "multi_discriminator"),
    "model": ("lsgan", "dcgan", "mlp", "degan"),
    "classifier": ("gn_lenet", "resnet", "mlp"),
    "data.split": ("iid", "classes", "dirichlet", "shards", "fegan", "mixed", "own"),
}
# The kind of a block that a file leaves out.
USUAL = {"mode": "partial_exchange", "data.split": "iid"}


def test_every_setting_has_its_row():
    assert leaves().keys() == TABLE.keys()
    assert {f"{block}[{kind}]" for block, kinds in KINDS.items() for kind in kinds} >= tags()


def test_every_default_is_as_written_here():
    found = {}
    for path, leaf in leaves().items():
        data = plain(path)
        if path in SMALLEST:
            del data[path]
        found[path] = NEEDED if leaf.default is msgspec.NODEFAULT else read(config.build(data), path)
    wrong = {path: value for path, value in found.items() if not same(value, TABLE[path].default)}
    assert wrong == {}


def test_a_value_at_the_border_is_taken_as_it_is():
    wrong = {}
    for path, value in ((path, value) for path, row in TABLE.items() for value in row.good):
        try:
            found = read(config.build(plain(path, value)), path)
        except SettingsError as error:
            found = error
        if not same(list(found) if isinstance(found, tuple) else found, value):
            wrong[path] = value, found
    assert wrong == {}


def test_a_value_beyond_the_border_is_refused_by_its_key():
    wrong = {}
    for path, value in ((path, value) for path, row in TABLE.items() for value in row.bad):
        key = leaves()[path].key
        # Two settings of one block that do not fit together are named by the block.
        keys = (key, key.rpartition(".")[0]) if ".deadline." in key else (key,)
        try:
            found = read(config.build(plain(path, value)), path)
        except SettingsError as error:
            found = str(error)
            if found.startswith(tuple(f"{one}{end}" for one in keys for end in (":", "["))):
                continue
        wrong[path] = value, found
    assert wrong == {}


@pytest.mark.parametrize("block", KINDS)
def test_the_kinds_of_a_block(block):
    outer, _, last = block.rpartition(".")
    for kind in KINDS[block]:
        data = plain(f"{block}[{kind}].x")
        found = config.build(data)
        for word in block.split("."):
            found = getattr(found, word)
        assert found.__struct_config__.tag == kind
    with pytest.raises(SettingsError) as caught:
        config.build(plain(f"{block}[nosuch].x"))
    known = str(caught.value).partition("known: ")[2].split(", ")
    assert sorted(known) == sorted(KINDS[block])


@pytest.mark.parametrize("block", USUAL)
def test_the_kind_of_a_block_that_is_left_out(block):
    found = config.build({"name": "small", "data": {"name": "digits"}, "model": {"name": "mlp"}})
    for word in block.split("."):
        found = getattr(found, word)
    assert found.__struct_config__.tag == USUAL[block]
