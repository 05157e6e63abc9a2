"""The exchange: conservation, the synchronous oracle, the bound; on memory, fakeredis and a real Redis."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from peers.codecs.exact import CODECS
from peers.exchange.options import Options
from peers.vectors.partition import Schedule
from tests.fleets import Fleet, integers, make_layout, memory_buses, redis_buses

RUNS = iter(range(10**6))


SLACKS = st.sampled_from([0, 1, 3, None])
PARTS = st.one_of(st.integers(1, 8), st.just("auto"))
DELAYS = st.lists(st.integers(0, 3), min_size=1, max_size=5)
FLEETS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PATIENT = {"keep_rounds": 400, "lease_s": 20.0, "finish_timeout_s": 20.0}


def watch_ages(exchange, ages):
    """Collect the ages in steps of the contributions that an exchange applies, from the rounds of the contributions."""
    collect = exchange._rule.collect

    def watched(through, values, items, sharers):
        ages.extend(max(0, exchange._round - item.round) for item in items)
        return collect(through, values, items, sharers)

    exchange._rule.collect = watched


def conserve(buses, size, steps, delays, parts=1, slack=0, codec="raw", own="immediate"):
    """Run a fleet that exchanges gradients. Returns the sums that each worker produced, received and keeps back."""
    workers = len(buses)
    fleet = Fleet(buses, make_layout(size, parts, codec), size, Options(slack=slack, own=own, reduce="sum", **PATIENT))
    produced = np.zeros((workers, size), dtype=np.float64)
    delivered = np.zeros((workers, size), dtype=np.float64)

    def job(worker, exchange):
        rng = np.random.default_rng(worker)
        pause, ages = threading.Event(), []
        watch_ages(exchange, ages)
        for step in range(steps):
            # Whole numbers have exact sums; a lossy codec has to round sevenths.
            gradient = (integers(rng, size) / (1 if codec == "raw" else 7)).astype(np.float32)
            produced[worker] += gradient
            if delays[(worker + step) % len(delays)]:
                pause.wait(delays[(worker + step) % len(delays)] / 1000)
            combined = exchange.exchange(gradient.copy())
            if own == "immediate":
                combined = combined - gradient
            delivered[worker] += combined
        stats = exchange.stats()
        assert slack is None or max(ages, default=0) <= slack
        assert stats["staleness_max"] == max(ages, default=0)
        assert stats["staleness_mean"] == (sum(ages) / len(ages) if ages else 0.0)
        combined = exchange.finish(np.zeros(size, dtype=np.float32))
        if combined is not None:
            delivered[worker] += combined
        arrays, _ = exchange.state()
        return exchange.stats(), arrays

    results = fleet.run(job)
    kept = [arrays["kept"] if arrays["kept"].size else np.zeros(size) for _, arrays in results]
    for stats, arrays in results:
        assert not stats["dropped"], stats["dropped"]
        assert not arrays["window"].any()
    return produced, delivered, np.array(kept)


def check_conserved(produced, delivered, kept, exact, own="immediate"):
    workers = len(produced)
    for worker in range(workers):
        of = [w for w in range(workers) if w != worker or own == "delayed"]
        expected = (produced[of] - kept[of]).sum(axis=0)
        if exact:
            np.testing.assert_array_equal(delivered[worker], expected)
        else:
            np.testing.assert_allclose(delivered[worker], expected, rtol=1e-5, atol=2e-3)


@FLEETS
@given(
    workers=st.integers(1, 4),
    size=st.integers(2, 50),
    parts=PARTS,
    slack=SLACKS,
    codec=st.sampled_from(list(CODECS)),
    steps=st.integers(1, 20),
    delays=DELAYS,
    own=st.sampled_from(["immediate", "delayed"]),
)
def test_delivered_plus_kept_is_produced(workers, size, parts, slack, codec, steps, delays, own):
    assume(slack is not None or own == "immediate")
    buses = memory_buses(workers)
    result = conserve(buses, size, steps, delays, parts, slack, codec, own)
    check_conserved(*result, exact=codec == "raw", own=own)


@pytest.mark.parametrize(("parts", "slack", "codec"), [(1, 0, "sign"), (4, 2, "int8"), (3, 1, "topk"), (1, 3, "raw")])
def test_all_workers_apply_the_published_gradients_alike(parts, slack, codec):
    """With `own: delayed` every worker gets the same sum in every round, whatever gets lost on the way."""
    fleet = Fleet(
        memory_buses(3),
        make_layout(40, parts, codec),
        40,
        Options(slack=slack, own="delayed", **PATIENT),
    )

    def job(worker, exchange):
        rng, pause, given = np.random.default_rng(worker), threading.Event(), []
        for step in range(1, 15):
            pause.wait(rng.integers(0, 3) / 1000)
            gradient = rng.standard_normal(40).astype(np.float32)
            given.append(exchange.exchange(gradient, lambda step=step: step in (7, 14)).copy())
        rest = exchange.finish(np.zeros(40, dtype=np.float32))
        return given if rest is None else [*given, rest]

    first, *others = fleet.run(job)
    assert any(round.any() for round in first)
    for other in others:
        np.testing.assert_array_equal(np.array(other), np.array(first))


def agree(buses, size, steps, delays, parts=1, slack=0, codec="raw"):
    """Run a fleet that exchanges parameters.

    Returns each worker's last parameters, and their mean without any exchange.
    """
    workers, layout = len(buses), make_layout(size, parts, codec, may_be_whole=True)
    initial = np.random.default_rng(9).standard_normal(size).astype(np.float32)
    fleet = Fleet(buses, layout, size, Options(slack=slack, exchange="parameters", **PATIENT), initial)
    alone = np.tile(initial.astype(np.float64), (workers, 1))

    def job(worker, exchange):
        rng, pause, mine = np.random.default_rng(worker), threading.Event(), initial.copy()
        for step in range(1, steps + 1):
            change = 0.1 * rng.standard_normal(size).astype(np.float32)
            alone[worker] += change
            mine += change
            if delays[(worker + step) % len(delays)]:
                pause.wait(delays[(worker + step) % len(delays)] / 1000)
            exchange.exchange(mine, lambda step=step: step in (5, steps))
        exchange.finish(mine)
        return mine, exchange.stats()

    results = fleet.run(job)
    for _, stats in results:
        assert not stats["dropped"] or slack is None, stats["dropped"]
    return [mine for mine, _ in results], alone.mean(axis=0)


@FLEETS
@given(
    workers=st.integers(1, 4),
    size=st.integers(2, 50),
    parts=PARTS,
    slack=SLACKS,
    codec=st.sampled_from(list(CODECS)),
    steps=st.integers(1, 20),
    delays=DELAYS,
)
def test_parameters_end_alike_and_at_the_mean(workers, size, parts, slack, codec, steps, delays):
    # Without a bound the workers have no common round for a change of parts, so the settings refuse it.
    assume(slack is not None or codec in ("raw", "float16", "bfloat16") and parts != "auto")
    mine, mean = agree(memory_buses(workers), size, steps, delays, parts, slack, codec)
    for other in mine[1:]:
        np.testing.assert_array_equal(other, mine[0])
    if slack is not None:
        np.testing.assert_allclose(mine[0], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slack", [0, 2])
@pytest.mark.parametrize("codec", ["raw", "float16", "int8", "topk", "sign"])
def test_parameters_repeat_bit_by_bit_under_any_bound(slack, codec):
    runs = [agree(memory_buses(3), 40, 12, delays, 4, slack, codec)[0][0] for delays in ([0], [0, 3, 1, 2])]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("server", ["fake_url", "redis_url"])
@pytest.mark.parametrize(("parts", "slack", "codec"), [(1, 0, "raw"), (4, 2, "int8"), ("auto", 1, "topk")])
def test_parameters_agree_on_redis(request, server, parts, slack, codec):
    buses = redis_buses(3, request.getfixturevalue(server), f"agree{next(RUNS)}")
    mine, mean = agree(buses, 500, 20, [0, 1], parts, slack, codec)
    np.testing.assert_array_equal(mine[1], mine[0])
    np.testing.assert_array_equal(mine[2], mine[0])
    np.testing.assert_allclose(mine[0], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("server", ["fake_url", "redis_url"])
@pytest.mark.parametrize(
    ("parts", "slack", "codec"),
    [
        (1, 0, "raw"),
        (4, 2, "raw"),
        (3, 1, "float16"),
        (4, None, "raw"),
        (2, 1, "int8"),
        ("auto", 2, "topk"),
        (1, 2, "sign"),
    ],
)
def test_conservation_on_redis(request, server, parts, slack, codec):
    url = request.getfixturevalue(server)
    buses = redis_buses(3, url, f"conserve{next(RUNS)}")
    result = conserve(buses, 500, 20, [0, 1], parts, slack, codec)
    check_conserved(*result, exact=codec == "raw")


def test_chunked_messages_on_redis(redis_url):
    # A round of 700,000 float32 values has eleven chunks.
    buses = redis_buses(2, redis_url, f"chunks{next(RUNS)}")
    check_conserved(*conserve(buses, 700_000, 6, [0], slack=1), exact=True)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_slack_zero_is_the_average_in_worker_order_bit_for_bit(workers):
    size, steps = 300, 10
    layout = make_layout(size)
    fleet = Fleet(memory_buses(workers), layout, size, Options(slack=0, reduce="mean", lease_s=20))
    gradients = np.random.default_rng(0).standard_normal((steps, workers, size)).astype(np.float32)

    def job(worker, exchange):
        return [exchange.exchange(gradients[step, worker].copy()) for step in range(steps)]

    expected = []
    for step in range(steps):
        total = np.zeros(size, dtype=np.float32)
        for worker in range(workers):
            total += gradients[step, worker]
        expected.append(total / np.float32(workers))
    for combined in fleet.run(job):
        np.testing.assert_array_equal(np.array(combined), np.array(expected))


def test_no_worker_leads_a_slow_one_by_more_than_the_bound():
    slack, steps = 2, 30
    fleet = Fleet(memory_buses(3), make_layout(10, 2), 10, Options(slack=slack, lease_s=20))
    at = [0, 0, 0]
    worst = []

    def job(worker, exchange):
        pause = threading.Event()
        for _ in range(steps):
            if worker == 0:
                pause.wait(0.003)
            exchange.exchange(np.ones(10, dtype=np.float32))
            at[worker] += 1
            worst.append(max(at) - min(at))
        exchange.finish(np.zeros(10, dtype=np.float32))

    fleet.run(job)
    assert slack <= max(worst) <= slack + 1


def test_a_worker_that_goes_silent_is_dropped_and_the_others_finish():
    rules = Options(slack=0, reduce="mean", lease_s=3.0)
    fleet = Fleet(memory_buses(3), make_layout(10), 10, rules)
    met = threading.Barrier(3)

    def job(worker, exchange):
        exchange.exchange(np.full(10, 1.0, dtype=np.float32))
        met.wait(20)
        if worker == 2:
            fleet.rendezvous[2].lease._closing.set()  # The heartbeat ends, as after kill -9.
            return None
        started = time.monotonic()
        combined = exchange.exchange(np.full(10, float(worker + 1), dtype=np.float32))
        assert time.monotonic() - started < 10
        return combined

    results = fleet.run(job)
    np.testing.assert_array_equal(results[0], np.full(10, 1.5, dtype=np.float32))
    np.testing.assert_array_equal(results[1], results[0])
    assert sum("dropped from the bound: its lease has expired" in line for line in fleet.lines) == 2


def test_states_are_averaged_over_the_members():
    layout = make_layout(10, state_size=3)
    fleet = Fleet(memory_buses(3), layout, 10, Options(slack=1, sync_periods=(1,), lease_s=20))

    def job(worker, exchange):
        exchange.exchange(np.zeros(10, dtype=np.float32))
        return exchange.average(np.full(3, worker, dtype=np.float32))

    for result in fleet.run(job):
        np.testing.assert_array_equal(result, np.ones(3, dtype=np.float32))


def test_all_stop_after_the_same_step():
    fleet = Fleet(memory_buses(3), make_layout(10), 10, Options(slack=2, lease_s=20))

    def job(worker, exchange):
        for step in range(1, 200):
            exchange.exchange(np.zeros(10, dtype=np.float32))
            if worker == 1 and step == 20:
                exchange.ask_to_stop(step)
            if worker == 2 and step == 21:
                exchange.ask_to_stop(step)
            if exchange.gate.stop_at is not None and step >= exchange.gate.stop_at:
                exchange.leave(is_resumable=True)
                return step
        return None

    assert fleet.run(job) == [23, 23, 23]


def test_schedule_covers_everything_once_in_parts_rounds():
    schedule = Schedule(17, 4)
    seen = np.zeros(17, dtype=int)
    for round in range(1, 9):
        part = schedule.slice(round)
        assert part == schedule.slices[(round - 1) % 4]
        seen[part.start : part.stop] += 1
    assert (seen == 2).all()
    later = schedule.changed(3, 6)
    assert (later.parts, later.since, [later.slice(round) for round in (7, 8, 9, 10)]) == (
        3,
        6,
        [*later.slices, later.slices[0]],
    )


@pytest.mark.parametrize("codec", ["raw", "float16", "int8"])
@pytest.mark.parametrize(("parts", "slack"), [(1, 0), (1, 2), (2, 5), (4, 2), (4, 8)])
def test_a_difference_is_corrected_once_however_late(codec, parts, slack):
    """Workers that begin apart and change nothing meet in their mean and stay there; no difference grows."""
    workers, size = 3, 24
    layout = make_layout(size, parts, codec, may_be_whole=True)
    first = np.zeros(size, dtype=np.float32)
    fleet = Fleet(memory_buses(workers), layout, size, Options(slack=slack, exchange="parameters", **PATIENT), first)
    apart = np.random.default_rng(1).standard_normal((workers, size)).astype(np.float32)

    def job(worker, exchange):
        mine, distances = apart[worker].copy(), []
        for _ in range(10 * (slack + 1) + 4 * parts):
            exchange.exchange(mine)
            distances.append(np.abs(mine - apart.mean(axis=0)).max())
        return distances

    for distances in fleet.run(job):
        assert max(distances) <= distances[0] * 1.01 + 1e-3
        assert distances[-1] < 1e-3
