"""Faults 11 and 12: networks that are cut in two, cut one way, slow, thin, torn, wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable

from peers.bus.redis.client import SOCKET_TIMEOUT_S
from tests.chaos.fleet import Fleet
from tests.chaos.trial import MARGIN_S, Scenario, Trial
from tests.chaos.worker_faults import is_leader_based, options
from tests.proxy import CLEAR, CUT, Weather

CUT_S = 20.0
HEALED_S = 20.0
ROUGH = Weather(latency_s=0.1, jitter_s=0.05, bytes_per_s=1e6, reset_every_bytes=5_000_000)


def sever(fleet: Fleet, ways: Iterable[tuple[int, int]], weather: Weather) -> None:
    """Set the weather of the links by which the first of each pair reads the second's Redis."""
    for way in ways:
        fleet.links[way].weather = weather


def between(one: list[int], other: list[int]) -> list[tuple[int, int]]:
    """The pairs (reader, node) of both directions between two groups."""
    return [pair for a in one for b in other for pair in ((a, b), (b, a))]


# --- 11: partitions -----------------------------------------------------------------------------


def parted(mode: str, minority: list[int], pauses: bool = False) -> Scenario:
    """Four workers, some of which cannot reach the others, in both directions, for 20 s."""
    majority = [number for number in range(4) if number not in minority]
    is_even = len(minority) == len(majority)
    overrides = ("bus.min_peers=2",) if pauses else ()

    def run(trial: Trial) -> None:
        with trial.network() as network, trial.fleet(4, network=network, **options(mode, *overrides)) as fleet:
            fleet.start_all()
            fleet.advance([0, 1, 2, 3], 10)
            cut_at = time.monotonic()
            sever(fleet, between(minority, majority), CUT)
            time.sleep(CUT_S / 2)
            halfway, saved = [fleet.step(number) for number in range(4)], fleet.checkpoints(minority[0])
            time.sleep(CUT_S / 2)
            moved = [fleet.step(number) - halfway[number] for number in range(4)]
            trial.see(f"steps in the second half of the cut: {moved}")
            trial.expect(
                all(moved[number] > 10 for number in majority), f"the majority {majority} did not go on: {moved}"
            )
            if pauses:
                trial.expect(not any(moved[number] for number in minority), f"the minority went on: {moved}")
                # A checkpoint would be a second line of training that calls itself the latest.
                now = fleet.checkpoints(minority[0])
                trial.expect(set(now) <= set(saved), f"the minority saved {sorted(set(now) - set(saved))}")
            healed_at = time.monotonic()
            sever(fleet, between(minority, majority), CLEAR)
            fleet.wait(
                lambda: all(fleet.stats(number)[-1]["live_peers"] == 3 for number in range(4)),
                "all to have three peers again",
                HEALED_S + 10,
            )
            took_s = time.monotonic() - healed_at
            trial.see(f"healed in {took_s:.1f} s")
            trial.expect(took_s <= HEALED_S, f"healed only in {took_s:.1f} s")
            fleet.advance([0, 1, 2, 3], 20, 60)
            limit_s = 2 * fleet.lease_s + MARGIN_S + (4 if is_leader_based(mode) else 0)
            trial.check_pause(fleet, majority, cut_at, limit_s)
            codes = fleet.stop()
            trial.expect(not any(codes), f"exit codes {codes}: {trial.last_words(fleet, codes)}")
            if not is_even:
                # The run has one line of training: the workers that were apart have taken it up. The cut may have
                # divided a round: some of the majority have the last contribution of the minority, others have not.
                trial.check_alike(fleet, may_differ=True)

    name = "2 from 2" if is_even else "1 from 3"
    expected = "the majority goes on; the minority pauses" if pauses else "both go on"
    return Scenario(
        11,
        f"partition {name} for 20 s" + (", min_peers: 2" if pauses else ""),
        mode,
        f"{expected}; healed in 20 s, one line of training",
        run,
    )


