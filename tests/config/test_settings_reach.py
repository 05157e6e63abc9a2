"""Every setting arrives: from an experiment in which each value differs from its default, to all its users.

For each mode, the table has a row for every setting: the place where it must arrive, and its value there. A setting
without a row fails the test. A setting that hides another (topk has no rounding) has an experiment of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from degan.modes.federated import stragglers
from tests.config.test_settings_ranges import TABLE, same
from tests.leaves import leaves, read
from tests.probes import (
    ALTERNATING,
    D,
    G,
    fingerprints,
    has_moments,
    is_called,
    kinds,
    local_steps,
    logged,
    purposes,
    put_as,
    reads_data,
    sections,
    seeds,
    sees,
    states,
    timeouts,
)
from tests.worlds import DEVICE, World

PEERS = [f"redis://127.0.0.1:{7001 + worker}" for worker in range(5)]
BASE = {
    "name": "unlike",
    "seed": 7,
    "peers": PEERS,
    "connect_timeout_s": 41.0,
    "device": "cpu",
    "data": {"name": "folder", "root": "there", "download": True, "batch_size": 5},
    "model": {"name": "mlp", "latent": 3, "hidden": 4, "image_size": 10},
    "bus": {
        "lease_s": 43.0,
        "replay_bytes": 4500,
        "unbounded_backlog": 9,
        "finish_timeout_s": 37.0,
        "stall_timeout_s": 39.0,
        "min_peers": 2,
        "norm_gate": 6.0,
        "offences": 4,
    },
    "security": {"folder": "secrets-{worker}"},
    "run": {
        "steps": 6,
        "log_every": 4,
        "evaluate_every": 5,
        "evaluate_samples": 70,
        "snapshot_every": 3,
        "checkpoint_every": 2,
        "keep_checkpoints": 2,
        "keep_best": False,
    },
}
LEADER_BASED = {
    "leaders": [3, 1],
    "leader_trains": False,
    "quorum": 0.75,
    "deadline": {"floor_s": 33.0, "ceiling_s": 77.0},
}
# The values that differ from BASE, by mode and experiment; the first experiment of each mode has as many as possible.
WORLDS: dict[tuple[str, str], dict[str, Any]] = {
    ("local", "all"): {"mode.updates": "alternating"},
    ("partial_exchange", "all"): {
        "mode.parts": 3,
        "mode.slack": 1,
        "mode.codec": "topk",
        "mode.topk_fraction": 0.25,
        "mode.exchange": "gradients",
        "mode.own": "delayed",
        "mode.reduce": "sum",
    },
    ("partial_exchange", "robust"): {
        "mode.codec": "int8",
        "mode.rounding": "stochastic",
        "mode.reduce": "trimmed_mean",
        "mode.byzantine": 2,
        "mode.updates": "alternating",
    },
    ("partial_exchange", "unbounded"): {"mode.slack": None, "run.checkpoint_every": 0, "bus.replay_bytes": None},
    ("federated", "all"): {
        **{f"mode.{key}": value for key, value in LEADER_BASED.items()},
        "mode.fraction": 0.6,
        "mode.sampling": "balanced",
        "mode.local_steps": 3,
        "mode.weighting": "kl",
        "mode.order": "discriminator_first",
        "mode.scheme": "linear",
        "mode.sign": "as_released",
        "mode.optimiser_state": "average",
        "mode.codec": "bfloat16",
        "mode.stragglers": {"fraction": 0.4, "local_steps": 2},
    },
    ("federated", "robust"): {
        "mode.cohort": 4,
        "mode.share_histograms": False,
        "mode.weighting": "uniform",
        "mode.local_steps": 1,
        "mode.reduce": "trimmed_mean",
        "mode.byzantine": 2,
        "mode.optimiser_state": "reset",
    },
    ("multi_discriminator", "all"): {
        **{f"mode.{key}": value for key, value in LEADER_BASED.items()},
        "mode.batches": 2,
        "mode.discriminator_steps": 3,
        "mode.swap_every": 0.25,
        "mode.swap_optimiser": False,
        "mode.state_every": 4,
        "mode.codec": "int8",
        "mode.feedback_codec": "bfloat16",
    },
    ("multi_discriminator", "robust"): {
        "mode.reduce": "trimmed_mean",
        "mode.byzantine": 2,
        "mode.state_every": 4,
        # No other period asks for a state before the end.
        "run.checkpoint_every": 0,
        "run.evaluate_every": 0,
        "run.snapshot_every": 0,
    },
}
# The settings that a mode does not use, with the reason.
UNUSED = {
    "local": {
        **dict.fromkeys(("connect_timeout_s", "security.folder"), "nobody is connected to"),
        **{path: "there is no bus" for path in TABLE if path.startswith("bus.")},
    },
    **{
        mode: dict.fromkeys(("bus.replay_bytes", "bus.unbounded_backlog"), "a stream keeps what three rounds take")
        for mode in ("federated", "multi_discriminator")
    },
}
SAME = object()


class Row(NamedTuple):
    """The place where a setting must arrive, and its value there; by default the setting's own value."""

    path: str
    found: Callable[[World], Any]
    expected: Any = SAME


