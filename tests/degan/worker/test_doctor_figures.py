"""The limits of the doctor for a host and its nodes: the figures that it passes on, and the sums that it shows."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import config
from degan.artifacts.checkpoints import Checkpoint, Checkpoints
from degan.learners.gan_pair import GanPair
from degan.modes.needs import Needs
from degan.worker import doctor
from degan.worker.setup import Setup
from peers.doctor.findings import FAIL, OK, WARN, Finding
from peers.doctor.node import Visit
from tests.leaves import plain

TINY = {"name": "mlp", "latent": 2, "hidden": 3, "image_size": 4}
NEEDS = Needs(outbox_bytes=1000, state_bytes=200, step_bytes=30, vector_bytes=4 * 2**20)
MIB = 2**20
HERE, AWAY = "redis://127.0.0.1:7001", "redis://192.0.2.1:7002"


@pytest.fixture
def visits(monkeypatch):
    """The visits to the nodes."""
    found: list[Visit] = []
    monkeypatch.setattr(doctor, "look", lambda visit: found.append(visit) or [])
    monkeypatch.setattr(doctor, "is_here", lambda url: "127.0.0.1" in url or url.startswith("unix"))
    return found


def checked(tmp_path, **more: Any) -> tuple[list[doctor.Section], dict[str, Finding]]:
    settings = config.build(plain("seed", model=TINY, **more))
    file = tmp_path / "checked.yaml"
    file.write_text(config.dump(settings))
    sections = doctor.check(settings, str(file), tmp_path / "out", Finding("redis", OK, "one of its own"))
    return sections, {finding.check: finding for finding in sections[0].findings}


def test_a_node_is_held_against_what_all_its_workers_need(tmp_path, visits):
    secrets = tmp_path / "secrets-1"
    secrets.mkdir()
    for name, text in (("password", "of worker 1"), ("run.key", "ab" * 32)):
        (secrets / name).touch(mode=0o600)
        (secrets / name).write_text(text)
    more = {"bus": {"lease_s": 12.0}, "security": {"folder": f"{tmp_path}/secrets-{{worker}}"}}
    sections, _ = checked(tmp_path, name="figures", peers=[AWAY, HERE, HERE, AWAY, HERE], **more)
    by_node = {visit.workers: visit for visit in visits}
    assert by_node.keys() == {(0, 3), (1, 2, 4)}
    alone, _ = checked(tmp_path, peers=[HERE] * 5)
    one = visits[-1]
    for workers, visit in by_node.items():
        # Each of its workers needs as much as the others, in the node's memory and on its wire.
        assert (visit.needed_bytes * 5, visit.step_bytes * 5) == (
            *(one.needed_bytes * len(workers), one.step_bytes * len(workers)),
        )
        assert (visit.run, visit.lease_s, visit.beat_s) == ("figures", 12.0, 3.0)
        assert (visit.url, visit.is_own) == ((HERE, True) if 1 in workers else (AWAY, False))
        # The visit is that of the first worker of this host.
        assert visit.access.user == "worker-1" and visit.access.password == "of worker 1"
        assert visit.run_key == bytes.fromhex("ab" * 32)
    assert [(section.workers, section.is_own) for section in sections] == [
        ((), True),
        ((0, 3), False),
        ((1, 2, 4), True),
    ]
    assert alone[1].workers == (0, 1, 2, 3, 4)


def test_the_needs_of_a_worker_are_those_of_its_mode(tmp_path, visits, monkeypatch):
    monkeypatch.setattr("degan.modes.needs", lambda settings, pair: NEEDS)
    checked(tmp_path, peers=[HERE, HERE, AWAY])
    assert sorted((v.needed_bytes, v.step_bytes) for v in visits) == [(1200, 30), (2400, 60)]


@pytest.mark.parametrize(
    ("peers", "here", "note"),
    [(3, 3, "one of its own"), ([HERE, AWAY, HERE], 2, ""), ([AWAY, AWAY], 0, "it only looks on")],
)
def test_this_host_is_held_against_its_own_workers(tmp_path, visits, monkeypatch, peers, here, note):
    monkeypatch.setattr("degan.modes.needs", lambda settings, pair: NEEDS)
    _, found = checked(tmp_path, peers=peers)
    assert f"the vectors of {here} workers" in found["memory"].seen
    named = [finding for finding in found.values() if finding.check in ("redis", "this host")]
    assert [finding.seen for finding in named if note in finding.seen] == [f.seen for f in named]
    assert len(named) == bool(note)


def test_two_names_of_one_node_are_one_and_its_socket_is_taken():
    near = f"{HERE}?socket=/tmp/x.sock"
    settings = SimpleNamespace(peers=[HERE, AWAY, near])
    assert doctor._nodes(settings) == {near: (0, 2), AWAY: (1,)}
    assert doctor._nodes(SimpleNamespace(peers=[near, AWAY, HERE])) == {near: (0, 2), AWAY: (1,)}
    assert doctor._nodes(SimpleNamespace(peers=3)) == {}


# --- this host ---------------------------------------------------------------------------------


def test_the_memory_of_ten_vectors_and_of_redis_for_each_worker(monkeypatch):
    lines = "MemTotal: 9 kB\nMemAvailable: {} kB\n"

    def found(free_kib: int) -> Finding:
        monkeypatch.setattr(doctor.Path, "read_text", lambda path, encoding: lines.format(free_kib))
        return doctor._memory(3, Needs(outbox_bytes=MIB, state_bytes=MIB, vector_bytes=MIB))

    # Three workers, each with ten vectors and two MiB of its Redis.
    wanted = 3 * (10 + 2) * 1024
    assert found(wanted).state == OK and found(wanted - 1).state == WARN
    assert found(wanted).seen == "36.0 MiB free; the vectors of 3 workers and their Redis take up to 36.0 MiB"

    def nothing(path: Any, encoding: str) -> str:
        raise OSError("none")

    monkeypatch.setattr(doctor.Path, "read_text", nothing)
    assert doctor._memory(3, NEEDS).state == WARN


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        # The disk holds the newest, the best of the older ones, and one that is being written.
        ({"keep_checkpoints": 2, "checkpoint_every": 100}, 4 * (2 + 1 + 1)),
        ({"keep_checkpoints": 2, "checkpoint_every": 100, "keep_best": False}, 4 * (2 + 1)),
        ({"keep_checkpoints": 1, "checkpoint_every": 100, "evaluate_every": 0}, 4 * (1 + 1)),
        # The only checkpoint is that of the end.
        ({"keep_checkpoints": 2, "checkpoint_every": 0}, 4),
    ],
)
def test_the_disk_for_the_checkpoints_that_are_kept_and_one_more(tmp_path, monkeypatch, run, wanted):
    settings = config.build(plain("seed", run=run))

    def found(free_bytes: int) -> Finding:
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free_bytes))
        return doctor._disk(settings, tmp_path / "not" / "yet", 4, MIB)

    assert found(wanted * MIB).state == OK
    assert found(wanted * MIB).seen.endswith(
        f"in {tmp_path}; the checkpoints that are kept take about {wanted:.1f} MiB"
    )
    assert found(wanted * MIB - 1).state == FAIL


def test_a_checkpoint_takes_the_stated_bytes(tmp_path):
    settings = config.build(plain("seed", model={"name": "dcgan", "latent": 8, "width": 8}))
    pair = GanPair(settings, (1, 32, 32), 0, torch.device("cpu"))
    shard = SimpleNamespace(state=dict)
    made = Setup(settings, 0, shard, pair, None, (), [], {}, None)
    # The state of the mode is a window and the values that a codec has dropped.
    kept = {name: torch.zeros(pair.size).numpy() for name in ("window", "kept")}
    checkpoint: Checkpoint = made.checkpoint(3, (kept, {}))
    folder = Checkpoints(tmp_path, 1).save(checkpoint)
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert doctor._checkpoint_bytes(pair) == pytest.approx(written, rel=0.05)


@pytest.mark.parametrize(
    ("name", "side", "shape"),
    [
        ("mnist", 28, (1, 28, 28)),
        ("cifar10", 32, (3, 32, 32)),
        ("folder", 32, (3, 32, 32)),
        ("gaussian-ring", 28, (2,)),
    ],
)
def test_where_the_data_is_not_here_its_shape_is_guessed(name, side, shape):
    settings = config.build(plain("seed", data={"name": name}, model=TINY | {"image_size": side}))
    assert doctor._learner(settings, None).sample_shape == shape
    seen = SimpleNamespace(sample_shape=(1, side, side), classes=["a", "b"])
    assert doctor._learner(settings, seen).sample_shape == (1, side, side)


# --- the printed table -------------------------------------------------------------------------


def test_the_table_and_its_counts():
    settings = config.build(plain("seed"))
    findings = [
        Finding("data", OK, "here"),
        Finding("disk", FAIL, "full", "redis-cli something"),
        Finding("x", WARN, "odd"),
    ]
    sections = [doctor.Section("this host", (), True, findings), doctor.Section("n:1", (0, 2), True, findings[:1])]
    lines = doctor.as_text(settings, sections).splitlines()
    assert lines[0].startswith("this host, ") and "Redis at n:1 (workers 0, 2, this host's)" in lines
    assert lines[-1] == "1 failed, 1 warnings, 2 ok" and any(re.match("redis-cli: on the node", line) for line in lines)
    other = doctor.as_text(settings, [doctor.Section("n:1", (3,), False, findings[:1])]).splitlines()
    assert other[0] == "Redis at n:1 (worker 3)" and not any("redis-cli" in line for line in other)