def one_way(mode: str) -> Scenario:
    """Worker 0 cannot read the others; they read it."""

    def run(trial: Trial) -> None:
        with trial.network() as network, trial.fleet(3, network=network, **options(mode)) as fleet:
            fleet.start_all()
            fleet.advance([0, 1, 2], 10)
            cut_at = time.monotonic()
            ways = [(0, 1), (0, 2)]
            sever(fleet, ways, Weather(is_silent=True))
            time.sleep(CUT_S)
            healed_at = time.monotonic()
            sever(fleet, ways, CLEAR)
            fleet.wait(
                lambda: all(fleet.stats(number)[-1]["live_peers"] == 2 for number in range(3)),
                "all to have two peers again",
                HEALED_S + 10,
            )
            fleet.advance([0, 1, 2], 20)
            took_s = time.monotonic() - healed_at
            trial.see(f"healed in {took_s:.1f} s")
            trial.expect(took_s <= HEALED_S, f"healed only in {took_s:.1f} s")
            # Under a bound the others wait until worker 0 goes on without them: a lease, and as a cut line
            # gives no error, up to two socket timeouts until the lease is looked at.
            trial.check_pause(fleet, [0, 1, 2], cut_at, fleet.lease_s + 2 * SOCKET_TIMEOUT_S + MARGIN_S)
            codes = fleet.stop()
            trial.expect(not any(codes), f"exit codes {codes}: {trial.last_words(fleet, codes)}")
            trial.check_alike(fleet)

    return Scenario(
        11,
        "one way: worker 0 hears nobody for 20 s",
        mode,
        "nobody stands still for more than a lease and two socket timeouts; healed in 20 s",
        run,
    )


# --- 12: bad weather ----------------------------------------------------------------------------


def rough(trial: Trial) -> None:
    settings = ("mode.parts=2", "model.hidden=256", "run.steps=60")
    with trial.network() as network, trial.fleet(3, network=network, settings=settings, pace=1, lease_s=8) as fleet:
        for link in fleet.links.values():
            link.weather = ROUGH
        for number in range(3):
            fleet.start(number)
        codes = [fleet.incarnation(number).end(150) for number in range(3)]
        trial.expect(not any(codes), f"exit codes {codes}: {trial.last_words(fleet, codes)}")
        resets = sum(link.resets for link in fleet.links.values())
        moved = sum(link.passed_bytes for link in fleet.links.values()) / 1e6
        trial.see(f"{moved:.0f} MB, {resets} resets")
        trial.expect(resets >= 3, f"only {resets} resets: not what was meant")
        text = "".join(map(fleet.text, range(3)))
        trial.expect("is dropped from the bound" not in text, "a false death")
        dropped = [fleet.dropped(number) for number in range(3)]
        trial.expect(not any(dropped), f"dropped: {dropped}")
        trial.check_alike(fleet)


def corrupted(trial: Trial) -> None:
    weather = Weather(corrupt_every_bytes=400_000)
    with trial.network() as network, trial.fleet(3, network=network, settings=("model.hidden=128",)) as fleet:
        fleet.start_all()
        for link in fleet.links.values():
            link.weather = weather
        fleet.advance([0, 1, 2], 150, 120)
        for link in fleet.links.values():
            link.weather = CLEAR
        fleet.advance([0, 1, 2], 60)
        flips = sum(link.flips for link in fleet.links.values())
        dropped = [fleet.dropped(number) for number in range(3)]
        trial.see(f"{flips} bits flipped; refused: {dropped}")
        trial.expect(flips >= 5, f"only {flips} bits flipped: not what was meant")
        counted = sum(sum(one.values()) for one in dropped)
        retries = sum(fleet.text(number).count("trying again") for number in range(3))
        # A flipped bit in Redis' own framing breaks the connection.
        trial.expect(counted + retries > 0, "no flipped bit was seen by anybody")
        codes = fleet.stop()
        trial.expect(not any(codes), f"exit codes {codes}: {trial.last_words(fleet, codes)}")
        trial.check_alike(fleet)


def scenarios() -> list[Scenario]:
    plain = "partial_exchange"
    return [
        parted(plain, [0]),
        parted(plain, [0], pauses=True),
        parted(plain, [0, 1]),
        parted("slack 0 gradients", [0], pauses=True),
        parted("federated", [0]),
        parted("federated", [3]),
        one_way(plain),
        Scenario(
            12, "100 +- 50 ms, 1 MB/s, a reset every 5 MB", plain, "finishes; no false death, no duplicate", rough
        ),
        Scenario(12, "a bit flipped every 400 kB", plain, "refused and counted, or asked again; goes on", corrupted),
    ]
