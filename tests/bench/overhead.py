"""The cost of the exchange in a step: two workers that exchange, against the same two alone, on the same cores.

The workers are real processes with a real redis-server each. The two kinds of run take turns; a pair of neighbours
gives a ratio, and the median of the ratios is compared with the bar.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import processes
from tests.bench.processes import Reading
from tests.bench.table import finish, show

BAR = 1.10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    processes.add_data_option(parser)
    parser.add_argument("--model", default="degan", help="degan (4.24 million values), dcgan, lsgan or mlp")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", default="4")
    parser.add_argument("--slack", default="2")
    parser.add_argument("--codec", default="float16")
    parser.add_argument("--pairs", type=int, default=3, help="how often each kind of run is made")
    parser.add_argument("--warm-steps", type=int, default=5, help="steps that are not counted")
    parser.add_argument("--seconds", type=float, default=25, help="of each run that are")
    return parser.parse_args()


def read(options: argparse.Namespace, is_exchanging: bool) -> Reading:
    """One run of either kind."""
    settings = [*processes.data_settings(options.data), f"model.name={options.model}"]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(processes.new_folder())
        servers = []
        if is_exchanging:
            settings += [f"mode.parts={options.parts}", f"mode.slack={options.slack}", f"mode.codec={options.codec}"]
            servers = [
                stack.enter_context(processes.redis_server(folder / f"redis{k}")) for k in range(options.workers)
            ]
        else:
            settings.append("mode.name=local")
        peers = [server.url for server in servers] or options.workers
        file = processes.experiment(folder, peers, [*settings, *options.set])
        commands = processes.worker_commands(file, folder / "run", options.workers)
        (folder / "run").mkdir()
        return processes.read_workers(commands, folder / "run", options.warm_steps, 0, options.seconds, servers)


def main() -> int:
    options = arguments()
    processes.end_tidily()
    rows = []
    for pair in range(options.pairs):
        local, exchanging = read(options, False), read(options, True)
        rows.append(
            {
                "pair": pair + 1,
                "local step_s": local.step_s,
                "step_s": exchanging.step_s,
                "ratio": exchanging.step_s / local.step_s,
                "exchange_s": exchanging.per_step("exchange_s"),
                "wait_s": exchanging.per_step("wait_s"),
                "local CPU s": local.workers_cpu_s / local.steps / options.workers,
                "CPU s": exchanging.workers_cpu_s / exchanging.steps / options.workers,
                "Redis CPU s": exchanging.servers_cpu_s / exchanging.steps / options.workers,
                "sent MB": exchanging.grown("sent_bytes") / 1e6,
                "steps": exchanging.steps,
            }
        )
        print(f"pair {pair + 1} of {options.pairs}: ratio {rows[-1]['ratio']:.3f}", flush=True)
    show(
        f"{options.workers} workers, {options.model}, parts {options.parts}, slack {options.slack}, {options.codec}; "
        "figures are of one step of one worker",
        rows,
    )
    medians = {
        key: statistics.median(row[key] for row in rows)
        for key in rows[0]
        if key != "pair" and all(row[key] is not None for row in rows)
    }
    ratio = medians["ratio"]
    bars = [("step time over local, median", ratio, BAR, ratio <= BAR)]
    setup = {"model": options.model, "workers": options.workers, "parts": options.parts, "slack": options.slack}
    return finish("overhead", bars, {**setup, "data": options.data is not None, "medians": medians, "pairs": rows})


if __name__ == "__main__":
    sys.exit(main())
