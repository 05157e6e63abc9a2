"""What went wrong in a run: workers that fell silent, restarts, drops, void rounds, unreadable lines."""

from __future__ import annotations

import itertools
from html import escape

from degan.reports.html import many
from degan.runs.records import Run, Worker, number


def faults(run: Run) -> str:
    """The section of the report; a calm line where there was nothing."""
    found = _found(run)
    if not found:
        return '<h2>Drops and deaths</h2><p class="note">None: no message dropped, no worker lost, no restart.</p>'
    items = "".join(f"<li>{escape(line)}</li>" for line in found)
    return f'<h2>Drops and deaths</h2><div class="card bad"><ul class="faults">{items}</ul></div>'


def behind(run: Run) -> set[int]:
    """The workers whose last line is of an earlier step than another's, by more than a run that goes on explains."""
    ends = _ends(run)
    furthest = max(ends.values(), default=0)
    planned, every = run.planned_steps, run.log_every
    # A run that is still going on has workers a line or two apart; in a finished one all end together.
    lag = 2 * every if planned is None or furthest + every <= planned else 0
    return {index for index, step in ends.items() if step < furthest - lag}


def _ends(run: Run) -> dict[int, int]:
    return {index: worker.lines[-1]["step"] for index, worker in run.workers.items() if worker.lines}


def _found(run: Run) -> list[str]:
    ends, late = _ends(run), behind(run)
    furthest = max(ends.values(), default=0)
    planned = run.planned_steps
    found: list[str] = []
    witnesses: dict[str, list[str]] = {}
    if planned and ends and furthest + run.log_every <= planned:
        found.append(f"The run has {furthest:,} of its {planned:,} steps.")
    for index, worker in run.workers.items():
        who = f"worker {index}"
        if not worker.lines:
            found.append(f"{who} wrote no statistics in this folder.")
        elif index in late:
            found.append(f"{who} wrote its last line at step {ends[index]:,}; another reached {furthest:,}.")
        found += [f"{who} restarted: from step {a:,} back to {b:,}." for a, b in worker.restarts]
        dropped = [(reason, int(count)) for reason, count in worker.dropped.items() if count]
        found += [f"{who} dropped {many(count, 'message')}: {reason}." for reason, count in dropped]
        found += _offences(who, worker)
        lost = _lost_peers(run, worker, bool(late - {index}))
        if lost:
            witnesses.setdefault(lost, []).append(str(index))
    found += [f"worker{'s' * (len(who) > 1)} {', '.join(who)} saw {lost}." for lost, who in witnesses.items()]
    if run.void_rounds:
        found.append(f"{many(int(run.void_rounds), 'round')} counted for nothing: too few answered in time.")
    found += [f"{file}: {many(count, 'line')} could not be read." for file, count in run.unreadable.items()]
    return found


def _offences(who: str, worker: Worker) -> list[str]:
    """Whose contributions a worker could not use, as its last line says."""
    last = worker.lines[-1] if worker.lines else {}
    offences, banned = last.get("offences"), last.get("banned")
    if not isinstance(offences, dict) or not offences:
        return []
    some = ", ".join(f"worker {sender} {number(count):,.0f}" for sender, count in offences.items() if number(count))
    found = [f"{who} counted strikes (too long, not finite or malformed) against {some}."] if some else []
    gone = ", ".join(str(sender) for sender in banned) if isinstance(banned, list) else ""
    return found + ([f"{who} muted worker {gone}: nothing that it sent was used any more."] if gone else [])


def _lost_peers(run: Run, worker: Worker, someone_is_behind: bool) -> str:
    """When a worker saw fewer live peers than there are, unless those had merely finished before it."""
    seen = [(step, int(value)) for step, _, value in worker.series("live_peers") if value is not None]
    full = max((value for _, value in seen), default=0)
    if run.is_leader_based:
        # Rounds begin with whoever is there, and others may come later: lost is only who had been seen.
        most = list(itertools.accumulate((value for _, value in seen), max))
        at = next((i for i, (_, value) in enumerate(seen) if value < most[i]), len(seen))
        seen, full = seen[at:], most[at] if at < len(seen) else 0
    elif run.experiment and run.mode != "local":
        full = run.experiment.workers - 1
    fewer = next(((step, value) for step, value in seen if value < full), None)
    if fewer is None:
        return ""
    back = next((step for step, value in seen if step > fewer[0] and value >= full), None)
    if back is None and not someone_is_behind:
        return ""
    until = f", all of them again at step {back:,}" if back is not None else ""
    return f"{fewer[1]} of {full} peers alive at step {fewer[0]:,}{until}"
