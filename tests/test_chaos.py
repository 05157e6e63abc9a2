"""The quick scenarios of `make chaos`, and the schedule of a seed."""

from __future__ import annotations

import pytest

from peers.chaos.faults import Faults
from tests.chaos import soak
from tests.chaos.__main__ import main, schedule
from tests.chaos.table import scenarios
from tests.chaos.trial import attempt

SEED = 7


@pytest.mark.parametrize(
    "scenario", [one for one in scenarios() if one.is_quick], ids=lambda one: f"{one.number} {one.name}"
)
def test_a_fault_is_survived(scenario, tmp_path):
    row = attempt(scenario, SEED, {})
    assert row.ok, f"{row.injected}: {row.cause}; {row.seen}"


def test_the_same_seed_is_the_same_schedule(capsys):
    first, again, other = (schedule(seed) for seed in (7, 7, 8))
    assert first == again and first != other
    assert main(["--schedule", "--seed", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == first


def test_every_fault_of_the_table_has_a_scenario():
    assert {one.number for one in scenarios()} == set(range(1, 18))


@pytest.mark.parametrize("one", scenarios(), ids=lambda one: f"{one.number} {one.name} {one.mode}")
def test_the_faults_of_a_scenario_can_be_read(one):
    for seed in range(5):
        assert str(Faults.parse(one.script(seed), 4)) == one.script(seed)


def test_the_soak_does_nothing_that_only_a_worker_can_do_to_itself():
    faults = Faults.parse(soak.script(7, workers=4, minutes=60), 4).faults
    assert [fault.step for fault in faults] == list(range(1, 61))
    assert {fault.action for fault in faults if not fault.is_redis} <= {"kill", "term", "stop"}
    assert not any(fault.hook for fault in faults)


def test_a_figure_is_flat_by_its_thirds():
    rising = [(float(minute), 10.0 + minute) for minute in range(30)]
    assert soak.flatness(rising) == (24.5, 34.5)
    assert soak.flatness([(0.0, 5.0)] * 9) == (5.0, 5.0)
