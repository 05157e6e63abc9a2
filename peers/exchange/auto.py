"""`parts: auto`: the fewest parts with which publishing and reading fit into the time of a step.

Each worker measures how long its steps compute and how long its wire is busy. It proposes the number of
parts that would suit it, and writes its proposal into the header of every part that it sends. Every so many steps,
where a cycle of parts is complete so that no part waits longer for its turn, all workers look at the
proposals of one and the same past round, which the staleness bound has made them all have, and the largest
proposal wins: the slowest wire decides, all workers decide alike, and no worker had to ask.

A wire that is hardly used looks faster than it is: a shaper lets a burst pass before a queue builds up. And more
bytes also cost processor time that a busy machine does not have. So parts become fewer by one halving at a time, and
not where the training thread has to queue for a processor. If steps then take longer than before, the halving is
taken back. A number that has turned out too small is not tried again soon; each time the wait is twice as long.

What always holds: with equal members two workers change to the same number after the same step. The header
of a part names its slice. So the others still understand a worker that decided otherwise (because it
dropped a member in that very round), until the next decision makes them alike again.

Without a bound (slack None) there is no such common round; each worker looks at the newest proposals it has.
"""

from __future__ import annotations

import statistics
import threading
from typing import Any

from peers.vectors.partition import Schedule

CHOICES = (1, 2, 4, 8, 16, 32, 64)
# Neither so few that a slow wire blocks the first steps for minutes, nor so many that the first rounds teach nothing.
FIRST = 8
EARLY_STEPS, EVERY_STEPS = 16, 50
# How much of a step the wire may be busy, and how much room it must have left before parts become fewer.
SHARE, ROOM = 0.8, 1.5
# How much longer a step may take with fewer parts: more bytes cost more than the wire's time.
SLOWER = 1.05
# How much of its own work a training thread may spend queueing before all processors count as taken.
CROWDED = 0.1
# For how many steps a number that was too small is not tried again, at first.
REST_STEPS = 500


