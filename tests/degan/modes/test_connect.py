"""The door to the peers: its arguments in each mode, and the faults of `DEGAN_FAULTS` in front of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import config
from config import UsageError
from degan import modes
from degan.learners.gan_pair import GanPair
from degan.modes import connect as wire
from peers.bus.redis.tls import Access
from peers.chaos.faulty_bus import FaultyBus
from peers.errors import SetupError
from tests.fleets import memory_buses
from tests.leaves import plain

TINY = {"name": "mlp", "latent": 2, "hidden": 3, "image_size": 4}
PEERS = ["redis://a", "redis://b", "redis://c"]


@pytest.fixture
def opened(monkeypatch):
    """The arguments with which each bus was opened."""
    monkeypatch.delenv("DEGAN_FAULTS", raising=False)
    found: list[dict[str, Any]] = []

    def make(**named: Any) -> Any:
        found.append(named)
        return memory_buses(3)[named["worker"]]

    monkeypatch.setattr(wire, "RedisBus", make)
    return found


def settings_of(mode: str = "partial_exchange", **more: Any) -> config.Experiment:
    return config.build(plain("seed", **{"model": TINY, "peers": PEERS, "mode": {"name": mode}, **more}))


@pytest.mark.parametrize("mode", ["partial_exchange", "federated", "multi_discriminator"])
@pytest.mark.parametrize("may_take_over", [False, True])
def test_each_mode_opens_its_door_with_all_that_it_was_given(opened, mode, may_take_over):
    lines: list[str] = []
    settings = settings_of(mode, connect_timeout_s=5.0, bus={"lease_s": 3.0, "stall_timeout_s": 7.0})
    pair = GanPair(settings, (1, 4, 4), 2, torch.device("cpu"))
    peer_info = {"samples": 3, "histogram": [3]}
    made = modes.build(modes.Context(settings, 2, pair, {"fact": 1}, peer_info, lines.append, may_take_over))
    made.close()
    (found,) = opened
    found["log"]("heard")
    assert lines[-1] == "heard"
    incarnation = found.pop("incarnation")
    assert len(incarnation) == 12 and int(incarnation, 16) >= 0
    del found["log"]
    assert found == {
        "run": "small",
        "worker": 2,
        "urls": PEERS,
        "peers": (0, 1),
        # The worker's own node may be away for the connect timeout, where that is longer than a lease.
        "connect_timeout_s": 5.0,
        "patience_s": 5.0,
        "full_patience_s": 7.0,
        "may_take_over": may_take_over,
        "access": Access("worker-2"),
        "run_key": None,
    }


def test_every_incarnation_has_a_name_of_its_own(opened):
    names = [(wire.open_bus(settings_of(), 0, print), opened[-1]["incarnation"])[1] for _ in range(3)]
    assert len(set(names)) == 3 and opened[-1]["may_take_over"] is False


def test_a_number_of_peers_has_no_addresses(opened):
    with pytest.raises(UsageError, match="peers: a number is for the local launcher"):
        wire.open_bus(config.build(plain("seed")), 0, print)
    assert opened == []


@pytest.mark.parametrize("mode", ["partial_exchange", "federated"])
def test_scripted_faults_around_publishing_are_put_before_the_door(opened, monkeypatch, mode):
    settings = settings_of(mode)
    script = "w1@step2.before_publish:kill, w0@step3.after_publish:term, w1@step3:int, w1@step4.saving:torn"
    monkeypatch.setenv("DEGAN_FAULTS", script)
    bus = wire.open_bus(settings, 1, print)
    assert isinstance(bus, FaultyBus)
    assert [str(fault) for fault in bus._plan.faults] == ["w1@step2.before_publish:kill"]
    assert not isinstance(wire.open_bus(settings, 2, print), FaultyBus), "nothing is due there"
    monkeypatch.setenv("DEGAN_FAULTS", "w3@step1:kill")
    with pytest.raises(SetupError, match="a number from 0 to 2"):
        wire.open_bus(settings, 1, print)


def test_an_attack_is_for_its_worker_and_is_logged(monkeypatch):
    lines: list[str] = []
    monkeypatch.setenv("DEGAN_FAULTS", "w2:attack:scale, w0@step1:kill")
    assert wire.attack_on(SimpleNamespace(worker=1), lines.append) is None and lines == []
    assert wire.attack_on(SimpleNamespace(worker=2), lines.append) is not None
    assert lines == ["this worker is byzantine: scale, as DEGAN_FAULTS asks"]
    monkeypatch.delenv("DEGAN_FAULTS")
    assert wire.attack_on(SimpleNamespace(worker=2), lines.append) is None


def test_all_that_a_folder_has_is_shown(tmp_path):
    texts = {"ca.crt": "a", "worker.crt": "b", "worker.key": "c", "password": "word", "run.key": "cd" * 32}
    for name, text in texts.items():
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(text)
    settings = settings_of(security={"folder": str(tmp_path)}, peers=["rediss://a", "rediss://b", "redis://localhost"])
    where = {name: f"{tmp_path}/{name}" for name in texts}
    access = Access("worker-1", "word", where["ca.crt"], where["worker.crt"], where["worker.key"])
    assert wire.access_of(settings, 1) == (access, bytes.fromhex("cd" * 32))
    nothing = wire.access_of(settings_of(), 1)
    assert nothing == (Access("worker-1"), None)


def test_a_name_stands_for_its_mode(opened):
    for name in ("local", "partial_exchange", "federated", "multi_discriminator"):
        settings = settings_of(name)
        pair = GanPair(settings, (1, 4, 4), 0, torch.device("cpu"))
        made = modes.build(modes.Context(settings, 0, pair, {}, {"samples": 3, "histogram": [3]}, print))
        assert type(made).__name__.lower() == name.replace("_", "")
        made.close()
