"""`python -m degan.generate RUN --count N --out PATH`: samples from a trained generator.

The ending of PATH selects the output: FILE.png one grid; FILE.npz one uint8 array `images` of shape
(N, H, W, C) (points: float32 `points` of shape (N, 2)); anything else is a folder, one picture a sample.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from config import UsageError


def main(argv: list[str]) -> int:
    """Generate samples; returns 0, or 2 with one line when a person has to fix something."""
    parser = argparse.ArgumentParser(prog="python -m degan.generate", description="Samples from a trained generator.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--worker", type=int, metavar="N", help="whose generator (default: the lowest that has one)")
    parser.add_argument("--best", action="store_true", help="the checkpoint that measured best, not the newest")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="how many samples (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the latents (default: 0)")
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="FILE.png, FILE.npz, or DIR/ for one file a sample"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.count < 1:
            raise UsageError(f"--count {arguments.count}: expected at least 1")
        if not 0 <= arguments.seed < 2**63:
            raise UsageError(f"--seed {arguments.seed}: expected 0 to {2**63 - 1}")
        _generate(Path(arguments.run), arguments.worker, arguments.best, arguments.count, arguments.seed, arguments.out)
    except UsageError as error:
        print(f"degan.generate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"degan.generate: cannot write {arguments.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _generate(run: Path, worker: int | None, best: bool, count: int, seed: int, out: str) -> None:
    import numpy as np
    import torch

    from degan.artifacts.pictures import grid, save_png, to_uint8
    from degan.artifacts.saved import Saved

    saved = Saved.load(run, worker, best)
    samples = saved.sample(count, torch.Generator().manual_seed(seed))
    path, is_image = Path(out), len(saved.sample_shape) == 3
    if not out.endswith("/"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if out.endswith(".png"):
        save_png(path, grid(samples, math.ceil(math.sqrt(count))))
    elif out.endswith(".npz"):
        np.savez_compressed(path, **({"images": to_uint8(samples)} if is_image else {"points": samples.numpy()}))
    elif is_image:
        path.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(to_uint8(samples)):
            save_png(path / f"{index:06d}.png", picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    else:
        raise UsageError("points have no picture each; use FILE.png for a scatter plot or FILE.npz for the points")
    print(f"{count} samples of worker {saved.worker} after step {saved.step} in {out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