class AutoParts:
    """Measures, proposes and decides; knows no wire. `note` may be called from any thread.

    Args:
        slack: the staleness bound in steps, None for none.
    """

    def __init__(self, slack: int | None):
        self._slack = slack
        self._lock = threading.Lock()
        # Round -> worker -> proposal.
        self._proposals: dict[int, dict[int, int]] = {}
        self._proposal = FIRST
        # The values of the last `measure`, in seconds: our own work, queueing, reading, publishing, and the time.
        self._before = (0.0, 0.0, 0.0, 0.0, 0.0)
        # Since the last decision. Step by step: the seconds of our own work, and of the whole step. In sum: the wire's
        # busy time, and the part of our own work that was spent queueing.
        self._computed_s: list[float] = []
        self._took_s: list[float] = []
        self._busy_s = self._queued_s = 0.0
        # The seconds of a step before parts became fewer, until that change has been checked.
        self._took_before_s: float | None = None
        self._steps = 0
        # Per number of parts that was too small: until which step it is not tried again, and for how many steps.
        self._resting: dict[int, tuple[int, int]] = {}

    def measure(
        self, schedule: Schedule, computed_s: float, queued_s: float, read_s: float, publish_s: float, now_s: float
    ) -> None:
        """Measure a step that has ended, and make the proposal.

        Args:
            computed_s: seconds of our own work since the start.
            queued_s: seconds since the start in which our thread was ready and had no processor.
            read_s, publish_s: seconds since the start in which that way of the wire was busy.
            now_s: seconds, monotonic.
        """
        now = (computed_s, queued_s, read_s, publish_s, now_s)
        computed_s, queued_s, *busy_s, took_s = (
            after - before for after, before in zip(now, self._before, strict=True)
        )
        self._before = now
        self._steps += 1
        self._computed_s.append(computed_s)
        self._took_s.append(took_s)
        # Both ways are busy at the same time, so the busier one counts.
        self._busy_s += max(busy_s)
        # Queueing before the first step was no part of our own work.
        self._queued_s += queued_s if self._steps > 1 else 0.0
        # Medians, because evaluating between two steps is not work on a step.
        share = self._busy_s / len(self._took_s) / max(SHARE * statistics.median(self._computed_s), 1e-9)
        fewer, is_crowded = max(1, schedule.parts // 2), self._queued_s > CROWDED * sum(self._computed_s)
        if share > 1:
            self._proposal = _smallest(schedule.parts * share)
        elif self._is_slower():
            self._proposal = _smallest(2 * schedule.parts)
        elif is_crowded:
            self._proposal = schedule.parts
        elif share * ROOM * schedule.parts <= fewer and self._resting.get(fewer, (0, 0))[0] <= self._steps:
            self._proposal = fewer
        else:
            self._proposal = schedule.parts

    def _is_slower(self) -> bool:
        """Whether steps take longer than before parts became fewer, however busy the wire is."""
        if self._took_before_s is None or len(self._took_s) < EARLY_STEPS:
            return False
        return statistics.median(self._took_s) > SLOWER * self._took_before_s

    @property
    def proposal(self) -> int:
        """The number of parts that would suit us, by the measurements so far."""
        return self._proposal

    def note(self, worker: int, round: int, proposal: float) -> None:
        """Note a worker's proposal from the header of a round; a number that is no choice counts as the next larger."""
        with self._lock:
            self._proposals.setdefault(round, {})[worker] = _smallest(proposal)

    def decide(self, schedule: Schedule, step: int) -> Schedule:
        """After a step: the schedule from the next step on; the same one if nothing changes."""
        if not self._is_due(schedule, step - schedule.since):
            return schedule
        with self._lock:
            if self._slack is None:
                newest = {
                    worker: proposal for _, said in sorted(self._proposals.items()) for worker, proposal in said.items()
                }
                self._proposals = {0: newest}
            else:
                at = step - self._slack
                newest = self._proposals.get(at, {})
                self._proposals = {round: said for round, said in self._proposals.items() if round > at}
        parts = max(newest.values(), default=schedule.parts)
        if parts > schedule.parts:
            rest = 2 * self._resting.get(schedule.parts, (0, REST_STEPS // 2))[1]
            self._resting[schedule.parts] = (self._steps + rest, rest)
        self._took_before_s = statistics.median(self._took_s) if parts < schedule.parts and self._took_s else None
        self._computed_s, self._took_s, self._busy_s, self._queued_s = [], [], 0.0, 0.0
        return schedule if parts == schedule.parts else schedule.changed(parts, step)

    def _is_due(self, schedule: Schedule, steps: int) -> bool:
        # Only where a cycle of parts ends; and the proposals of the round must be of this schedule.
        early, every = (
            -(-max(least, (self._slack or 0) + 1) // schedule.parts) * schedule.parts
            for least in (EARLY_STEPS, EVERY_STEPS)
        )
        return steps % every == 0 or not schedule.since and steps == early

    def to_plain(self, schedule: Schedule) -> dict[str, Any]:
        """The schedule in force, and the proposals of later decisions, for a checkpoint or a joiner."""
        with self._lock:
            proposals = [
                [round, worker, proposal]
                for round, said in self._proposals.items()
                for worker, proposal in said.items()
            ]
        return {"parts": schedule.parts, "since": schedule.since, "proposals": proposals}

    def load_plain(self, plain: dict[str, Any], schedule: Schedule) -> Schedule:
        """The inverse of `to_plain`.

        Raises:
            KeyError, ValueError, TypeError: the map is none that `to_plain` makes.
        """
        for round, worker, proposal in plain["proposals"]:
            self.note(int(worker), int(round), float(proposal))
        if plain["parts"] not in CHOICES:
            raise ValueError(f"{plain['parts']} parts are no choice")
        return schedule.changed(plain["parts"], int(plain["since"]))


def _smallest(needed: float) -> int:
    return next((choice for choice in CHOICES if choice >= needed), CHOICES[-1])
