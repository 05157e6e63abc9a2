"""`python -m degan.evaluate RUN`: measure the newest checkpoints of a run, with the run's own metrics."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from config import UsageError


def main(argv: list[str]) -> int:
    """Evaluate; returns 0, or 2 with one line when a person has to fix something."""
    parser = argparse.ArgumentParser(prog="python -m degan.evaluate", description="Measure a run's newest checkpoints.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--worker", type=int, metavar="N", help="only this worker (default: all)")
    parser.add_argument("--samples", type=int, metavar="N", help="how many (default: the run's evaluate_samples)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the latents (default: 0)")
    parser.add_argument("--inception", metavar="FILE", help="Inception-v3 weights, for FID on Inception features")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override a setting (data.root=...)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line a metric instead of a table")
    arguments = parser.parse_args(argv)
    try:
        if not 0 <= arguments.seed < 2**63:
            raise UsageError(f"--seed {arguments.seed}: expected 0 to {2**63 - 1}")
        _evaluate(arguments)
    except UsageError as error:
        print(f"degan.evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    import torch

    import config
    from config.reader import FILE
    from degan.artifacts.saved import Saved
    from degan.metrics.accuracy import evaluator_of

    run = Path(arguments.run)
    overrides = list(arguments.set)
    if arguments.samples is not None:
        overrides.append(f"run.evaluate_samples={arguments.samples}")
    first = Saved.load(run, arguments.worker)
    settings = config.load(run / FILE, overrides)
    evaluator = evaluator_of(settings, arguments.inception)
    workers = [arguments.worker] if arguments.worker is not None else _with_checkpoints(run, settings.workers)
    for worker in workers:
        saved = first if worker == first.worker else Saved.load(run, worker)
        random = torch.Generator().manual_seed(arguments.seed)
        for metric in saved.measure(evaluator.evaluate, random):
            line = {"worker": worker, "step": saved.step, "metric": metric.name, "value": metric.value}
            if metric.weights_sha256:
                line["weights_sha256"] = metric.weights_sha256
            if arguments.json:
                print(json.dumps(line))
            else:
                sums = f"  weights sha256 {metric.weights_sha256}" if metric.weights_sha256 else ""
                by_class = metric.value if isinstance(metric.value, list) else [metric.value]
                shown = " ".join(f"{value:>10.4g}" for value in by_class)
                print(f"w{worker}  step {saved.step:>6}  {metric.name:<28} {shown}{sums}")


def _with_checkpoints(run: Path, workers: int) -> list[int]:
    from degan.artifacts.checkpoints import Checkpoints

    return [w for w in range(workers) if Checkpoints(run / f"w{w}" / "checkpoints", keep=1).steps()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
