"""The faults of a run: silent workers, restarts, drops, offences, void rounds, unreadable lines."""

from __future__ import annotations

from typing import Any

from degan.reports.sections.section import Section
from degan.reports.text import many
from degan.runs import facts
from degan.runs.folder import Run
from degan.runs.records import Worker


def content(run: Run) -> dict[str, Any]:
    """The lines; empty for a run without faults."""
    reached, planned = facts.steps(run), run.planned_steps
    found: list[str] = []
    if planned and reached is not None and reached + run.log_every <= planned:
        found.append(f"The run has {reached:,} of its {planned:,} steps.")
    behind = facts.behind(run)
    for worker in run.workers.values():
        found += _of_worker(worker, reached if worker.number in behind else None)
    witnesses: dict[str, list[str]] = {}
    for worker in run.workers.values():
        if lost := facts.lost_peers(run, worker):
            until = f", all of them again at step {lost.back:,}" if lost.back is not None else ""
            said = f"{lost.alive} of {lost.peers} peers alive at step {lost.step:,}{until}"
            witnesses.setdefault(said, []).append(str(worker.number))
    found += [f"worker{'s' * (len(by) > 1)} {', '.join(by)} saw {lost}." for lost, by in witnesses.items()]
    if void := facts.void_rounds(run):
        found.append(f"{many(void, 'round')} counted for nothing: too few answered in time.")
    found += [f"{file}: {many(count, 'line')} could not be read." for file, count in run.unreadable.items()]
    return {"lines": found}


def _of_worker(worker: Worker, furthest: int | None) -> list[str]:
    """The faults in a worker's own records; `furthest` is the step of the furthest worker if this one fell behind."""
    name = f"worker {worker.number}"
    found = [] if worker.lines else [f"{name} wrote no statistics in this folder."]
    if furthest is not None:
        found.append(f"{name} wrote its last line at step {worker.step:,}; another reached {furthest:,}.")
    found += [f"{name} restarted: from step {a:,} back to {b:,}." for a, b in worker.restarts]
    drops = [(reason, int(count)) for reason, count in worker.dropped.items() if count]
    found += [f"{name} dropped {many(count, 'message')}: {reason}." for reason, count in drops]
    offences = ", ".join(f"worker {peer} {count:,}" for peer, count in facts.offences(worker).items())
    if offences:
        found.append(f"{name} counted offences (too large, not finite or malformed) against {offences}.")
    banned = ", ".join(facts.banned(worker))
    return found + ([f"{name} banned worker {banned}: nothing that it sent was used any more."] if banned else [])


SECTION = Section("faults", content)
