"""All scenarios, in the order of the table of faults."""

from __future__ import annotations

from tests.chaos import byzantine_faults, data_faults, network_faults, redis_faults, worker_faults
from tests.chaos.trial import Scenario

KINDS = (worker_faults, redis_faults, network_faults, data_faults, byzantine_faults)


def scenarios() -> list[Scenario]:
    """Every scenario; the scenarios of a fault in the order of its file."""
    return sorted((one for kind in KINDS for one in kind.scenarios()), key=lambda one: one.number)
