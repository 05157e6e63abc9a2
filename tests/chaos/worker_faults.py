"""Faults 1 to 6: workers that are killed, frozen, slow, late, told to go, or there twice."""

from __future__ import annotations

import random
import signal
import time

from peers.chaos.faults import SAVING, WIRE_HOOKS
from tests.chaos.trial import MARGIN_S, Scenario, Trial

SYNC = ("mode.exchange=gradients", "mode.slack=0", "mode.codec=raw", "mode.parts=1")
FEDERATED = ("mode.local_steps=2", "mode.fraction=0.99", "mode.deadline.floor_s=2", "mode.deadline.ceiling_s=4")
DISCRIMINATORS = ("mode.deadline.floor_s=2", "mode.deadline.ceiling_s=4")
# Settings with which a message has several entries.
LARGE = ("model.hidden=384",)
MODES = {
    "partial_exchange": ("partial_exchange", ()),
    "slack 0 gradients": ("partial_exchange", SYNC),
    "federated": ("federated", FEDERATED),
    "multi_discriminator": ("multi_discriminator", DISCRIMINATORS),
}
EXACT_STEPS = 60


def options(mode: str, *more: str) -> dict:
    name, settings = MODES[mode]
    return {"mode": name, "settings": (*settings, *more)}


def is_leader_based(mode: str) -> bool:
    return mode in ("federated", "multi_discriminator")


# --- 1: killed ----------------------------------------------------------------------------------


def killed_at(hook: str, large: bool) -> Scenario:
    """A synchronous run with a kill ends with the weights of an undisturbed run, bit for bit."""
    # The lease is longer than a restart on a busy machine: a worker that is back within its lease replays.
    settings = (*SYNC, f"run.steps={EXACT_STEPS}", "run.checkpoint_every=10", *(LARGE if large else ()))

    def run(trial: Trial) -> None:
        found = []
        for script in ("", trial.script):
            key = ("undisturbed", settings)
            if not script and key in trial.known:
                found.append(trial.known[key])
                continue
            with trial.fleet(2, script, settings=settings, pace=1, lease_s=15) as fleet:
                fleet.start(0)
                victim = fleet.start(1)
                if script:
                    code = victim.end()
                    trial.expect(code == -signal.SIGKILL, f"it ended with {code}")
                    fleet.resume(1)
                codes = [fleet.incarnation(number).end() for number in (0, 1)]
                trial.expect(codes == [0, 0], f"exit codes {codes}: {fleet.text(1)[-300:]}")
                weights = [fleet.weights(number, EXACT_STEPS) for number in (0, 1)]
                if script:
                    trial.check_pause(fleet, [0], 0.0, 15 + MARGIN_S)
                    trial.expect("replays at step" in fleet.text(1), "it did not replay from its checkpoint")
                    steps = [line["step"] for line in fleet.stats(1)]
                    trial.expect(steps == list(range(1, EXACT_STEPS + 1)), "a step is missing or there twice")
                else:
                    trial.known[key] = weights
                found.append(weights)
        is_same = all((one[name] == other[name]).all() for one, other in zip(*found, strict=True) for name in one)
        trial.expect(is_same, "the weights are not those of an undisturbed run")
        trial.see("weights of the undisturbed run, bit for bit" if is_same else "other weights")

    return Scenario(
        1,
        f"worker killed (-9), {hook or 'step begins'}",
        "slack 0 gradients",
        "replays from its checkpoint; ends as if nothing had been",
        run,
        lambda draw: f"w1@step{draw.randint(22, 38)}{'.' if hook else ''}{hook}:kill",
        is_quick=hook == "after_publish",
    )


def killed_and_late(mode: str, victim: int) -> Scenario:
    who = ("the leader" if victim == 0 else "a member") if is_leader_based(mode) else "a worker"

    def run(trial: Trial) -> None:
        others = [number for number in range(3) if number != victim]
        with trial.fleet(3, **options(mode)) as fleet:
            fleet.start_all()
            code = fleet.incarnation(victim).end()
            killed_at = time.monotonic()
            trial.expect(code == -signal.SIGKILL, f"it ended with {code}")
            fleet.until_log(others[0], "lease has expired" if not is_leader_based(mode) else f"worker {victim}")
            fleet.advance(others)
            fleet.resume(victim)
            resumed_at = time.monotonic()
            fleet.until_log(victim, "joins at")
            fleet.wait(lambda: fleet.step(victim) >= min(map(fleet.step, others)) - 5, "it to have caught up", 30)
            fleet.advance([0, 1, 2])
            trial.see(f"back after {time.monotonic() - resumed_at:.1f} s")
            # A round is given up after its deadline, and after a lease where its leader is gone.
            trial.check_pause(fleet, others, killed_at, fleet.lease_s + MARGIN_S + (4 if is_leader_based(mode) else 0))
            trial.check_end(fleet, is_alike=True)

    return Scenario(
        1,
        f"{who} killed (-9), back after its lease",
        mode,
        "the others pause at most a lease; it joins them",
        run,
        lambda draw: f"w{victim}@step{draw.randint(20, 35)}{_hook(draw)}:kill",
    )


