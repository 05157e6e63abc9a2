"""The cost of a thin wire: workers in network namespaces, against the same workers alone and Gloo's all_reduce.

Each worker and its redis-server have a network namespace of their own, whose link is shaped in both directions. The
rates (steps a second of one worker) are compared with those of unshaped workers that train alone on the same cores,
and with data parallel training on the same links: the same pair, the same batches, the mean of the gradients by
torch.distributed's all_reduce over Gloo. The kinds of run take turns, and each rate of a link lies between two runs
of the workers alone: the difference of these is the noise of the machine, and their mean is the base of the ratio. The
reading of a run that exchanges begins after a while, and after the first time that `parts: auto` has measured the
wire; the table has the former values of `parts` as well.

The model is the mnist experiment's. With `--model dcgan` a step is tens of milliseconds of computing, so the exchange's
share of two cores that four workers fill shows most; that is the harder case.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from peers.exchange.auto import EARLY_STEPS
from tests.bench import processes
from tests.bench.namespaces import DEVICE, Namespaces, namespaces, refuse_unless_possible
from tests.bench.processes import Reading, Server
from tests.bench.table import finish, show

KEPT = {100.0: 0.90, 20.0: 0.75}  # The least share of the unshaped rate, by link rate in Mbit/s.
FASTER_THAN_GLOO, THIN_MBIT = 3.0, 20.0  # The bar of the thinnest link, if it is as thin as this.
GLOO_PORT = 29500


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    processes.add_data_option(parser)
    parser.add_argument(
        "--model", default="degan", help="of the mnist experiment: its own, degan (4.24 million values); or dcgan"
    )
    parser.add_argument("--width", type=int, default=16, help="of dcgan")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a setting")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--parts", default="auto", help="a number, or auto")
    parser.add_argument("--slack", default="2")
    parser.add_argument("--codec", default="float16")
    parser.add_argument("--mbit", type=float, nargs="+", default=list(KEPT), help="rates of the links")
    parser.add_argument("--gloo-dtype", default="float32", choices=["float32", "float16"], help="what all_reduce sends")
    parser.add_argument("--rounds", type=int, default=1, help="how often each kind of run is made")
    parser.add_argument("--seconds", type=float, default=20, help="of each run that are counted, or more")
    parser.add_argument("--steps", type=int, default=5, help="steps of each worker that are counted at least")
    parser.add_argument("--all-reduce", nargs=4, metavar=("RANK", "FILE", "RUN", "URL"), help=argparse.SUPPRESS)
    return parser.parse_args()


class Bench:
    """One run of each kind, on the same links.

    Args:
        options: the command line's.
        wire: the namespaces.
    """

    def __init__(self, options: argparse.Namespace, wire: Namespaces):
        self._options, self._wire = options, wire
        self._settings = [*processes.data_settings(options.data), f"model.name={options.model}"]
        if options.model == "dcgan":
            self._settings.append(f"model.width={options.width}")

    def local(self) -> Reading:
        """Each worker alone: no exchange, no namespace."""
        with processes.new_folder() as folder:
            file = self._experiment(folder, self._options.workers, "mode.name=local")
            commands = processes.worker_commands(file, folder / "run", self._options.workers)
            return self._read(commands, folder / "run", 3, 0)

    def exchange(self, mbit: float) -> Reading:
        """Partial exchange over links of this rate: the second half of the run."""
        options, wire = self._options, self._wire
        wire.shape(mbit)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(processes.new_folder())
            servers = [stack.enter_context(self._redis(folder, k)) for k in range(options.workers)]
            mode = [f"mode.parts={options.parts}", f"mode.slack={options.slack}", f"mode.codec={options.codec}"]
            file = self._experiment(folder, [server.url for server in servers], *mode)
            prefixes = [wire.prefix(k) for k in range(options.workers)]
            commands = processes.worker_commands(file, folder / "run", options.workers, prefixes)
            # With slow steps the warm-up in seconds alone would end before the first measurement of the wire.
            warm_steps = EARLY_STEPS + 1 if options.parts == "auto" else 3
            return self._read(commands, folder / "run", warm_steps, options.seconds, servers)

    def all_reduce(self, mbit: float) -> Reading:
        """Data parallel training over links of this rate."""
        options, wire = self._options, self._wire
        wire.shape(mbit)
        with processes.new_folder() as folder:
            run, url = folder / "run", f"tcp://{wire.address(0)}:{GLOO_PORT}"
            file = self._experiment(folder, options.workers, "mode.name=local")
            commands = []
            for rank in range(options.workers):
                words = ["--all-reduce", str(rank), str(file), str(run), url, "--gloo-dtype", options.gloo_dtype]
                commands.append([*wire.prefix(rank), sys.executable, str(Path(__file__).resolve()), *words])
            # A step over the thinnest link takes 12 s.
            return processes.read_workers(commands, run, 1, 0, options.seconds)

    def _read(
        self,
        commands: list[list[str]],
        run: Path,
        warm_steps: int,
        warm_s: float,
        servers: Sequence[Server] = (),
    ) -> Reading:
        options = self._options
        return processes.read_workers(commands, run, warm_steps, warm_s, options.seconds, servers, options.steps)

    def _experiment(self, folder: Path, peers: object, *more: str) -> Path:
        (folder / "run").mkdir()
        return processes.experiment(folder, peers, [*self._settings, *more, *self._options.set])

    def _redis(self, folder: Path, k: int) -> contextlib.AbstractContextManager[Server]:
        return processes.redis_server(folder / f"redis{k}", self._wire.address(k), self._wire.prefix(k))


def all_reduce_worker(rank: int, file: str, run: Path, url: str, dtype: str) -> None:
    """Train by the mean of all workers' gradients, until killed."""
    import torch
    import torch.distributed as dist

    import config
    from degan.runs.journal import Journal
    from degan.worker.setup import Setup

    settings = config.load(file)
    setup = Setup.build(settings, rank)
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=settings.workers)
    (run / f"w{rank}").mkdir(parents=True)
    journal, pair, trained_s = Journal(run, rank), setup.learner, 0.0
    whole = (0, pair.size)
    for step in range(1, settings.run.steps + 1):
        began = time.monotonic()
        gradient, losses = pair.gradients(whole, setup.shard.next_batch())
        shared = torch.from_numpy(gradient).to(getattr(torch, dtype))
        waited = time.monotonic()
        dist.all_reduce(shared)
        wait_s = time.monotonic() - waited
        pair.apply(whole, (shared.float() / settings.workers).numpy())
        trained_s += time.monotonic() - began
        journal.stats({"step": step, "time_s": trained_s, "wait_s": wait_s, **losses})


