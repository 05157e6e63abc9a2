"""The cohort of a federated round, and the weight of each answer: pure functions of what the leader knows.

How balanced sampling works: for each class, the leader counts the samples that all cohorts so far have held. The
leader fills a cohort one worker at a time: it picks the class that has been seen least, and adds the next worker that
holds this class, round robin. So classes that few workers hold are trained on as often as the others.

What always holds: no function here reads a clock, or a random generator that is kept between calls. `uniform` depends
on (seed, round) only, `balanced` on its state only. This state is a few integers. A leader announces them with each
round, so that its successor continues where the leader stopped. The order of `live`, of `answered` and of a mapping has
no effect.

Source: `uniform` and size weights, McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", 2017, algorithm 1. `balanced` and KL weights, Guerraoui, Guirguis, Kermarrec, Le Merrer,
"FeGAN: Scaling Distributed GANs", Middleware 2020, its balanced sampling and its KL weighting, with the released
code (github.com/LPD-EPFL/FeGAN, dist-lsgan.py: init_groups, run, average_models); departures are named below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Weighting = Literal["uniform", "size", "kl"]
Scheme = Literal["exp", "linear", "dirac"]
Sign = Literal["divergent_less", "as_released"]

_PURPOSE = 0xC040  # keeps this stream of random numbers apart from others drawn from the same seed


@dataclass(frozen=True)
class BalancedState:
    """The state of balanced sampling between rounds; plain integers, so that it fits a message or a checkpoint.

    Attributes:
        counts: for each class, the samples of it that all cohorts so far have held, >= 0.
        turns: for each class, the worker that was last added for this class, -1 for none.
    """

    counts: tuple[int, ...]
    turns: tuple[int, ...]

    @classmethod
    def fresh(cls, classes: int) -> BalancedState:
        """The state before the first round."""
        return cls((0,) * classes, (-1,) * classes)

    def to_plain(self) -> dict[str, list[int]]:
        """The state as lists of integers, for MessagePack or JSON."""
        return {"counts": list(self.counts), "turns": list(self.turns)}

    @classmethod
    def from_plain(cls, plain: object) -> BalancedState:
        """The inverse of `to_plain`.

        Raises:
            ValueError: the value is not of that form.
        """
        if not isinstance(plain, dict) or plain.keys() != {"counts", "turns"}:
            raise ValueError("the state of balanced sampling is a mapping of counts and turns")
        for key, least in (("counts", 0), ("turns", -1)):
            values = plain[key]
            if not isinstance(values, list | tuple):
                raise ValueError(f"the {key} of balanced sampling are a list, got {type(values).__name__}")
            if any(type(value) is not int or not least <= value < 2**63 for value in values):
                raise ValueError(f"the {key} of balanced sampling are integers from {least} on")
        if not plain["counts"] or len(plain["counts"]) != len(plain["turns"]):
            raise ValueError(
                f"balanced sampling has one count and one turn a class, got {len(plain['counts'])} and "
                f"{len(plain['turns'])}"
            )
        return cls(tuple(plain["counts"]), tuple(plain["turns"]))


def cohort_size(fraction: float, live: int) -> int:
    """How many workers a round has: `fraction` of the live ones, at least 1.

    A half is rounded to the even number (Python's `round`): 0.5 x 5 workers are 2, 0.5 x 7 are 4.

    Raises:
        ValueError: `fraction` is outside (0, 1], or no worker is live.
    """
    if not 0 < fraction <= 1 or live < 1:
        raise ValueError(f"a cohort is a fraction in (0, 1] of at least 1 worker, not {fraction} of {live}")
    return max(1, round(fraction * live))


def quorum(share: float, asked: int) -> int:
    """How many answers a round needs: `share` of the workers that were asked, rounded up.

    Rounding alone can put a product of floats above its whole number. So 0.28 x 25 workers are 7, not 8.
    """
    return math.ceil(round(share * asked, 6))


def uniform(live: Sequence[int], size: int, seed: int, round: int) -> list[int]:
    """`size` of the live workers, each set of them equally likely; in worker order.

    Args:
        live: worker numbers, each once, in any order.
        size: how many, 1 to `len(live)`.
        seed: of the experiment, >= 0.
        round: its number, >= 0.

    Raises:
        ValueError: a worker is listed twice, or `size` does not fit.
    """
    workers = _members(live, size)
    random = np.random.default_rng(np.random.SeedSequence([seed, round, _PURPOSE]))
    return sorted(workers[at] for at in random.choice(len(workers), size=size, replace=False))


def balanced(
    live: Sequence[int], size: int, histograms: Mapping[int, np.ndarray], state: BalancedState
) -> tuple[list[int], BalancedState]:
    """`size` of the live workers, such that all classes have been seen about equally often; and the next state.

    Until the cohort is full: take the class with the smallest count that a worker outside the cohort holds, add the
    holder that follows the class' turn in worker order, and add its whole histogram to the counts. Of classes with
    equal counts the lowest goes first, as in the released code. The histogram of the added worker then breaks the
    tie. Nothing is drawn, so there is no seed and no round.

    Workers without a sample of any class are added only when no other worker is left, the lowest first.

    Departure from the released code: a class that no worker outside the cohort holds is skipped. In the released code
    such a class ends the cohort early, and hangs the server if no worker at all holds the class.

    Args:
        live: worker numbers, each once, in any order.
        size: how many, 1 to `len(live)`.
        histograms: for (at least) each live worker its samples of each class, integers `(classes,)`, >= 0.
        state: the one after the last round; `BalancedState.fresh(classes)` before the first round.

    Returns:
        The cohort in worker order, and the state for the next round.

    Raises:
        ValueError: a worker is listed twice, `size` does not fit, a histogram is missing or of another length.
    """
    workers = _members(live, size)
    rows = _table(workers, histograms)
    if rows.shape[1] != len(state.counts) or rows.shape[1] != len(state.turns):
        raise ValueError(f"balanced sampling has seen {len(state.counts)} classes, the histograms have {rows.shape[1]}")
    counts, turns = list(state.counts), list(state.turns)
    outside = np.ones(len(workers), dtype=bool)
    while np.count_nonzero(~outside) < size:
        holds = (rows > 0) & outside[:, None]  # (workers, classes)
        classes = np.flatnonzero(holds.any(axis=0))
        if len(classes):
            name = min(classes.tolist(), key=counts.__getitem__)  # the first of equal classes
            at = _next(workers, holds[:, name], turns[name])
            turns[name] = workers[at]
        else:
            at = int(np.flatnonzero(outside)[0])
        outside[at] = False
        counts = [count + more for count, more in zip(counts, rows[at].tolist(), strict=True)]
    cohort = [worker for worker, left in zip(workers, outside, strict=True) if not left]
    return cohort, BalancedState(tuple(counts), tuple(turns))


def _next(workers: list[int], holds: np.ndarray, turn: int) -> int:
    """The position in `workers` of the first holder after worker `turn`, cyclically; `holds` is bool `(workers,)`."""
    holders = np.flatnonzero(holds).tolist()
    return next((at for at in holders if workers[at] > turn), holders[0])


def weights(
    weighting: Weighting,
    scheme: Scheme,
    sign: Sign,
    answered: Sequence[int],
    sizes: Mapping[int, int],
    histograms: Mapping[int, np.ndarray] | None,
) -> dict[int, float]:
    """The weight of each answer in the mean; each weight is at least 0, their sum is 1.

    `uniform` and `size` read only the workers that answered. With `kl` worker j's score is
    KL(histogram_j || global histogram) x size_j / total size, where both histograms are shares and the size is the sum
    of the histogram. "Global" and "total" are over all workers in `histograms`, with or without an answer. The
    released code takes them over the whole training set, as constants, so that a score does not depend on which
    workers answer. The histograms of all workers that ever sent one are the nearest to this that a leader knows.

    The weight, before all are divided by their sum:

    | scheme | divergent_less | as_released |
    | --- | --- | --- |
    | exp | exp(-score) | exp(+score) |
    | linear | size / (1 + KL) | score |
    | dirac | as exp; then weights under half of the uniform share become 0 | the same, with exp(+score) |

    As released, a more divergent worker weighs more. The released weights of `linear` are the scores themselves.
    Departure: the released dirac thresholds normalised scores at 0.5, which leaves one or two workers, or none and
    then 0/0. Half of the uniform share always leaves the heaviest. Where all weights would be 0 (no worker has samples;
    `linear` as released when no worker diverges) they are uniform.

    The largest possible effect: the global histogram includes worker j's, so KL is at most log(total size / size_j) and
    a score at most max of x log(1/x) = 1/e. Weights by `exp` therefore differ by at most a factor e^(1/e) = 1.44, and
    no such weight is ever under half of the uniform share: `dirac` gives what `exp` gives. Sizes count in `linear`.

    Args:
        answered: worker numbers, each once, in any order; at least one.
        sizes: for `size`, the samples of (at least) each worker that answered, >= 0.
        histograms: for `kl`, the samples of each class of every known worker, integers `(classes,)`, >= 0.

    Returns:
        The weight of each worker that answered, in worker order.

    Raises:
        ValueError: a setting is unknown, no worker answered, or a size or histogram is missing.
    """
    if not len(answered):
        raise ValueError("nobody answered, so there is nothing to weigh")
    workers = _members(answered, 1)
    if weighting == "uniform":
        raw = np.ones(len(workers))
    elif weighting == "size":
        raw = _sizes(workers, sizes)
    elif weighting == "kl":
        if not histograms:
            raise ValueError("weighting kl needs the workers' label histograms (share_histograms: true)")
        raw = _by_divergence(scheme, sign, workers, histograms)
    else:
        raise ValueError(f"no weighting {weighting!r}; uniform, size or kl")
    if raw.sum() == 0:
        raw = np.ones(len(workers))
    return dict(zip(workers, (raw / raw.sum()).tolist(), strict=True))


def _by_divergence(scheme: Scheme, sign: Sign, workers: list[int], histograms: Mapping[int, np.ndarray]) -> np.ndarray:
    """Weights before they are divided by their sum: float64 `(workers,)`."""
    if sign not in ("divergent_less", "as_released"):
        raise ValueError(f"no sign {sign!r}; divergent_less or as_released")
    everyone = _table(sorted(histograms), histograms).sum(axis=0)
    rows = _table(workers, histograms)
    sizes, total = rows.sum(axis=1), max(int(everyone.sum()), 1)
    per_row = np.maximum(sizes, 1).astype(np.float64)[:, None]  # a worker without samples has a share of 0 in all
    shares = rows / per_row  # (workers, classes)
    # A class of one worker is in the global histogram. Only 0 log 0 = 0 needs care; a ratio of 1 gives it.
    # The product comes before the quotient, so the ratio of equal shares is exactly 1.
    ratio = np.divide(rows * float(total), per_row * everyone, out=np.ones_like(shares), where=rows > 0)
    divergence = np.maximum((shares * np.log(ratio)).sum(axis=1), 0.0)  # rounding can make a zero negative
    score = divergence * (sizes / total)
    if scheme == "linear":
        return score if sign == "as_released" else sizes / (1.0 + divergence)
    if scheme not in ("exp", "dirac"):
        raise ValueError(f"no scheme {scheme!r}; exp, linear or dirac")
    exponent = score if sign == "as_released" else -score
    raw = np.exp(exponent - exponent.max())
    if scheme == "dirac":
        raw = without_light(raw)
    return raw


def without_light(raw: np.ndarray) -> np.ndarray:
    """The weights, with 0 for those under half of the uniform share; the heaviest always stays.

    Args:
        raw: float64 `(k,)`, >= 0, with a positive sum that need not be 1.
    """
    return np.where(raw < 0.5 * raw.sum() / len(raw), 0.0, raw)


def _members(workers: Sequence[int], size: int) -> list[int]:
    """The workers in order, after a check that each is listed once and that there are enough for `size`."""
    if len(set(workers)) != len(workers):
        raise ValueError(f"a worker is listed twice: {sorted(workers)}")
    if not 1 <= size <= len(workers):
        raise ValueError(f"a cohort of {size} out of {len(workers)} workers cannot be")
    return sorted(int(worker) for worker in workers)


def _table(workers: Sequence[int], histograms: Mapping[int, np.ndarray]) -> np.ndarray:
    """The workers' histograms, int64 `(workers, classes)`."""
    rows = []
    for worker in workers:
        if worker not in histograms:
            raise ValueError(f"no label histogram of worker {worker} is known")
        row = np.asarray(histograms[worker])
        if row.ndim != 1 or row.dtype.kind not in "iu" or (row < 0).any() or (rows and len(row) != len(rows[0])):
            raise ValueError(f"the label histogram of worker {worker} is no list of counts, as long as the others'")
        rows.append(row.astype(np.int64))
    return np.stack(rows)


def _sizes(workers: list[int], sizes: Mapping[int, int]) -> np.ndarray:
    """The workers' sample counts, float64 `(workers,)`."""
    for worker in workers:
        if worker not in sizes or sizes[worker] < 0:
            raise ValueError(f"no sample count of worker {worker} is known")
    return np.array([sizes[worker] for worker in workers], dtype=np.float64)
