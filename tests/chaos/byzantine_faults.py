"""Faults 16 and 17: a hundred thousand malformed messages, and byzantine peers."""

from __future__ import annotations

import json
import random
import signal
import time
import tracemalloc
from collections import Counter

import msgpack
import numpy as np

from degan.modes.connect import fingerprint
from peers.bus.redis.bus import RedisBus
from peers.chaos.attacks import NAMES
from peers.exchange.clock import SspClock
from peers.exchange.gate import ClockGate
from peers.exchange.inbox import Inbox
from peers.exchange.layout import ExchangeLayout
from peers.exchange.window import Accumulator
from peers.rounds.layout import RoundLayout
from peers.session.meet import Rendezvous
from peers.types import Entry
from peers.vectors.graph import complete
from peers.wire.encode import encode_fields, encode_vector
from peers.wire.fields import decode_fields
from tests.chaos.fleet import Fleet
from tests.chaos.trial import Scenario, Trial
from tests.chaos.worker_faults import SYNC
from tests.fleets import make_layout

MESSAGES = 100_000
REFUSED_S, REFUSED_BYTES = 0.05, 16 * 2**20
DISTANCE = 1.25
SIZE = 4096


# --- 16: malformed messages -----------------------------------------------------------------------


def mutated(header: bytes, payload: bytes, draw: random.Random) -> tuple[bytes, bytes, str]:
    """A message that a peer could send and should not, and the kind of its change."""
    kind = draw.choice(("bit", "byte", "cut", "more", "noise", "field", "huge", "replay"))
    match kind:
        case "bit":
            changed, place = bytearray(payload), draw.randrange(len(payload))
            changed[place] ^= 1 << draw.randrange(8)
            return header, bytes(changed), kind
        case "byte":
            changed, place = bytearray(header), draw.randrange(len(header))
            changed[place] = draw.randrange(256)
            return bytes(changed), payload, kind
        case "cut":
            return header[: draw.randrange(len(header))], payload, kind
        case "more":
            return header, payload + draw.randbytes(draw.randrange(1, 64)), kind
        case "noise":
            return draw.randbytes(draw.randrange(128)), draw.randbytes(draw.randrange(256)), kind
        case "field":
            values = msgpack.unpackb(header)
            values[draw.choice(sorted(values))] = draw.choice((None, -1, "x", 2**63, [1], {}, 1.5, b"\0" * 64))
            return msgpack.packb(values), payload, kind
        case "huge":
            values = msgpack.unpackb(header) | {draw.choice("abinr"): draw.choice((2**31, 2**47, 2**62))}
            return msgpack.packb(values), payload, kind
    return header, payload, kind


class Target:
    """An inbox to be fed; the messages that it takes are dropped."""

    def __init__(self):
        self.layout: ExchangeLayout = make_layout(SIZE, parts=1)
        self._accumulator = Accumulator()
        gate = ClockGate(SspClock((1,), 2), 10.0)
        self.inbox = Inbox(0, self.layout, self._accumulator, gate)
        self._sequence = 0
        self.messages = [self._make(round) for round in range(1, 5)]
        for header, payload in self.messages:
            self.feed(header, payload)

    def _make(self, round: int) -> tuple[bytes, bytes]:
        values = np.random.default_rng(round).normal(size=SIZE).astype(np.float32)
        ((header, payload),) = encode_vector(self.layout, "part", round, self.layout.schedule.slice(round), values)
        return header, bytes(payload)

    def feed(self, header: bytes, payload: bytes) -> None:
        self._sequence += 1
        self.inbox.feed(Entry(1, "incarnation", self._sequence, True, header, payload))

    def taken(self) -> int:
        """The number of messages that were taken for good since the last call."""
        return len(self._accumulator.take(2**62))

    def refused(self) -> int:
        """The number of refused messages; rounds that a jump left out were never sent and do not count."""
        return sum(count for reason, count in self.inbox.dropped().items() if reason != "overrun")


def malformed(trial: Trial) -> None:
    draw, target, kinds = random.Random(trial.seed), Target(), Counter()
    target.taken()
    worst_s, taken = 0.0, 0
    for _ in range(MESSAGES):
        header, payload, kind = mutated(*draw.choice(target.messages), draw)
        kinds[kind] += 1
        began = time.thread_time()
        target.feed(header, payload)
        worst_s = max(worst_s, time.thread_time() - began)
        taken += target.taken()
    refused = target.refused()
    trial.see(f"{MESSAGES:,} messages: {refused:,} refused, {taken} taken; the worst took {1000 * worst_s:.1f} ms")
    trial.see(f"counted {target.inbox.dropped()} of {dict(kinds)}")
    trial.expect(worst_s <= REFUSED_S, f"one took {1000 * worst_s:.0f} ms of processor")
    trial.expect(refused == MESSAGES, f"{MESSAGES - refused} were not counted, {taken} of them taken")
    tracemalloc.start()
    peak = 0
    for _ in range(2000):
        header, payload, _ = mutated(*draw.choice(target.messages), draw)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        target.feed(header, payload)
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
        target.taken()
    tracemalloc.stop()
    trial.see(f"at most {peak / 1024:.0f} KiB each")
    trial.expect(peak <= REFUSED_BYTES, f"one took {peak / 2**20:.0f} MiB")


