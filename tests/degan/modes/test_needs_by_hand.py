"""The needs of a worker on its node, in bytes: each mode's sums by hand, from the sizes of a small pair."""

from __future__ import annotations

import pytest
import torch

import config
from degan import modes
from degan.learners.gan_pair import GanPair
from degan.modes.multi_discriminator import batches_of
from degan.modes.needs import Needs, entry_bytes, float_bytes, leader_outbox_bytes, leaders_of
from peers.codecs.exact import build
from peers.rounds.layout import RoundLayout
from tests.leaves import plain

# G is 2 -> 3 -> 3 -> 16, D 16 -> 3 -> 3 -> 1; a perceptron has no running statistics.
TINY = {"name": "mlp", "latent": 2, "hidden": 3, "image_size": 4}
G, D = 2 * 3 + 3 + 3 * 3 + 3 + 3 * 16 + 16, 16 * 3 + 3 + 3 * 3 + 3 + 3 + 1
ALL = G + D
# The state has the weights, two moments of each, and the average of G.
STATE = 4 * (3 * ALL + G)
# A stream of a mode with a leader has three vectors and this number of small messages.
VECTORS, FIELDS = 3, 64


def needs_of(mode: dict, workers: int = 3, **more: dict) -> Needs:
    settings = config.build(plain("seed", model=TINY, peers=workers, mode=mode, **more))
    pair = GanPair(settings, (1, 4, 4), 0, torch.device("cpu"))
    assert (pair.generator.size, pair.size) == (G, ALL)
    return modes.needs(settings, pair)


def test_the_sum_of_what_a_redis_needs():
    needs = Needs(outbox_bytes=3 * 2**20, state_bytes=2**19, step_bytes=7, vector_bytes=9)
    assert needs.redis_bytes == 3 * 2**20 + 2**19
    assert str(needs) == "at most 3.0 MiB of streams and 0.5 MiB of states on this node's Redis"


def test_the_mean_entry_of_a_vector_is_rounded_up():
    raw = build("raw")
    assert [entry_bytes(size, raw) for size in (1, 10, 262_144)] == [4, 40, 2**20]
    # Two entries, of 262,144 values and of a single one.
    assert entry_bytes(262_145, raw) == (2**20 + 4) // 2
    # Three entries: 699,053 and a third.
    assert entry_bytes(2 * 262_144 + 2, raw) == 699_054
    assert entry_bytes(10, build("float16")) == 20


def test_a_stream_is_full_of_the_largest_of_what_may_fill_it():
    layout = RoundLayout(bytes(8), {"small": (10, build("raw")), "large": (30, build("float16"))})
    entries = VECTORS + FIELDS
    assert leader_outbox_bytes(layout, [("small",)]) == entries * 40
    assert leader_outbox_bytes(layout, [("small", "large"), (), ("small",)]) == entries * (60 + 40)
    # The vector has three entries: three times three, and the small messages.
    layout = RoundLayout(bytes(8), {"huge": (600_000, build("raw"))})
    assert leader_outbox_bytes(layout, [("huge",)]) == (VECTORS * 3 + FIELDS) * 800_000


def test_floats_have_four_bytes():
    assert float_bytes({"a": torch.zeros(3).numpy(), "b": torch.zeros(2).numpy()}) == 20
    assert float_bytes({"a": 3, "b": 2}) == 20 and float_bytes({}) == 0


@pytest.mark.parametrize(
    ("leaders", "workers", "expected"),
    [(None, 5, [0, 1, 2]), (None, 2, [0, 1]), (2, 5, [0, 1]), ([3, 1], 5, [3, 1]), (1, 1, [0])],
)
@pytest.mark.parametrize("mode", ["federated", "multi_discriminator"])
def test_the_leaders_that_the_settings_allow(mode, leaders, workers, expected):
    assert leaders_of(config.build(plain(f"mode[{mode}].leaders", leaders, peers=workers))) == expected


# --- the modes ---------------------------------------------------------------------------------


def test_a_lone_worker_needs_its_vector():
    assert needs_of({"name": "local"}) == Needs(vector_bytes=4 * ALL)