PLAIN = (
    Row("seed", seeds, {7}),
    Row(
        "peers", lambda w: (w.calls.only("split", "workers"), set(w.calls.all("Shard", "worker"))), (5, {0, 1, 2, 3, 4})
    ),
    Row("device", lambda w: w.calls.only("pick_device", "name")),
    Row("device", sees("GanPair.device", "Evaluator.device"), DEVICE),
    Row("data.name", reads_data("name")),
    Row("data.root", reads_data("root")),
    Row("data.download", reads_data("download")),
    Row("data.batch_size", sees("Shard.batch_size")),
    Row("run.steps", lambda w: [max(steps) for steps in logged(w)], [6] * 5),
    Row("run.log_every", logged, [{4, 6}] * 5),
    Row("run.evaluate_every", lambda w: {line["step"] for line in w.lines("metrics.jsonl")}, {0, 5, 6}),
    Row(
        "run.evaluate_samples", lambda w: {m["metric"] for m in w.lines("metrics.jsonl")} >= {"fid70_classifier"}, True
    ),
    Row("run.snapshot_every", lambda w: w.steps("fakes-*.png"), {0, 3, 6}),
    Row(
        "run.checkpoint_every",
        lambda w: [w.steps(f"w{n}/checkpoints/*") for n in w.workers if w.lines(f"w{n}/stats.jsonl")],
        [{4, 6}] * 5,
    ),
    Row("run.keep_checkpoints", sees("Checkpoints.keep")),
    Row("run.keep_best", sees("Checkpoints.keeps_best")),
)
ONE_WORKER = {"peers": (5, {0}), "run.steps": [6], "run.log_every": [{4, 6}], "run.checkpoint_every": [{4, 6}]}
WIRE = (
    Row("seed", fingerprints, True),
    Row("name", sees("RedisBus.run")),
    Row("peers", sees("RedisBus.urls")),
    Row("peers", lambda w: sorted(w.calls.all("RedisBus", "peers"))[0], (0, 1, 2, 3)),
    Row("connect_timeout_s", sees("RedisBus.connect_timeout_s", "Rendezvous.timeout_s")),
    # Our own node may be away for a lease, or for the time of the first connection.
    Row("bus.lease_s", sees("Rendezvous.lease_s", "PeerReader.lease_s", "RedisBus.patience_s")),
    Row("bus.finish_timeout_s", lambda w: 37.0 in timeouts(w), True),
    Row("bus.stall_timeout_s", sees("RedisBus.full_patience_s")),
    Row("bus.norm_gate", sees("Screen.factor")),
    Row("bus.offences", sees("Screen.most_offences")),
    Row("security.folder", sees("read_secrets.folder")),
    Row(
        "security.folder",
        lambda w: {a.password for a in w.calls.all("RedisBus", "access")},
        {f"secret of {n}" for n in range(5)},
    ),
    Row("security.folder", sees("RedisBus.run_key"), bytes.fromhex("ab" * 32)),
)
EXCHANGED = (
    Row("peers", sees("Rendezvous.may_replay"), True),
    Row("bus.lease_s", sees("Giver.lease_s")),
    Row("bus.stall_timeout_s", sees("ClockGate.stall_timeout_s", "Options.stall_timeout_s")),
    Row("bus.stall_timeout_s", lambda w: 39.0 in w.calls.all("SenderThread.submit", "timeout_s"), True),
    Row("bus.min_peers", sees("ClockGate.min_peers")),
)
LEADERS = (
    # A restarted worker joins in these modes; in the exchange it may read again the entries that it missed.
    Row("peers", sees("Rendezvous.may_replay"), False),
    Row("bus.lease_s", sees("Rounds.lease_s")),
    Row("bus.stall_timeout_s", sees("Rounds.stall_timeout_s")),
    Row("bus.finish_timeout_s", sees("Rounds.finish_timeout_s")),
    Row("bus.min_peers", sees("Rounds.min_peers")),
)


