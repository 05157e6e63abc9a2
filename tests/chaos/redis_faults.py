"""Faults 7 to 10: a node's Redis that is restarted, killed with nothing on disk, frozen, full."""

from __future__ import annotations

import time

from tests.chaos.fleet import Fleet
from tests.chaos.trial import MARGIN_S, Scenario, Trial
from tests.chaos.worker_faults import EXACT_STEPS, LARGE, SYNC, is_leader_based, options

RECONNECT_S = 10.0
REBORN_S = 15.0


def check_warnings(trial: Trial, fleet: Fleet, outages: int) -> None:
    """Each thread that talks to a server logs at most one warning of an outage; here two threads do."""
    for number in range(fleet.workers):
        words = ("trying again", "trying for")
        logged = [line for line in fleet.text(number).splitlines() if any(word in line for word in words)]
        # A worker uses its own Redis for the lease and for publishing.
        limit = outages * (2 if number == 1 else 1)
        trial.expect(
            len(logged) <= limit, f"worker {number} warned {len(logged)} times of {outages} outages: {logged[-1:]}"
        )


def check_streams(trial: Trial, fleet: Fleet) -> None:
    """Each number is there once, with no gap: no published entry is lost or doubled."""
    for node in fleet.nodes:
        for key, numbers in node.streams().items():
            is_whole = numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            trial.expect(is_whole, f"{key} has a gap or a number twice")


# --- 7: restarted with its data on disk ----------------------------------------------------------


def restarted(mode: str, seconds: int, *more: str) -> Scenario:
    def run(trial: Trial) -> None:
        # A worker that is away for nearly a lease may be dropped or not; here the lease is long enough.
        with trial.fleet(3, is_durable=True, lease_s=2 + 2 * seconds, **options(mode, *more)) as fleet:
            fleet.start_all()
            began = fleet.until_done(2, 60)
            fleet.advance([0, 1, 2])
            trial.check_pause(fleet, [0, 1, 2], began - seconds - 1, seconds + RECONNECT_S)
            trial.expect("started again" not in fleet.text(0), "a worker had to begin a new incarnation")
            check_warnings(trial, fleet, 1)
            check_streams(trial, fleet)
            trial.check_end(fleet, is_alike=True)
            trial.expect(not fleet.dropped(0).get("replayed"), "something was read twice")

    what = "mid-publish and mid-read, large messages" if more else f"away {seconds} s"
    return Scenario(
        7,
        f"Redis restarted with AOF, {what}",
        mode,
        "reconnects in 10 s; nothing lost or doubled; one warning",
        run,
        lambda draw: f"redis1@step{draw.randint(20, 35)}:restart:{seconds}s",
        is_quick=mode == "partial_exchange" and seconds == 1 and not more,
    )


def restarted_exactly(trial: Trial) -> None:
    """The exchange is synchronous, so the weights tell whether a contribution was lost or doubled."""
    settings, found = (*SYNC, f"run.steps={EXACT_STEPS}", *LARGE), []
    for script in ("", trial.script):
        with trial.fleet(2, script, settings=settings, pace=3, is_durable=True, lease_s=10) as fleet:
            fleet.start_all()
            codes = [fleet.incarnation(number).end() for number in (0, 1)]
            trial.expect(codes == [0, 0], f"exit codes {codes}: {fleet.text(1)[-300:]}")
            trial.expect(len(fleet.done) == (6 if script else 0), f"only {fleet.done} was done")
            found.append([fleet.weights(number, EXACT_STEPS) for number in (0, 1)])
            trial.check_losses(fleet)
            if script:
                trial.check_pause(fleet, [0, 1], 0.0, RECONNECT_S)
    is_same = all((one[name] == other[name]).all() for one, other in zip(*found, strict=True) for name in one)
    trial.expect(is_same, "the weights are not those of an undisturbed run")
    trial.see("weights of the undisturbed run, bit for bit" if is_same else "other weights")


def absent_at_start(trial: Trial) -> None:
    with trial.fleet(2, is_durable=True) as fleet:
        fleet.nodes[1].end()
        for number in (0, 1):
            fleet.start(number)
        fleet.until_log(0, "no Redis answers at")
        fleet.until_log(1, "no Redis answers at")
        began = time.monotonic()
        fleet.nodes[1].start()
        fleet.until_step(0, 5)
        fleet.until_step(1, 5)
        took_s = time.monotonic() - began
        trial.see(f"trains {took_s:.1f} s after it is there")
        trial.expect(took_s <= RECONNECT_S, f"trains only after {took_s:.1f} s")
        trial.check_end(fleet, is_alike=True)


def idle(trial: Trial) -> None:
    """A worker that waits for the other to start reads and publishes nothing."""
    with trial.fleet(2, is_durable=True) as fleet:
        fleet.start(0)
        fleet.until_log(0, "waiting for worker 1 to start")
        fleet.nodes[0].end(15)
        fleet.nodes[0].start()
        fleet.start(1)
        for number in (0, 1):
            fleet.until_step(number, 20)
        trial.see("both train")
        trial.check_end(fleet, is_alike=True)


# --- 8: killed with nothing on disk --------------------------------------------------------------


