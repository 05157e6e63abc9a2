"""A scenario, one trial of it, and the row of its result."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.fleet import Fleet
from tests.proxy import Network

# The time beyond a lease: a reader looks at the leases every quarter of a lease, and two cores have more to do.
MARGIN_S = 2.5
# With several parts and slack replicas are alike but for the steps of Adam that have not been averaged yet, each of
# about the learning rate of 2e-4. Undisturbed they differ by 2e-3 to 4e-3; apart for 100 steps, by ten times as much.
NEAR = 1e-2


@dataclass(frozen=True)
class Scenario:
    """One fault.

    Attributes:
        number: of the fault in the table of docs/reliability.md, 1 to 17.
        name: the fault, for people.
        mode: the mode and its settings.
        expected: the expected result.
        run: the function that runs the scenario; calls `expect` of its trial.
        faults: makes the script from a generator of its own; empty where the fault is no item of a script.
        is_quick: whether the scenario takes seconds and is part of the tests.
    """

    number: int
    name: str
    mode: str
    expected: str
    run: Callable[[Trial], None]
    faults: Callable[[random.Random], str] = lambda draw: ""
    is_quick: bool = False

    def script(self, seed: int) -> str:
        """The script under a seed; one seed gives one text."""
        return self.faults(random.Random(f"chaos {seed} {self.number} {self.name} {self.mode}"))


@dataclass
class Trial:
    """The means of a scenario, and its observations.

    Attributes:
        script: the faults to inject.
        seed: of all other random numbers.
        folder: for all files.
        known: undisturbed runs, shared by the scenarios of one sitting.
    """

    script: str
    seed: int
    folder: Path
    known: dict[Any, Any] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    pause_s: float | None = None
    count: int = 0

    def expect(self, is_so: object, what: str) -> None:
        """Note a condition that should hold; the trial goes on either way, so that a row has all failures."""
        if not is_so:
            self.failed.append(what)

    def see(self, what: str) -> None:
        self.seen.append(what)

    def fleet(self, workers: int = 3, script: str | None = None, **more: Any) -> Fleet:
        self.count += 1
        return Fleet(self.folder / str(self.count), workers, self.script if script is None else script, **more)

    @contextlib.contextmanager
    def network(self) -> Iterator[Network]:
        with Network(self.seed) as network:
            yield network

    # --- checks of many scenarios -------------------------------------------------------------

    def check_pause(self, fleet: Fleet, survivors: list[int], since: float, limit_s: float) -> None:
        """None of the survivors stood still for longer than the limit."""
        pauses = {number: fleet.worst_pause_s(number, since) for number in survivors}
        worst = max(pauses, key=pauses.__getitem__)
        self.pause_s = max(self.pause_s or 0.0, pauses[worst])
        self.expect(
            pauses[worst] <= limit_s,
            f"worker {worst} stood still for {pauses[worst]:.1f} s, at most {limit_s:.1f} expected",
        )

    def check_end(self, fleet: Fleet, is_alike: bool = False) -> None:
        """All stop together, with exit code 0, with nothing lost or doubled."""
        codes = fleet.stop()
        self.expect(not any(codes), f"exit codes {codes}: {self.last_words(fleet, codes)}")
        self.check_losses(fleet)
        if is_alike and not any(codes):
            self.check_alike(fleet)

    def check_losses(self, fleet: Fleet) -> None:
        """By the counters no message was lost unseen or applied twice."""
        for number in range(fleet.workers):
            bad = {
                reason: count for reason, count in fleet.dropped(number).items() if reason in ("overrun", "checksum")
            }
            self.expect(not bad, f"worker {number} dropped {bad}")

    def check_alike(self, fleet: Fleet, may_differ: bool = False) -> None:
        """All hold the same weights at the newest step that all have saved, as far as the mode promises this.

        Args:
            may_differ: a round was divided by a cut, so even synchronous replicas are only nearly alike.
        """
        steps = set.intersection(*(set(fleet.checkpoints(number)) for number in range(fleet.workers)))
        self.expect(steps, "no checkpoint of a step that all have")
        if not steps:
            return
        first, *others = (fleet.weights(number, max(steps)) for number in range(fleet.workers))
        # Of several discriminators each is its worker's own.
        prefix = "generator." if fleet.mode == "multi_discriminator" else ""
        names = [name for name in first if name.startswith(prefix)]
        apart = max(float(np.abs(first[name] - other[name]).max()) for other in others for name in names)
        is_exact = fleet.is_exact and not may_differ
        within = 0.0 if is_exact else NEAR
        self.expect(apart <= within, f"weights differ by {apart:.1e} at step {max(steps)}")
        self.see(f"weights alike at step {max(steps)}" + ("" if is_exact else f" but for {apart:.0e}"))

    @staticmethod
    def last_words(fleet: Fleet, codes: list[int]) -> str:
        """The last line of the first worker that did not end with 0, if there is one."""
        if not any(codes):
            return ""
        number = next(number for number, code in enumerate(codes) if code)
        lines = fleet.incarnation(number).text.strip().splitlines() or ["logged nothing"]
        return f"worker {number}: {lines[-1][-300:]}"


@dataclass(frozen=True)
class Row:
    """A line of the table, and of chaos.json."""

    fault: int
    name: str
    mode: str
    injected: str
    expected: str
    seen: str
    worst_pause_s: float | None
    ok: bool
    cause: str
    took_s: float


def attempt(scenario: Scenario, seed: int, known: dict[Any, Any]) -> Row:
    """Run one scenario; an exception of it is the cause of its failure."""
    began, script = time.monotonic(), scenario.script(seed)
    with tempfile.TemporaryDirectory(prefix="degan-chaos-", ignore_cleanup_errors=True) as folder:
        trial = Trial(script, seed, Path(folder), known)
        try:
            scenario.run(trial)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            trial.failed.append(" / ".join([lines[0], *lines[-2:]] if len(lines) > 3 else lines)[:500])
    return Row(
        scenario.number,
        scenario.name,
        scenario.mode,
        script,
        scenario.expected,
        "; ".join(trial.seen),
        None if trial.pause_s is None else round(trial.pause_s, 2),
        not trial.failed,
        "; ".join(trial.failed),
        round(time.monotonic() - began, 1),
    )