def leader_rows(mode: str) -> tuple[Row, ...]:
    return (
        Row(f"mode[{mode}].leaders", sees("Leadership.leaders")),
        # A leader that does not train gathers, and has no answer of its own.
        Row(
            f"mode[{mode}].leader_trains",
            lambda w: {own is None for own in w.calls.all("Rounds.gather", "own")},
            {True},
        ),
        Row(f"mode[{mode}].deadline.floor_s", sees("Deadline.floor_s")),
        Row(f"mode[{mode}].deadline.ceiling_s", sees("Deadline.ceiling_s")),
    )


def robust(mode: str) -> tuple[Row, ...]:
    return (
        Row(f"mode[{mode}].reduce", sees("build.rule")),
        Row(f"mode[{mode}].byzantine", sees("build.byzantine")),
    )


ROWS: dict[tuple[str, str], tuple[Row, ...]] = {
    ("local", "all"): (
        *(row._replace(expected=ONE_WORKER.get(row.path, row.expected)) for row in PLAIN),
        Row("name", lambda w: w.folder.joinpath("runs/unlike/w0/stats.jsonl").exists(), True),
        Row("mode[local].updates", sections, ALTERNATING),
    ),
    ("partial_exchange", "all"): (
        *(*PLAIN, *WIRE, *EXCHANGED),
        Row(
            "mode[partial_exchange].parts",
            lambda w: {schedule.parts for schedule in w.calls.all("ExchangeLayout", "schedule")},
            {3},
        ),
        Row("mode[partial_exchange].slack", sees("GradientRule.lag"), 1),
        Row(
            "mode[partial_exchange].slack", lambda w: {clock.slack for clock in w.calls.all("ClockGate", "clock")}, {1}
        ),
        Row("mode[partial_exchange].slack", sees("ClockGate.lead"), 1 + 2 + 3),
        Row(
            "mode[partial_exchange].codec",
            lambda w: {codec.name for codec in w.calls.all("ExchangeLayout", "codec")},
            {"topk"},
        ),
        # The payload has a quarter of a hundred values, six bytes each.
        Row(
            "mode[partial_exchange].topk_fraction",
            lambda w: w.calls.all("ExchangeLayout", "codec")[0].encoded_bytes(100),
            150,
        ),
        Row("mode[partial_exchange].exchange", is_called("GradientRule", "ParameterRule"), [True, False]),
        Row("mode[partial_exchange].own", sees("GradientRule.is_published"), True),
        Row("mode[partial_exchange].own", sees("Screen.is_alike"), True),
        Row("mode[partial_exchange].reduce", sees("GradientRule.is_mean"), False),
        # The least number is 8 rounds, and a checkpoint needs 2 more, as far as they fit. A part sends 81 of its
        # values.
        Row("bus.replay_bytes", sees("Options.keep_rounds"), 4500 // (81 * 6)),
        *(
            Row(f"run.{name}_every", sees("Options.sync_periods"), (2, 5, 3))
            for name in ("checkpoint", "evaluate", "snapshot")
        ),
        # The sixteen small messages come on top.
        Row("bus.replay_bytes", sees("MemoryBus.configure.max_entries"), 9 + 16),
        Row("bus.replay_bytes", sees("MemoryBus.configure.least_entries"), 8 + 16),
    ),
    ("partial_exchange", "robust"): (
        *robust("partial_exchange"),
        Row("mode[partial_exchange].updates", sections, ALTERNATING),
        Row("mode[partial_exchange].rounding", sees("Int8.rounding")),
        Row(
            "mode[partial_exchange].reduce",
            lambda w: (
                {id(f) for f in w.calls.all("ParameterRule", "reduce")} <= {id(f) for f in w.calls.all("build", "->")}
            ),
            True,
        ),
        Row("bus.replay_bytes", sees("Options.keep_rounds", "ParameterRule.backlog"), 2 * 2 + 3 + 4 + 2),
    ),
    ("partial_exchange", "unbounded"): (
        Row("mode[partial_exchange].slack", sees("ParameterRule.lag")),
        Row("bus.unbounded_backlog", sees("ParameterRule.backlog")),
    ),
    ("federated", "all"): (
        *(*PLAIN, *WIRE, *LEADERS, *leader_rows("federated")),
        Row("seed", lambda w: {"stragglers"} <= purposes(w), True),
        Row("mode[federated].fraction", sees("cohort_size.fraction")),
        Row("mode[federated].sampling", is_called("balanced", "uniform"), [True, False]),
        Row("mode[federated].local_steps", local_steps, {3, 2}),
        Row("mode[federated].local_steps", sees("GanPair.average.steps")),
        Row("mode[federated].stragglers.local_steps", local_steps, {3, 2}),
        Row("mode[federated].stragglers.fraction", lambda w: len(stragglers(w.settings)), 2),
        Row("mode[federated].order", sections, ALTERNATING),
        Row("mode[federated].weighting", sees("weights.weighting")),
        Row("mode[federated].scheme", sees("weights.scheme")),
        Row("mode[federated].sign", sees("weights.sign")),
        Row("mode[federated].optimiser_state", has_moments, {True}),
        # A quorum of 0.6 of the four training workers is two.
        Row("mode[federated].quorum", sees("Rounds.gather.quorum"), 2),
        Row("mode[federated].codec", kinds("result"), (3 * (G + D), "bfloat16")),
        Row("mode[federated].codec", put_as("m"), {"bfloat16"}),
    ),
    ("federated", "robust"): (
        *robust("federated"),
        Row("seed", lambda w: {"cohorts"} <= purposes(w), True),
        Row("mode[federated].cohort", sees("uniform.size")),
        Row(
            "mode[federated].share_histograms",
            lambda w: {tuple(peer_info) for peer_info in w.calls.all("Rendezvous", "peer_info")},
            {("samples",)},
        ),
        Row("mode[federated].optimiser_state", is_called("GanPair.reset_optimisers"), [True]),
    ),
    ("multi_discriminator", "all"): (
        *(*PLAIN, *WIRE, *LEADERS, *leader_rows("multi_discriminator")),
        Row("seed", lambda w: {settings.seed for settings in w.calls.all("Swaps", "settings")}, {7}),
        Row("data.batch_size", sees("GanPair.make_fakes.size")),
        Row("mode[multi_discriminator].batches", sees("GanPair.make_fakes.batches")),
        Row("mode[multi_discriminator].batches", kinds("batch"), (2 * 5 * 100, "int8")),
        Row("mode[multi_discriminator].codec", kinds("batch"), (2 * 5 * 100, "int8")),
        Row("mode[multi_discriminator].feedback_codec", kinds("feedback"), (5 * 100, "bfloat16")),
        Row(
            "mode[multi_discriminator].discriminator_steps",
            lambda w: (
                len(w.calls.all("GanPair.discriminator_gradient", "fake"))
                / len(w.calls.all("GanPair.feedback", "fake"))
            ),
        ),
        # The period is a quarter of an epoch of 42 samples, five of them a round.
        Row("mode[multi_discriminator].swap_every", lambda w: set(w.calls.all("Swaps.begin", "round")), {2, 4, 6}),
        Row("mode[multi_discriminator].swap_optimiser", kinds("swap"), (D, "raw")),
        # The quorum is three of the four training workers.
        Row("mode[multi_discriminator].quorum", sees("Rounds.gather.quorum"), 3),
    ),
    ("multi_discriminator", "robust"): (
        *robust("multi_discriminator"),
        Row("mode[multi_discriminator].state_every", states, {4, 6}),
    ),
}


def experiment(mode: str, name: str) -> dict[str, Any]:
    """An experiment of the table, as plain values."""
    data = copy.deepcopy(BASE) | {"mode": {"name": mode}}
    for key, value in WORLDS[mode, name].items():
        block, _, last = key.rpartition(".")
        data[block][last] = value
    return data


@pytest.mark.parametrize(("mode", "name"), WORLDS, ids=map("-".join, WORLDS))
def test_every_setting_arrives(tmp_path, mode, name):
    world = World(experiment(mode, name), tmp_path)
    wrong = {}
    for path, found, expected in ROWS[mode, name]:
        value = read(world.settings, path)
        value = list(value) if isinstance(value, tuple) else value
        assert not same(value, TABLE[path].default), f"{path} has its default value"
        seen = found(world)
        if seen != (value if expected is SAME else expected):
            wrong[path] = seen
    assert wrong == {}


@pytest.mark.parametrize("mode", ["local", "partial_exchange", "federated", "multi_discriminator"])
def test_every_setting_of_a_mode_has_its_row(mode):
    """The settings of the networks and their training are the same for all modes; see `test_settings_pair`."""
    mine = {path for path in leaves() if path.startswith((f"mode[{mode}]", "bus.", "run.", "data.", "security."))}
    mine |= {path for path in leaves() if "." not in path}
    mine = {path for path in mine if not path.startswith(("data.split", "loss"))}
    rows = {row.path for (of, _), some in ROWS.items() if of == mode for row in some}
    assert rows | UNUSED.get(mode, {}).keys() == mine
    assert not rows & UNUSED.get(mode, {}).keys()