def spoken_to(trial: Trial) -> None:
    """A puppet meets two workers as their peer, sends a goodbye and then nonsense on its stream while they train."""
    count, draw = 2000, random.Random(trial.seed)
    target = Target()
    with trial.fleet(3) as fleet:
        incarnations = [fleet.start(number) for number in (0, 1)]
        fleet.until_log(0, "waiting for worker 2 to start")
        bus = RedisBus("chaos", 2, [node.url for node in fleet.nodes], "puppet", complete(2, 3), 10, 10)
        agreed = agreed_of(fleet)
        layout = RoundLayout(fingerprint(agreed), {})
        meeting = Rendezvous(bus, agreed, 60.0, 30.0, trial.see, lambda error: None)
        try:
            meeting.claim([])
            meeting.meet([], {})
            bus.configure(count + 10, 4 * SIZE)
            bus.publish(encode_fields(layout, "hello", 0, {"is_joining": False, "is_replaying": False}))
            bus.publish(encode_fields(layout, "goodbye", 0, {}))
            for number in (0, 1):
                fleet.until_step(number, 10)
            for _ in range(count):
                header, payload, _ = mutated(*draw.choice(target.messages), draw)
                bus.publish([(header, payload)])
            fleet.wait(lambda: min(_refused(fleet, number) for number in (0, 1)) >= count, "all to be counted", 30)
            fleet.advance([0, 1])
        finally:
            meeting.close()
            bus.close()
        trial.see(f"{count} sent; refused {[_refused(fleet, number) for number in (0, 1)]}: {fleet.dropped(0)}")
        trial.expect(all(_refused(fleet, number) == count for number in (0, 1)), "the counters are not what was sent")
        fleet.incarnation(0).signal(signal.SIGUSR2)
        codes = [incarnation.end() for incarnation in incarnations]
        trial.expect(codes == [0, 0], f"exit codes {codes}: {fleet.text(0)[-300:]}")
        trial.expect("Traceback" not in fleet.text(0) + fleet.text(1), "a traceback")


def agreed_of(fleet: Fleet) -> dict:
    """The settings that worker 0 offers to agree on."""
    client = fleet.nodes[0].client
    state = next(key for key in client.scan_iter() if key.endswith(b":state"))
    return decode_fields(client.hget(state, "hello"))["agreed"]


def _refused(fleet: Fleet, number: int) -> int:
    """The count of refused messages; `damaged` counts second readings, and each of these ends in another count."""
    return sum(count for reason, count in fleet.dropped(number).items() if reason != "damaged")


# --- 17: byzantine peers --------------------------------------------------------------------------


def byzantine(attack: str) -> Scenario:
    """Four workers, the last of which attacks, with a robust rule; measured against a run without it."""
    robust = (*SYNC, "mode.own=delayed", "mode.reduce=median")
    more = ("run.steps=300", "run.evaluate_every=300", "run.evaluate_samples=512")

    def run(trial: Trial) -> None:
        distances = {}
        for script in ("", trial.script):
            if not script and "clean" in trial.known:
                distances[script] = trial.known["clean"]
                continue
            with trial.fleet(4, script, settings=(*robust, *more), pace=1, lease_s=15) as fleet:
                for number in range(4):
                    fleet.start(number)
                codes = [fleet.incarnation(number).end(120) for number in range(4)]
                trial.expect(not any(codes[:3]), f"exit codes {codes}: {trial.last_words(fleet, codes)}")
                distances[script] = distance(fleet, [0, 1, 2])
            if not script:
                trial.known["clean"] = distances[script]
        clean, attacked = distances[""], distances[trial.script]
        trial.see(f"FID {attacked:.3g}, clean {clean:.3g}")
        trial.expect(attacked <= DISTANCE * clean, f"FID is {attacked / clean:.2f} of the clean run's")

    return Scenario(
        17,
        f"byzantine peer: {attack}",
        "slack 0 gradients, median",
        "FID at most 1.25 x the clean run's",
        run,
        lambda draw: f"w3:attack:{attack}",
    )


def distance(fleet: Fleet, numbers: list[int]) -> float:
    """The mean FID of these workers at the end."""
    lines = [json.loads(line) for line in (fleet.out / "metrics.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines)
    found = [
        line["value"]
        for line in lines
        if line["step"] == last
        and line["worker"] in numbers
        and line["metric"].startswith("fid")
        and not line["metric"].endswith("floor")
    ]
    return sum(found) / len(found)


def scenarios() -> list[Scenario]:
    refused = "each refused and counted in 50 ms and 16 MiB; nothing escapes"
    return [
        Scenario(16, f"{MESSAGES:,} malformed messages", "inbox", refused, malformed, is_quick=True),
        Scenario(16, "malformed messages to workers that train", "partial_exchange", refused, spoken_to),
        *(byzantine(attack) for attack in NAMES),
    ]