def reborn(mode: str, seconds: int) -> Scenario:
    def run(trial: Trial) -> None:
        with trial.fleet(3, **options(mode)) as fleet:
            fleet.start_all()
            back_at = fleet.until_done(2, 60)
            before = fleet.step(0)
            # The worker of that node publishes, and the others read it, again.
            goals = [max(before, fleet.step(number)) + 20 for number in range(3)]
            for number, goal in enumerate(goals):
                fleet.until_step(number, goal, 40)
            fleet.wait(lambda: fleet.stats(0)[-1]["live_peers"] == 2, "worker 0 to have both peers again", 30)
            took_s = time.monotonic() - back_at
            trial.see(f"all train again {took_s:.1f} s after the Redis is back")
            trial.check_pause(fleet, [0, 2], back_at - seconds - 1, REBORN_S + (4 if is_leader_based(mode) else 0))
            trial.expect(took_s <= seconds + REBORN_S + 20 / 15, f"all train only after {took_s:.1f} s")
            trial.check_end(fleet, is_alike=True)

    return Scenario(
        8,
        f"Redis killed with nothing on disk, empty after {seconds} s (lease 4 s)",
        mode,
        "a new incarnation, its state again; training goes on in 15 s",
        run,
        lambda draw: f"redis1@step{draw.randint(20, 35)}:kill:{seconds}s",
    )


# --- 9: frozen while publishing ------------------------------------------------------------------


def frozen(trial: Trial) -> None:
    # The lease is longer than the fault, so that the interrupted entry is published in the end.
    with trial.fleet(3, lease_s=20) as fleet:
        fleet.start_all()
        thawed = fleet.until_done(2, 60)
        fleet.advance([0, 1, 2])
        trial.check_pause(fleet, [0, 1, 2], thawed - 14, 13 + RECONNECT_S)
        check_streams(trial, fleet)
        trial.see("one entry per number")
        trial.expect("started again" not in fleet.text(0), "a worker had to begin a new incarnation")
        trial.check_end(fleet, is_alike=True)
        trial.expect(not fleet.dropped(0).get("replayed"), "something was read twice")


# --- 10: full ------------------------------------------------------------------------------------


def full(share: float, seconds: int, lease_s: float) -> Scenario:
    """A Redis with a share of the memory that a full outbox takes beyond that of an empty server.

    A lease cannot be renewed on a full Redis either, so with a short lease the others go on without that worker.
    """
    is_dropped = share < 1 and seconds > lease_s

    def run(trial: Trial) -> None:
        with trial.fleet(3, settings=LARGE, lease_s=lease_s) as fleet:
            empty = fleet.nodes[1].used_bytes()
            fleet.start_all()
            fleet.advance([0, 1, 2], 60)
            need = fleet.nodes[1].used_bytes() - empty
            trial.script = f"redis1@step0:full:{empty + int(share * need)}:{seconds}s"
            began = time.monotonic()
            fleet.inject(trial.script)
            if share >= 1:
                fleet.advance([0, 1, 2], 30)
                trial.check_pause(fleet, [0, 1, 2], began, MARGIN_S)
                trial.see("nobody noticed")
            else:
                raised = fleet.until_done(2, seconds + 30)
                fleet.advance([0, 1, 2], 20)
                took_s = time.monotonic() - raised
                trial.see(f"all train {took_s:.1f} s after the limit was raised")
                trial.expect(took_s <= 10 + 20 / 15, f"all train only {took_s:.1f} s after the limit was raised")
                trial.check_pause(fleet, [0, 2], began, (lease_s if is_dropped else seconds + 10) + MARGIN_S)
                fleet.wait(lambda: fleet.stats(0)[-1]["live_peers"] == 2, "worker 0 to have both peers again", 30)
                logged = [
                    line for line in fleet.text(1).splitlines() if "OOM" in line or "full" in line or "memory" in line
                ]
                trial.expect(logged, "worker 1 does not log that its Redis is full")
                # A new incarnation counts anew.
                retries = fleet.stats(1)[-1].get("retries", 0)
                trial.see("worker 1 began a new incarnation" if is_dropped else f"worker 1 tried again {retries} times")
                trial.expect(retries or is_dropped, "the retries are not counted")
            codes = fleet.stop()
            trial.expect(not any(codes), f"exit codes {codes}: {trial.last_words(fleet, codes)}")

    return Scenario(
        10,
        f"Redis has {share:g} x the memory it needs, for {seconds} s (lease {lease_s:g} s)",
        "partial_exchange",
        "nothing happens" if share >= 1 else "backs off, counted; recovers in 10 s",
        run,
    )


def scenarios() -> list[Scenario]:
    plain = "partial_exchange"
    many = "redis1@step{}:restart, redis0@step{}:restart, redis1@step{}:restart"
    return [
        restarted(plain, 1),
        restarted(plain, 3),
        restarted(plain, 1, *LARGE),
        restarted("federated", 1),
        restarted("multi_discriminator", 1),
        Scenario(
            7,
            "Redis restarted with AOF, three times in large messages",
            "slack 0 gradients",
            "ends as if nothing had been, bit for bit",
            restarted_exactly,
            lambda draw: many.format(draw.randint(10, 18), draw.randint(25, 32), draw.randint(40, 48)),
        ),
        Scenario(7, "Redis absent at the start", plain, "awaited, and logged", absent_at_start),
        Scenario(7, "Redis restarted with AOF, at idle", plain, "nobody minds", idle),
        reborn(plain, 1),
        reborn(plain, 6),
        reborn("slack 0 gradients", 1),
        reborn("federated", 1),
        reborn("multi_discriminator", 1),
        Scenario(
            9,
            "Redis frozen 13 s while publishing (lease 20 s)",
            plain,
            "one entry per number; nobody is dropped",
            frozen,
            lambda draw: f"redis1@step{draw.randint(20, 35)}:stop:13s",
        ),
        full(1.5, 4, 4),
        full(0.5, 8, 20),
        full(0.5, 8, 4),
    ]