def _hook(draw: random.Random) -> str:
    return draw.choice(("", ".before_publish", ".after_publish", ".before_apply"))


# --- 2: frozen ----------------------------------------------------------------------------------


def frozen(mode: str, seconds: int) -> Scenario:
    def run(trial: Trial) -> None:
        with trial.fleet(3, **options(mode)) as fleet:
            fleet.start_all()
            frozen = fleet.faults.faults[0].step
            fleet.until_step(1, frozen - 1)
            began = time.monotonic()
            is_late = seconds > fleet.lease_s
            if is_late:
                fleet.until_log(0, "worker 1", 30)
                fleet.until_log(1, "joining them again", seconds + 30)
                thawed = time.monotonic()
                fleet.until_log(1, "joins at", 30)
                # The steps before the freeze are behind those of the others.
                fleet.wait(lambda: fleet.step(1) >= min(fleet.step(0), fleet.step(2)) - 5, "it to have caught up", 30)
                took_s = time.monotonic() - thawed
                trial.see(f"joined {took_s:.1f} s after it was thawed")
                trial.expect(took_s <= 10, f"joined only after {took_s:.1f} s")
            fleet.advance([0, 1, 2], timeout_s=seconds + 30)
            limit_s = min(seconds, fleet.lease_s) + MARGIN_S + (4 if is_leader_based(mode) else 0)
            trial.check_pause(fleet, [0, 2], began, limit_s)
            trial.expect(
                is_late == ("joins at" in fleet.text(1)), "it should " + ("" if is_late else "not ") + "join again"
            )
            trial.check_end(fleet, is_alike=True)

    return Scenario(
        2,
        f"worker frozen {seconds} s (lease 4 s)",
        mode,
        "late, then absent; thawed, it joins in 10 s" if seconds > 4 else "it is awaited",
        run,
        lambda draw: f"w1@step{draw.randint(20, 35)}:stop:{seconds}s",
    )


# --- 3: slow ------------------------------------------------------------------------------------


def slow(slack: str) -> Scenario:
    is_bound = slack != "null"

    def run(trial: Trial) -> None:
        with trial.fleet(3, settings=(f"mode.slack={slack}",), pace=8) as fleet:
            fleet.start_all(until_step=20)
            began = time.monotonic()
            fleet.until_step(2, fleet.faults.faults[0].step - 2)
            slowed = time.monotonic()
            fleet.advance([2], 12, 90)
            ended = time.monotonic()
            if is_bound:
                stale = max(line["staleness_max"] for number in range(3) for line in fleet.stats(number))
                trial.see(f"staleness at most {stale}")
                trial.expect(stale <= 2, f"staleness {stale} is above the slack of 2")
                trial.see(f"all at {fleet.rate(0, slowed, ended):.1f} steps a second")
            else:
                before, after = ([fleet.rate(n, *span) for n in (0, 1)] for span in ((began, slowed), (slowed, ended)))
                trial.see(f"the others' steps a second before: {_text(before)}, after: {_text(after)}")
                # Other work of the machine changes the rates; the cost of the slow worker is the waiting.
                waited_s = [sum(line["wait_s"] for line in fleet.stats(n)) for n in (0, 1)]
                share = max(waited_s) / (ended - began)
                trial.see(f"they waited {100 * share:.1f}% of the time")
                trial.expect(share <= 0.1, f"the others lost {100 * share:.0f}% of their rate to waiting")
            live = [line["live_peers"] for line in fleet.stats(0)]
            trial.expect(min(live) == 2, "a slow worker was taken for dead")
            trial.check_end(fleet)

    return Scenario(
        3,
        "worker 10 times slower",
        f"partial_exchange, slack {slack}",
        "staleness never above slack" if is_bound else "the others keep 90% of their rate",
        run,
        lambda draw: f"w2@step{draw.randint(60, 80)}:slow:80",
    )