def parts_over_time(reading: Reading) -> str:
    """The values of worker 0's `parts` over the whole run, as `value from step`."""
    changes: list[tuple[int, int]] = []
    for line in reading.before[0] + reading.lines[0]:
        if "parts" in line and (not changes or changes[-1][0] != line["parts"]):
            changes.append((line["parts"], line["step"]))
    shown = [f"{parts} from {step}" for parts, step in changes]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:6], "...", shown[-1]])


def row(kind: str, reading: Reading, local: float) -> dict:
    """The figures of a run; all but the rate are for one step of one worker."""
    rate, all_steps = 1 / reading.step_s, reading.steps * len(reading.lines)
    found = {"run": kind, "steps/s": rate, "of local": rate / local, "steps": reading.steps}
    found["wait_s"] = reading.per_step("wait_s")
    found["CPU s"] = reading.workers_cpu_s / all_steps
    if kind.startswith("degan"):
        found["Redis CPU s"] = reading.servers_cpu_s / all_steps
        found["exchange_s"] = reading.per_step("exchange_s")
        found["sent kB"] = reading.grown("sent_bytes") / 1e3
        found["staleness"] = reading.per_step("staleness_mean")
        found["parts"] = parts_over_time(reading)
    return found


def main() -> int:
    options = arguments()
    if options.all_reduce:
        rank, file, run, url = options.all_reduce
        all_reduce_worker(int(rank), file, Path(run), url, options.gloo_dtype)
        return 0
    refuse_unless_possible()
    processes.end_tidily()
    rates, rows, kinds = sorted(options.mbit, reverse=True), [], {}
    with namespaces(options.workers) as wire:
        links = []
        for mbit in [None, *rates]:
            wire.shape(mbit)
            links.append(
                {"link": "unshaped" if mbit is None else f"{mbit:g} Mbit/s", "TCP Mbit/s": wire.measure_mbit()}
            )
        show("what a plain TCP transfer between two namespaces gets", links)
        bench = Bench(options, wire)
        for turn in range(options.rounds):
            before, found = bench.local(), []
            for mbit in rates:
                ours, theirs, after = bench.exchange(mbit), bench.all_reduce(mbit), bench.local()
                local = statistics.mean(1 / alone.step_s for alone in (before, after))
                found.append(row("local", before, local))
                found.append(row(f"degan {mbit:g}", ours, local))
                found.append(row(f"gloo {mbit:g}", theirs, local))
                before = after
            found.append(row("local", before, local))
            for one in found:
                kinds.setdefault(one["run"], []).append(one)
            rows += [{"turn": turn + 1, **one} for one in found]
            print(f"turn {turn + 1} of {options.rounds} done", flush=True)
    show(
        f"{options.workers} workers, {options.model}, parts {options.parts}, slack {options.slack}, {options.codec}; "
        f"Gloo sends {options.gloo_dtype}; rates of links in Mbit/s",
        rows,
    )
    kept = {kind: statistics.median(one["of local"] for one in those) for kind, those in kinds.items()}
    bars = []
    for mbit in rates:
        if mbit in KEPT:
            share = kept[f"degan {mbit:g}"]
            bars.append((f"degan over local, {mbit:g} Mbit/s", share, KEPT[mbit], share >= KEPT[mbit]))
    if rates[-1] <= THIN_MBIT:
        thinnest = f"{rates[-1]:g}"
        pairs = zip(kinds[f"degan {thinnest}"], kinds[f"gloo {thinnest}"], strict=True)
        times = statistics.median(ours["steps/s"] / theirs["steps/s"] for ours, theirs in pairs)
        bars.append((f"degan over Gloo, {thinnest} Mbit/s", times, FASTER_THAN_GLOO, times >= FASTER_THAN_GLOO))
    peer_info = {"model": options.model, "workers": options.workers, "parts": options.parts, "slack": options.slack}
    return finish("thin_wire", bars, {**peer_info, "data": options.data is not None, "links": links, "runs": rows})


if __name__ == "__main__":
    sys.exit(main())
