"""Faults 13 to 15: disks that are full or wrong, values that are no numbers, workers with different settings."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from peers.bus.door import Bus
from peers.bus.redis.bus import RedisBus
from peers.errors import SetupError
from peers.session.meet import Rendezvous
from peers.vectors.graph import complete
from tests.chaos.byzantine_faults import agreed_of
from tests.chaos.fleet import Fleet
from tests.chaos.trial import MARGIN_S, Scenario, Trial
from tests.chaos.worker_faults import options

REFUSED_S = 5.0


# --- 13: checkpoints ----------------------------------------------------------------------------


def disk_full(trial: Trial) -> None:
    with trial.fleet(2) as fleet:
        fleet.start_all()
        fleet.until_step(1, 30)
        before = fleet.checkpoints(1)
        fleet.until_step(1, 50)
        trial.expect(before == [20], f"checkpoints before: {before}")
        trial.expect(20 in fleet.checkpoints(1) and 40 not in fleet.checkpoints(1), f"it has {fleet.checkpoints(1)}")
        logged = [line for line in fleet.text(1).splitlines() if "space" in line]
        trial.expect(logged, "it does not log that the disk is full")
        trial.see(logged[0].partition(" ")[2] if logged else "silent")
        fleet.until_step(1, 70)
        trial.expect(60 in fleet.checkpoints(1), "it does not save again when there is space")
        trial.check_pause(fleet, [0, 1], 0.0, MARGIN_S)
        trial.check_end(fleet, is_alike=True)


def always_full(trial: Trial) -> None:
    """Every write of a checkpoint fails, the last one too."""
    with trial.fleet(2, settings=("run.steps=60",)) as fleet:
        for number in (0, 1):
            fleet.start(number)
        codes = [fleet.incarnation(number).end() for number in (0, 1)]
        trial.expect(codes[0] == 0, f"the other ended with {codes[0]}")
        trial.expect(fleet.step(1) == 60, f"it stopped after step {fleet.step(1)}")
        trial.expect("Traceback" not in fleet.text(1), f"a traceback: {fleet.text(1)[-200:]}")
        trial.expect("space" in fleet.text(1), "it does not log that the disk is full")
        trial.see(f"60 steps, exit codes {codes}, checkpoints {fleet.checkpoints(1)}")


def torn(trial: Trial) -> None:
    with trial.fleet(2, lease_s=8) as fleet:
        fleet.start_all()
        fleet.until_step(1, 45)
        fleet.incarnation(1).kill()
        _resume_before(trial, fleet, damaged=40, whole=20)


def flipped(trial: Trial) -> None:
    with trial.fleet(2, lease_s=8) as fleet:
        fleet.start_all()
        fleet.until_step(1, 45)
        fleet.incarnation(1).kill()
        path = fleet.out / "w1" / "checkpoints" / "000040" / "model.safetensors"
        flip(path, trial.seed)
        _resume_before(trial, fleet, damaged=40, whole=20)


def flip(path: Path, seed: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    place = int(np.random.default_rng(seed).integers(len(data)))
    data[place] ^= 1 << place % 8
    path.write_bytes(data)


def _resume_before(trial: Trial, fleet: Fleet, damaged: int, whole: int) -> None:
    fleet.resume(1)
    fleet.until_log(1, "passing over a damaged checkpoint")
    fleet.until_log(1, f"{damaged:06d}")
    fleet.wait(lambda: "replays at step" in fleet.text(1) or "joins at step" in fleet.text(1), "it to take part")
    how = "replays" if f"replays at step {whole}" in fleet.text(1) else "joins"
    trial.see(f"step {damaged} passed over, {how}")
    fleet.wait(lambda: abs(fleet.step(1) - fleet.step(0)) < 5, "it to have caught up", 30)
    fleet.advance([0, 1], 20)
    trial.check_end(fleet, is_alike=True)


# --- 14: values that are no numbers --------------------------------------------------------------


def own_nan(mode: str) -> Scenario:
    def run(trial: Trial) -> None:
        with trial.fleet(3, **options(mode)) as fleet:
            fleet.start_all()
            step = fleet.faults.faults[0].step
            fleet.until_step(1, step + 20)
            others = fleet.dropped(0) | fleet.dropped(2)
            trial.see(f"worker 1 counted {fleet.dropped(1)}, the others {others}")
            counted = sum(fleet.dropped(1).values()) + sum(others.values())
            trial.expect(counted, "nobody counted it")
            # Each of the others may count the fault, and a repeated round; not every round from there on.
            trial.expect(counted <= 4, f"one step was counted {counted} times: it is not only that step")
            _check_finite(trial, fleet)

    return Scenario(
        14,
        "own gradient is NaN in one step",
        mode,
        "the step is skipped and counted; parameters stay finite",
        run,
        lambda draw: f"w1@step{draw.randint(20, 35)}:nan",
    )


def peers_nan(trial: Trial) -> None:
    with trial.fleet(3, **options("slack 0 gradients")) as fleet:
        fleet.start_all()
        fleet.until_step(0, 40)
        counts = fleet.dropped(0)
        trial.see(f"worker 0 counted {counts}")
        trial.expect(counts, "worker 0 counted nothing")
        _check_finite(trial, fleet, [0, 1])


def _check_finite(trial: Trial, fleet: Fleet, numbers: list[int] | None = None) -> None:
    codes = fleet.stop()
    trial.expect(not any(codes), f"exit codes {codes}: {trial.last_words(fleet, codes)}")
    for number in numbers or range(fleet.workers):
        is_finite = all(np.isfinite(array).all() for array in fleet.weights(number).values())
        trial.expect(is_finite, f"worker {number} has weights that are no numbers")


# --- 15: settings that do not match --------------------------------------------------------------


def mismatch(trial: Trial) -> None:
    """Two workers with one different setting are both refused, and the key that differs is named."""
    for setting, key in (
        ("optimiser.generator_lr=0.1", "optimiser.generator_lr"),
        ("model.hidden=65", "model.hidden"),
        ("data.batch_size=8", "data.batch_size"),
        ("data.split={kind: classes, groups: [[0, 1]]}", "data.split"),
    ):
        with trial.fleet(2) as fleet:
            incarnations = [fleet.start(0)]
            fleet.until_log(0, "waiting for worker 1 to start")
            incarnations.append(fleet.start(1, settings=(setting,)))
            fleet.until_log(1, "values in", is_over=True)
            began = time.monotonic()
            codes = [incarnation.end() for incarnation in incarnations]
            took_s = time.monotonic() - began
            trial.expect(codes == [2, 2], f"{key}: exit codes {codes}")
            trial.expect(
                all(key in incarnation.text for incarnation in incarnations),
                f"{key} is not named: {incarnations[1].text[-200:]}",
            )
            trial.expect(took_s <= REFUSED_S, f"{key}: refused only after {took_s:.1f} s")
            trial.see(f"{key} in {took_s:.1f} s")


def other_version(trial: Trial) -> None:
    """A peer with another version of the protocol and the settings of worker 0 is refused."""
    with trial.fleet(2) as fleet:
        first = fleet.start(0)
        fleet.until_log(0, "waiting for worker 1 to start")
        agreed = agreed_of(fleet)
        began = time.monotonic()
        bus: Bus = RedisBus("chaos", 1, [node.url for node in fleet.nodes], "other", complete(1, 2), 10, 10)
        older = {**agreed, "protocol": agreed["protocol"] + 1}
        meeting = Rendezvous(bus, older, 10.0, 20.0, trial.see, lambda error: None)
        try:
            meeting.claim([])
            meeting.meet([], {})
            trial.expect(False, "the peer was not refused")
        except SetupError as error:
            trial.expect("protocol" in str(error), f"the peer is told {error}")
        finally:
            code = first.end()
            meeting.close()
            bus.close()
        took_s = time.monotonic() - began
        trial.expect(code == 2 and "protocol is" in first.text, f"worker 0 ended with {code}: {first.text[-200:]}")
        trial.expect(took_s <= REFUSED_S, f"refused only after {took_s:.1f} s")
        trial.see(f"protocol in {took_s:.1f} s")


def scenarios() -> list[Scenario]:
    plain = "partial_exchange"
    kept = "the previous checkpoint is loaded, and this is logged"
    return [
        Scenario(13, "disk full at one checkpoint", plain, "logged; goes on; the previous stays", disk_full, _full),
        Scenario(13, "disk full always", plain, "logged; trains to the end", always_full, lambda draw: "w1:disk_full"),
        Scenario(13, "torn write in a checkpoint", plain, kept, torn, lambda draw: "w1@step40.saving:torn"),
        Scenario(13, "bit flipped in a checkpoint", plain, kept, flipped),
        *(own_nan(mode) for mode in (plain, "slack 0 gradients", "federated", "multi_discriminator")),
        Scenario(
            14,
            "a peer publishes NaN",
            "slack 0 gradients",
            "refused and counted; parameters stay finite",
            peers_nan,
            lambda draw: "w2:attack:nan",
        ),
        Scenario(15, "settings, model, data or split differ", plain, "refused in 5 s, the key is named", mismatch),
        Scenario(15, "another version", plain, "refused in 5 s, the key is named", other_version, is_quick=True),
    ]


def _full(draw) -> str:
    return "w1@step40.saving:disk_full"
