"""The number of parts chosen by the workers: the effect of a wire and a machine, with no wire and no machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from peers.exchange.auto import CHOICES, EARLY_STEPS, EVERY_STEPS, FIRST, REST_STEPS, AutoParts
from peers.exchange.queued import queued_s
from peers.vectors.partition import Schedule
from tests.fleets import in_threads

SIZE = 1000


class Workers:
    """Workers that all measure and decide.

    `full_s` is the time that each wire needs for a whole vector. `queued` is the share of each step's work for which
    the last worker waits for a processor.
    """

    def __init__(self, full_s, slack=2, compute_s=1.0, cost_s=0.0, queued=0.0):
        self.full_s, self.slack, self.compute_s, self.cost_s = full_s, slack, compute_s, cost_s
        self.autos = [AutoParts(slack) for _ in full_s]
        self.schedules = [Schedule(SIZE, FIRST) for _ in full_s]
        self.spent = [[0.0, 0.0, 0.0, 0.0] for _ in full_s]
        self.queued = queued
        self.at = 0

    def run(self, steps):
        """Returns the numbers of parts that were in force, without repetitions."""
        seen = [self.schedules[0].parts]
        for _ in range(steps):
            self.at += 1
            for sender, auto in enumerate(self.autos):
                for listener in self.autos:
                    listener.note(sender, self.at, auto.proposal)
            for worker, auto in enumerate(self.autos):
                spent, parts = self.spent[worker], self.schedules[worker].parts
                spent[0] += self.compute_s
                spent[1] += self.queued * self.compute_s if auto is self.autos[-1] else 0.0
                spent[2] += self.full_s[worker] / parts
                spent[3] += max(self.compute_s, self.full_s[worker] / parts) + self.cost_s / parts
                auto.measure(self.schedules[worker], spent[0], spent[1], spent[2], 0.0, spent[3])
            self.schedules = [
                auto.decide(schedule, self.at) for auto, schedule in zip(self.autos, self.schedules, strict=True)
            ]
            assert len({(s.parts, s.since) for s in self.schedules}) == 1, "all decide alike"
            if self.schedules[0].parts != seen[-1]:
                seen.append(self.schedules[0].parts)
        return seen


@pytest.mark.parametrize(("full_s", "parts"), [(0.1, 1), (1.5, 4), (6.0, 8), (20.0, 32), (1000.0, 64)])
def test_the_slowest_wire_decides_for_all(full_s, parts):
    workers = Workers([0.01, full_s, 0.01])
    assert workers.run(1500)[-1] == parts
    # The least number for which the wire's time fits into a step, or a slightly larger one for some room.
    assert parts == CHOICES[-1] or full_s / parts <= 0.8


def test_a_wire_that_becomes_slow_is_noticed_at_the_next_decision():
    workers = Workers([0.1, 0.1])
    workers.run(500)
    workers.full_s = [30.0, 0.1]
    assert workers.run(2 * EVERY_STEPS)[-1] >= 32


def test_fewer_parts_that_slow_the_steps_are_taken_back_and_left_alone():
    workers = Workers([0.01, 0.01], cost_s=2.0)
    seen = workers.run(REST_STEPS // 2)
    assert seen[:3] == [8, 4, 8]
    assert seen.count(4) == 1, "not tried again so soon"


def test_parts_become_no_fewer_while_a_worker_queues_for_a_processor():
    workers = Workers([0.01, 0.01, 0.01], queued=0.5)
    assert workers.run(300) == [FIRST], "each byte would take time from training, however fast the wire is"
    workers.full_s[0] = 12.0
    assert workers.run(EVERY_STEPS + FIRST)[-1] == 16, "more parts where the wire asks for them"
    workers.full_s[0], workers.queued = 0.01, 0.02
    assert workers.run(2 * REST_STEPS)[-1] == 1, "the processors are free again"


def test_the_queueing_of_the_start_is_not_held_against_the_steps():
    workers = Workers([0.01, 0.01])
    for spent in workers.spent:
        spent[1] = 1000.0
    assert workers.run(EARLY_STEPS + 1) == [8, 4]


def test_decisions_are_made_where_a_cycle_ends():
    auto, schedule = AutoParts(2), Schedule(SIZE, FIRST)
    changes = []
    for step in range(1, 400):
        auto.note(1, step, 3.0)
        auto.note(0, step, 64.0 if step < 200 else 1.0)
        after = auto.decide(schedule, step)
        if after is not schedule:
            assert (step - schedule.since) % schedule.parts == 0
            changes.append((step, after.parts))
        schedule = after
    assert changes[0] == (-(-EARLY_STEPS // FIRST) * FIRST, 64)
    assert changes[-1][1] == 4, "a proposal that is no choice counts as the next one above"


def test_the_saved_values_go_on():
    auto, schedule = AutoParts(2), Schedule(SIZE, 16, since=32)
    auto.note(1, 40, 8)
    other = AutoParts(2)
    plain = auto.to_plain(schedule)
    after = other.load_plain(plain, Schedule(SIZE, FIRST))
    assert (after.parts, after.since) == (16, 32)
    assert other.to_plain(after) == plain
    with pytest.raises(ValueError, match="no choice"):
        other.load_plain(plain | {"parts": 7}, schedule)


def test_a_thread_that_shares_its_processor_has_queued_for_it():
    try:
        first = min(os.sched_getaffinity(0))
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            if file.read().split()[:2] == ["0", "0"]:
                pytest.skip("nobody counts here")
    except (AttributeError, OSError):
        pytest.skip("nobody counts here")
    busy = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", busy, str(first)])
    found = []

    def work():
        os.sched_setaffinity(0, {first})
        before, until = queued_s(), time.monotonic() + 60
        while not found and time.monotonic() < until:
            if queued_s() > before + 0.2:
                found.append(True)

    try:
        in_threads([work])
    finally:
        other.kill()
        other.wait()
    assert found