def _text(rates: list[float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)


# --- 4: coming and going ------------------------------------------------------------------------


def churn(mode: str) -> Scenario:
    def run(trial: Trial) -> None:
        with trial.fleet(3, **options(mode)) as fleet:
            fleet.start_all()
            began = time.monotonic()
            for turn in range(3):
                leaver = 1 + turn % 2
                fleet.incarnation(leaver).signal(signal.SIGTERM)
                code = fleet.incarnation(leaver).end()
                trial.expect(code == 0, f"worker {leaver} left with {code}")
                fleet.advance([0], 15)
                there = fleet.step(0)
                fleet.resume(leaver)
                # Each incarnation logs this once.
                fleet.wait(lambda who=leaver: "joins at" in fleet.incarnation(who).text, f"worker {leaver} to join")
                fleet.wait(lambda who=leaver, step=there: fleet.step(who) > step, f"worker {leaver} to go on", 30)
                fleet.advance([0, 1, 2], 10)
            steps = [line["step"] for line in fleet.stats(0)]
            trial.expect(steps == sorted(set(steps)), "the worker that stayed went back")
            trial.see("3 left and came back")
            trial.check_pause(fleet, [0], began, MARGIN_S)
            trial.check_end(fleet, is_alike=True)

    return Scenario(
        4,
        "leave, come late, again and again",
        mode,
        "state from the most advanced; nobody goes back or waits",
        run,
    )


# --- 5: signals ---------------------------------------------------------------------------------


def told_to_go(action: str) -> Scenario:
    def run(trial: Trial) -> None:
        with trial.fleet(2) as fleet:
            fleet.start_all()
            step = fleet.faults.faults[0].step
            code = fleet.incarnation(1).end()
            ended = time.monotonic()
            trial.expect(code == 0, f"it ended with {code}")
            trial.expect(fleet.checkpoints(1)[-1:] == [step], f"it saved {fleet.checkpoints(1)}, not step {step}")
            fleet.until_log(0, "worker 1 has said goodbye")
            fleet.advance([0])
            trial.check_pause(fleet, [0], ended, MARGIN_S)
            trial.see(f"step {step} saved, exit code {code}")
            trial.check_end(fleet)

    return Scenario(
        5,
        f"SIG{action.upper()}",
        "partial_exchange",
        "finishes the step, saves, says goodbye, exit code 0",
        run,
        lambda draw: f"w1@step{draw.randint(22, 38)}:{action}",
    )


def told_twice(trial: Trial) -> None:
    with trial.fleet(2) as fleet:
        # The first signal comes in the middle of a long step; the second while the step still lasts.
        fleet.start_all()
        fleet.incarnation(0).signal(signal.SIGSTOP)
        time.sleep(0.5)
        fleet.incarnation(1).signal(signal.SIGTERM)
        time.sleep(0.3)
        fleet.incarnation(1).signal(signal.SIGTERM)
        began = time.monotonic()
        code = fleet.incarnation(1).end()
        fleet.incarnation(0).signal(signal.SIGCONT)
        trial.see(f"ended with {code} after {time.monotonic() - began:.1f} s")
        trial.expect(code == -signal.SIGTERM, f"a second signal should end it at once, not with {code}")
        trial.expect(fleet.is_alive(0), "the other ended, too")


# --- 6: twice -----------------------------------------------------------------------------------


def twice(trial: Trial) -> None:
    with trial.fleet(2) as fleet:
        fleet.start_all()
        first = fleet.incarnation(1)
        began = time.monotonic()
        second = fleet.start(1, "--out", str(fleet.folder / "elsewhere"))
        code = second.end()
        took_s = time.monotonic() - began
        fleet.incarnations[1].pop()
        trial.see(f"refused after {took_s:.1f} s")
        trial.expect(code == 2, f"the second ended with {code}")
        trial.expect(f"as process {first.pid}" in second.text, "it does not name the process of the first")
        trial.expect("Traceback" not in second.text, "a traceback")
        fleet.advance([0, 1])
        trial.check_end(fleet)


def taken_over(trial: Trial) -> None:
    with trial.fleet(2) as fleet:
        fleet.start_all()
        first = fleet.incarnation(1)
        # A frozen worker stands for one that hangs: it cannot know that it is replaced.
        first.signal(signal.SIGSTOP)
        second = fleet.start(1, "--takeover", "--resume", "latest", "--out", str(fleet.folder / "elsewhere"))
        began = time.monotonic()
        try:
            fleet.wait(lambda: "joins at" in second.text or "replays at" in second.text, "it to take part", 30)
            trial.see(f"takes part after {time.monotonic() - began:.1f} s")
        except AssertionError:
            trial.expect(False, f"--takeover: {second.text.strip()[-200:]}")
        first.signal(signal.SIGCONT)
        code = first.end()
        trial.expect(code not in (0, None), f"the first ended with {code}, as if nothing had been")
        trial.expect("taken over" in first.text, f"the first does not say why it ends: {first.text[-200:]}")
        fleet.advance([0], 20)
        trial.check_losses(fleet)


def scenarios() -> list[Scenario]:
    plain = "partial_exchange"
    return [
        *(killed_at(hook, hook == "between_chunks") for hook in ("", *WIRE_HOOKS, "before_apply", SAVING)),
        *(killed_and_late(mode, victim) for mode in MODES for victim in ((0, 2) if is_leader_based(mode) else (1,))),
        *(frozen(plain, seconds) for seconds in (2, 10, 30)),
        *(frozen(mode, 10) for mode in MODES if mode != plain),
        slow("2"),
        slow("null"),
        churn(plain),
        churn("federated"),
        *(told_to_go(action) for action in ("int", "term", "usr1")),
        Scenario(5, "a second signal", plain, "exits hard", told_twice),
        Scenario(6, "the same number twice", plain, "the second refuses, names host and pid", twice, is_quick=True),
        Scenario(6, "--takeover of a worker that hangs", plain, "the first is fenced and says so", taken_over),
    ]
