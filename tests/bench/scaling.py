"""The cost of more workers for one worker: bytes, CPU time, threads and memory against their number.

One worker is one process with an `Exchange` and no training: its gradient costs nothing, so rounds follow each other
as fast as the cores allow. All share one redis-server (or `--servers` of them, in turn); a worker follows a server
with one thread, however many workers are on it.

For more workers than one machine can run there is a model, fitted to the measured figures and printed with its
residuals:

    sent bytes = s                received bytes = r (n - 1)
    CPU time = c0 + c1 (n - 1)    threads = t0 + servers followed
    RSS = m0 + m1 servers followed

The bytes and the CPU time are those of one worker and one round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.bench import processes
from tests.bench.table import finish, show

EVEN = 1.05  # The largest over the smallest of a figure that must not depend on n.
PREDICTED = (64, 128)
DEADLINE_S = 240.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--servers", type=int, default=1, help="how many redis-servers; worker w is on w mod this")
    parser.add_argument("--values", type=int, default=100_000, help="of the vector")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--slack", type=int, default=2)
    parser.add_argument("--codec", default="float16")
    parser.add_argument("--pace", type=float, default=0.0, metavar="S", help="least time between rounds; 0 for none")
    parser.add_argument("--repeats", type=int, default=3, help="how often each number of workers is run")
    parser.add_argument("--rounds", type=int, default=800, help="counted with 2 workers; fewer with more")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--urls", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- one worker -----------------------------------------------------------------------------------


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def worker(options: argparse.Namespace) -> None:
    """Exchange a vector, and write down the cost of the counted rounds."""
    from peers.bus.redis.bus import RedisBus
    from peers.exchange.exchange import Exchange
    from peers.exchange.options import Options
    from peers.session.meet import Rendezvous
    from peers.vectors.graph import complete
    from tests.fleets import make_layout

    count, size = len(options.urls), options.values
    layout = make_layout(size, options.parts, options.codec)
    rules = Options(slack=options.slack, keep_rounds=2 * options.slack + 3 + options.parts, lease_s=60.0)
    peers = complete(options.worker, count)
    bus = RedisBus("scaling", options.worker, options.urls, os.urandom(6).hex(), peers, DEADLINE_S, DEADLINE_S)
    failures: list[BaseException] = []
    meeting = Rendezvous(bus, {"size": size}, rules.lease_s, DEADLINE_S, print, failures.append)
    exchange = Exchange(bus, layout, np.zeros(size, dtype=np.float32), rules, print)
    try:
        meeting.claim([])
        exchange.start(meeting.meet([], {}), 0)
        gradient = np.random.default_rng(options.worker).standard_normal(size, dtype=np.float32)
        warm, counted = 10 + 2 * options.parts, options.rounds
        next_s = time.monotonic()
        for number in range(warm + counted):
            if number == warm:
                began, spent = time.monotonic(), cpu_s()
                sent, received = bus.sent_bytes, bus.received_bytes
            exchange.exchange(gradient)
            next_s = max(time.monotonic(), next_s + options.pace)
            time.sleep(max(0.0, next_s - time.monotonic()))
        found = {
            "round_s": (time.monotonic() - began) / counted,
            "cpu_s": (cpu_s() - spent) / counted,
            "sent_bytes": (bus.sent_bytes - sent) / counted,
            "received_bytes": (bus.received_bytes - received) / counted,
            "threads": processes.status("self", "Threads"),
            "rss_mib": processes.status("self", "VmRSS") / 1024,
            "followed": len(bus.servers),
            "is_whole": not exchange.stats()["dropped"] and not failures,
            "has_torch": "torch" in sys.modules,
        }
        exchange.finish(np.zeros_like(gradient))
        meeting.lease.leaving()
        temporary = Path(f"{options.out}.tmp")
        temporary.write_text(json.dumps(found))
        temporary.rename(options.out)
    finally:
        exchange.close()
        meeting.close()
        bus.close()


# --- all workers ----------------------------------------------------------------------------------


def rounds_of(options: argparse.Namespace, count: int) -> int:
    """The number of rounds, smaller for more workers: the time of all workers together grows with the square."""
    return max(60, 2 * options.rounds // count)


def run(options: argparse.Namespace, count: int, servers: int) -> dict:
    """One run of `count` workers; medians over the workers."""
    import redis

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(processes.new_folder())
        started = [stack.enter_context(processes.redis_server(folder / f"redis{k}")) for k in range(servers)]
        urls = [started[number % servers].url for number in range(count)]
        rounds = rounds_of(options, count)
        words = [*("--values", options.values, "--parts", options.parts, "--slack", options.slack)]
        words += ["--codec", options.codec, "--pace", options.pace, "--rounds", rounds, "--urls", *urls]
        outs, logs, children = [], [], []
        for number in range(count):
            outs.append(folder / f"{number}.json")
            logs.append(folder / f"{number}.txt")
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", number, "--out", outs[-1], *words]
            children.append(stack.enter_context(processes.running([str(word) for word in command], logs[-1])))
        deadline = time.monotonic() + DEADLINE_S
        for number, child in enumerate(children):
            while not outs[number].exists():
                processes.check(child, f"worker {number} of {count}", logs[number])
                if time.monotonic() > deadline:
                    sys.exit(f"waited {DEADLINE_S:g} s for worker {number} of {count}:\n{logs[number].read_text()}")
                time.sleep(0.05)
        whole = [json.loads(out.read_text()) for out in outs]
        spent = sum(processes.cpu_s(server.pid) for server in started)
        clients = [stack.enter_context(redis.Redis.from_url(server.url)) for server in started]
        infos = [client.info() for client in clients]
        worker_rounds = count * (rounds + 10 + 2 * options.parts)
    if not all(found["is_whole"] for found in whole):
        sys.exit(f"{count} workers: something was dropped; this is a defect")
    if any(found["has_torch"] for found in whole):
        sys.exit("the exchange has loaded torch; this is a defect")
    keys = ("round_s", "cpu_s", "sent_bytes", "received_bytes", "threads", "rss_mib", "followed")
    return {
        **{key: statistics.median(found[key] for found in whole) for key in keys},
        "redis_cpu_s": spent / worker_rounds,
        "redis_sent_bytes": sum(info["total_net_output_bytes"] for info in infos) / worker_rounds,
        "redis_mib": sum(info["used_memory_peak"] for info in infos) / 2**20,
    }


def median_of(runs: list[dict]) -> dict:
    return {key: statistics.median(found[key] for found in runs) for key in runs[0]}


def fit(counts: list[int], values: list[float], has_constant: bool) -> tuple[float, float, list[float]]:
    """Fit `c0 + c1 (n - 1)` by least squares; returns c0, c1 and the residuals as shares of the values.

    The fit is weighted by the value, so that a small number of workers counts as much as a large one.
    """
    others, measured = np.array(counts, dtype=float) - 1, np.array(values, dtype=float)
    columns = np.stack([np.full_like(others, float(has_constant)), others], axis=1) / measured[:, None]
    (c0, c1), *_ = np.linalg.lstsq(columns, np.ones_like(measured), rcond=None)
    return float(c0), float(c1), ((c0 + c1 * others) / measured - 1).tolist()


def spread(values: list[float]) -> float:
    return max(values) / min(values)


def main() -> int:
    options = arguments()
    if options.worker is not None:
        worker(options)
        return 0
    processes.end_tidily()
    counts = sorted(options.workers)
    kept: dict[tuple[int, int], list[dict]] = {}
    # The last two runs are for threads and memory alone: several servers, as on several hosts.
    plans = [(count, min(options.servers, count)) for count in counts] + [(4, 2), (4, 4)]
    for repeat in range(options.repeats):
        for count, servers in plans:
            if repeat == 0 or (count, servers) in plans[: len(counts)]:
                kept.setdefault((count, servers), []).append(run(options, count, servers))
        print(f"repeat {repeat + 1} of {options.repeats} done", flush=True)
    points = {plan: median_of(runs) for plan, runs in kept.items()}
    swept = [points[plan] for plan in plans[: len(counts)]]
    rows = [
        {
            "workers": count,
            "Redis": servers,
            "sent kB": point["sent_bytes"] / 1e3,
            "received kB": point["received_bytes"] / 1e3,
            "received kB / (n-1)": point["received_bytes"] / 1e3 / (count - 1),
            "CPU ms": 1e3 * point["cpu_s"],
            "threads": int(point["threads"]),
            "RSS MiB": point["rss_mib"],
            "Redis CPU ms": 1e3 * point["redis_cpu_s"],
            "Redis sends kB": point["redis_sent_bytes"] / 1e3,
            "Redis peak MiB": point["redis_mib"],
            "round ms": 1e3 * point["round_s"],
        }
        for (count, servers), point in points.items()
    ]
    size = f"{options.values:,} values, parts {options.parts}, slack {options.slack}, {options.codec}"
    show(f"one worker and one round ({size}); Redis memory is of all servers", rows)

    threads = swept[0]["threads"] - swept[0]["followed"]
    models = {
        "received_bytes": fit(counts, [point["received_bytes"] for point in swept], has_constant=False),
        "cpu_s": fit(counts, [point["cpu_s"] for point in swept], has_constant=True),
        "redis_cpu_s": fit(counts, [point["redis_cpu_s"] for point in swept], has_constant=True),
    }
    sent = statistics.median(point["sent_bytes"] for point in swept)
    models["sent_bytes"] = sent, 0.0, [sent / point["sent_bytes"] - 1 for point in swept]
    models_rows = []
    for name, (c0, c1, residuals) in models.items():
        line = {"of a worker and round": name, "constant": c0, "per other worker": c1}
        line |= {f"n = {count}": c0 + c1 * (count - 1) for count in PREDICTED}
        line |= {f"off at {count}": f"{residual:+.1%}" for count, residual in zip(counts, residuals, strict=True)}
        models_rows.append(line)
    show("the model, fitted to the above: what it predicts, and how far it is off where it was measured", models_rows)
    several = [point for (count, _), point in points.items() if count == 4]
    rss = np.polyfit([point["followed"] for point in several], [point["rss_mib"] for point in several], 1)
    most = PREDICTED[-1]
    print(f"  threads = {threads:g} + servers followed: with a Redis each, {threads + most - 1:g} at n = {most}")
    print(f"  RSS MiB = {rss[1]:.3g} + {rss[0]:.2g} a server followed: with a Redis each, {rss @ (most - 1, 1):.3g}")

    even_sent = spread([point["sent_bytes"] for point in swept])
    even_received = spread([p["received_bytes"] / (n - 1) for n, p in zip(counts, swept, strict=True)])
    beyond = max(point["threads"] - point["followed"] for point in points.values()) - threads
    bars = [
        ("sent bytes, most over least", even_sent, EVEN, even_sent <= EVEN),
        ("received bytes / (n - 1), most over least", even_received, EVEN, even_received <= EVEN),
        ("threads beyond the model", beyond, 0, beyond <= 0),
    ]
    peer_info = {"values": options.values, "parts": options.parts, "slack": options.slack, "servers": options.servers}
    model = {line.pop("of a worker and round"): line for line in models_rows} | {
        "threads": threads,
        "rss_mib": rss.tolist()[::-1],
    }
    return finish("scaling", bars, {**peer_info, "points": rows, "model": model})


if __name__ == "__main__":
    sys.exit(main())