def test_the_exchange_of_parameters():
    needs = needs_of({"name": "partial_exchange", "parts": 1, "slack": 0, "codec": "raw"}, bus={"replay_bytes": 0})
    # Four rounds have one entry each, and there are sixteen small messages; a joiner gets 64 norms and the weights.
    assert needs.outbox_bytes == (4 + 16) * 4 * ALL
    assert needs.step_bytes == needs.vector_bytes == 4 * ALL
    assert needs.state_bytes == STATE + 4 * 64 + 4 * ALL


def test_lossy_parameters_may_travel_whole_as_well():
    mode = {"name": "partial_exchange", "parts": 1, "slack": 0, "codec": "float16"}
    raw, half = (needs_of(mode | {"codec": codec}, bus={"replay_bytes": 0}) for codec in ("raw", "float16"))
    assert half.outbox_bytes == raw.outbox_bytes // 2 + 4 * ALL and half.step_bytes == raw.step_bytes // 2
    assert half.state_bytes == raw.state_bytes
    gradients = needs_of(mode | {"exchange": "gradients"}, bus={"replay_bytes": 0})
    assert gradients.outbox_bytes == raw.outbox_bytes // 2 and gradients.state_bytes == STATE + 4 * 64


def test_alternating_updates_have_one_round_a_step():
    mode = {"name": "partial_exchange", "parts": 2, "slack": 1, "codec": "raw"}
    for replay_bytes in (0, None):
        together, alternating = (
            needs_of(mode | {"updates": updates}, bus={"replay_bytes": replay_bytes}, run={"checkpoint_every": 7})
            for updates in ("simultaneous", "alternating")
        )
        # The stream needs seven rounds, and seven more for a replay; a part is half of both networks together.
        rounds = 7 if replay_bytes == 0 else 14
        assert alternating.outbox_bytes == (rounds + 16) * 4 * ALL // 2
        assert alternating.step_bytes == 4 * ALL // 2 and alternating == together


@pytest.mark.parametrize(
    ("workers", "leaders", "streams"), [(1, 1, 0), (2, None, 1), (5, None, 3), (5, 1, 1), (5, [4, 0], 2)]
)
def test_federated_rounds(workers, leaders, streams):
    needs = needs_of({"name": "federated", "leaders": leaders}, workers)
    assert needs.outbox_bytes == streams * (VECTORS + FIELDS) * 4 * ALL
    assert needs.state_bytes == 3 * 4 * ALL + 2 * 4 * G
    assert (needs.step_bytes, needs.vector_bytes) == (4 * ALL, 4 * ALL)


def test_federated_rounds_with_moments_in_half_precision():
    needs = needs_of({"name": "federated", "optimiser_state": "average", "codec": "bfloat16", "leaders": 1})
    assert needs.step_bytes == 2 * 3 * ALL and needs.outbox_bytes == (VECTORS + FIELDS) * 2 * 3 * ALL
    assert needs.state_bytes == 3 * 2 * 3 * ALL + 2 * 4 * G and needs.vector_bytes == 4 * ALL


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize(("with_moments", "discriminator"), [(True, 3 * D), (False, D)])
def test_multi_discriminator_rounds(workers, with_moments, discriminator):
    mode = {"name": "multi_discriminator", "batches": 2, "codec": "raw", "feedback_codec": "float16"}
    needs = needs_of(mode | {"swap_optimiser": with_moments}, workers, data={"name": "digits", "batch_size": 5})
    batch, feedback, swapped = 4 * 2 * 5 * 16, 2 * 5 * 16, 4 * discriminator
    assert needs.step_bytes == batch
    # There is one stream for all, and one for each of the others with the larger of a feedback and a discriminator.
    assert needs.outbox_bytes == (VECTORS + FIELDS) * (batch + (workers - 1) * max(feedback, swapped))
    # Four states are there: two kept ones, that of the newest sync point, and one on its way. Each has G with its
    # moments, and its average.
    assert needs.state_bytes == 4 * 4 * (3 * G + G)
    assert needs.vector_bytes == 4 * ALL


@pytest.mark.parametrize(
    ("batches", "workers", "expected"), [(3, 8, 3), ("log", 2, 1), ("log", 8, 2), ("log", 20, 2), ("log", 21, 3)]
)
def test_how_many_batches_a_round_has(batches, workers, expected):
    settings = config.build(plain("mode[multi_discriminator].batches", batches, peers=workers))
    assert batches_of(settings) == expected
