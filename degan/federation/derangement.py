"""The swap of discriminators: a random permutation in which no worker keeps its own; pure.

How it works: permutations are drawn until one has no fixed point. About every third permutation has none (1/e of them;
every second of two workers). Each derangement is equally likely, because each permutation is.

What always holds: the result depends on the seed, the round and the set of workers only, never on the order in which
they are listed. So every worker computes the same result by itself.

Source: the swap of Hardy, Le Merrer, Sericola, "MD-GAN", IPDPS 2019, algorithm 1. There each worker draws another
worker at random. Two may draw the same one, a case that the paper leaves open. A permutation loses no discriminator.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

_PURPOSE = 0x5A1D  # keeps this stream of random numbers apart from others drawn from the same seed


def derangement(seed: int, round: int, workers: Collection[int]) -> dict[int, int]:
    """For each worker the one that gets its discriminator; empty where there are fewer than two workers.

    Args:
        seed: of the experiment, >= 0.
        round: its number, >= 0.
        workers: their numbers, each once, in any order.

    Raises:
        ValueError: a worker is listed twice.
    """
    givers = np.array(sorted(workers), dtype=np.int64)
    if np.unique(givers).size < givers.size:
        raise ValueError(f"a worker is listed twice in {sorted(workers)}")
    if givers.size < 2:
        return {}
    random = np.random.default_rng(np.random.SeedSequence([seed, round, _PURPOSE]))
    while True:
        takers = random.permutation(givers)
        if not (takers == givers).any():
            return {int(giver): int(taker) for giver, taker in zip(givers, takers, strict=True)}
