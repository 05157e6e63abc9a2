"""A Redis that loses everything while workers train: its worker begins a new incarnation, and the run ends well."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from safetensors.torch import load_file

from degan.runs.lines import read_lines
from tests.servers import free_port, redis_server
from tests.workers import Worker, experiment, wait_for

STEPS = 400
slow = pytest.mark.slow


class Nodes:
    """Real servers that keep nothing on disk, and can be killed and restarted at their ports."""

    def __init__(self, count: int):
        self.ports = [free_port() for _ in range(count)]
        self.stacks = {port: contextlib.ExitStack() for port in self.ports}
        self.urls = [self.stacks[port].enter_context(redis_server(port)) for port in self.ports]

    def lose(self, index: int) -> None:
        port = self.ports[index]
        self.stacks[port].close()
        self.stacks[port].enter_context(redis_server(port))

    def close(self) -> None:
        for stack in self.stacks.values():
            stack.close()


@pytest.fixture
def nodes():
    made: list[Nodes] = []

    def make(count: int) -> Nodes:
        made.append(Nodes(count))
        return made[-1]

    yield make
    for one in made:
        one.close()


def step_of(out: Path, number: int) -> int:
    path = out / f"w{number}" / "stats.jsonl"
    lines = read_lines(path) if path.exists() else []
    return lines[-1]["step"] if lines else 0


# Only one of several similar cases is part of the quick tests.
MODES = {
    "gradients": ("mode.exchange=gradients", "mode.parts=1", "mode.slack=0", "mode.codec=raw"),
    "parameters": ("mode.exchange=parameters", "mode.parts=4", "mode.slack=2"),
    "federated": ("mode.name=federated", "mode.local_steps=2", "mode.fraction=1.0"),
    "multi_discriminator": ("mode.name=multi_discriminator",),
}


@pytest.mark.parametrize(
    ("mode", "victim"),
    [
        ("parameters", 1),
        ("multi_discriminator", 0),
        *(pytest.param(mode, 1, marks=slow) for mode in MODES if mode != "parameters"),
        *(pytest.param(mode, 0, marks=slow) for mode in MODES if mode != "multi_discriminator"),
    ],
)
def test_a_node_that_loses_everything_is_joined_again(nodes, tmp_path, mode, victim):
    servers, out, gate = nodes(2), tmp_path / "out", tmp_path / "go on"
    name = f"lost-{mode}-{victim}"
    file = experiment(tmp_path, name, servers.urls)
    sets = ("bus.lease_s=8", f"run.steps={STEPS}", "run.checkpoint_every=100", *MODES[mode])
    words = ["--config", file, "--out", out, *(word for one in sets for word in ("--set", one))]
    # No worker may finish before the victim has joined again.
    incarnations = [Worker([n, *words], tmp_path / f"{n}.txt", {300: f"hold:{gate}"}) for n in (0, 1)]
    try:
        wait_for(lambda: min(step_of(out, 0), step_of(out, 1)) >= 20, "the run to get going")
        servers.lose(victim)
        incarnations[victim].until("has lost what this worker had published; the others went on, joining them again")
        incarnations[victim].until("joins at ")
        gate.touch()
        assert [incarnation.end() for incarnation in incarnations] == [0, 0], "".join(
            incarnation.text for incarnation in incarnations
        )
    finally:
        for incarnation in incarnations:
            incarnation.kill()
    ends = [load_file(out / f"w{n}" / "checkpoints" / f"{STEPS:06d}" / "model.safetensors") for n in (0, 1)]
    if mode in ("gradients", "parameters", "federated"):
        trained = [key for key in ends[0] if not key.startswith("ema.")]
        assert all((ends[0][key] == ends[1][key]).all() for key in trained)


@pytest.mark.parametrize("mode", ["gradients", pytest.param("federated", marks=slow)])
def test_one_redis_of_all_that_loses_everything_sends_them_back_to_their_checkpoint(nodes, tmp_path, mode):
    servers, out = nodes(1), tmp_path / "out"
    file = experiment(tmp_path, f"all-lost-{mode}", servers.urls * 2)
    sets = ("bus.lease_s=8", f"run.steps={STEPS}", "run.checkpoint_every=10", *MODES[mode])
    words = ["--config", file, "--out", out, *(word for one in sets for word in ("--set", one))]
    incarnations = [Worker([n, *words], tmp_path / f"{n}.txt") for n in (0, 1)]
    try:
        wait_for(lambda: min(step_of(out, 0), step_of(out, 1)) >= 25, "the run to get going")
        servers.lose(0)
        for incarnation in incarnations:
            incarnation.until("has lost what this worker had published")
        assert [incarnation.end() for incarnation in incarnations] == [0, 0], "".join(
            incarnation.text for incarnation in incarnations
        )
    finally:
        for incarnation in incarnations:
            incarnation.kill()
    for incarnation in incarnations:
        second = incarnation.text.split("joining them again", 1)[1]
        assert "begins at step " in second or "begins at round " in second or "joins at" in second
        assert "begins at step 0 " not in second
