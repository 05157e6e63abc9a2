"""Robust rules: several vectors of the same slice become one, which a few bad vectors cannot move far.

| rule          | result | influence of a bad vector |
| ------------- | ------ | ------------------------- |
| mean          | sum in worker order / n | unbounded |
| clipped_mean  | clip every vector to the median norm, then the mean | at most 1/n of that norm |
| median        | the median per coordinate | none beyond the honest vectors, while they are the majority |
| trimmed_mean  | per coordinate the mean without the largest and smallest | none beyond the honest vectors |
| centered_clip | the mean of the vectors around a centre, clipped to a radius | at most radius/n |

What always holds: only the vectors, in the order given, decide, so two workers with the same vectors in
the same order have the same result, bit by bit. Median and trimmed mean work on each coordinate alone, so their
result does not depend on the number of parts of a vector. Neutral settings (`byzantine` 0, an infinite radius) give
the mean bit by bit. Every rule works in blocks that stay in the processor's cache.

Sources: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean); Karimireddy, He,
Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, algorithm 2 (centred clipping; there
the centre starts at the last aggregate, here at the median, so that no worker needs a memory, and the
radius follows the data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

BLOCK_VALUES = 16 * 1024
# Summing needs no memory beside the values, so a block may be as large as a chunk.
SQUARES_VALUES = 256 * 1024
CLIP_ROUNDS = 3

Reduce = Callable[[list[np.ndarray]], np.ndarray]

RULES = ("clipped_mean", "median", "trimmed_mean", "centered_clip")


def build(rule: str, byzantine: int = 1) -> Reduce:
    """A rule by its name; `sum` is no robust rule and gives the mean here.

    Args:
        rule: mean, or one of `RULES`.
        byzantine: for trimmed_mean, how many of the vectors may be byzantine.
    """
    match rule:
        case "clipped_mean":
            return clipped_mean
        case "median":
            return median
        case "trimmed_mean":
            return lambda vectors: trimmed_mean(vectors, byzantine)
        case "centered_clip":
            return centered_clip
        case "mean" | "sum":
            return mean
        case _:
            raise ValueError(f"unknown rule {rule!r}; there are mean, {', '.join(RULES)}")


def mean(vectors: list[np.ndarray]) -> np.ndarray:
    """The mean, summed in the order given, so that every worker gets the same.

    Args:
        vectors: at least one, float32 (size,) each; not changed.

    Returns:
        float32 (size,), a new array.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = vectors[0].copy() if len(vectors) == 1 else vectors[0] + vectors[1]
        for vector in vectors[2:]:
            total += vector
        total /= np.float32(len(vectors))
    return total


def clipped_mean(vectors: list[np.ndarray], factor: float = 1.0) -> np.ndarray:
    """The mean, after every vector with more than `factor` times the median norm has been clipped to that norm.

    The norm of the result is at most factor x the median norm, and a vector moves it by at most that over n. A vector
    that is not finite counts as zero.
    """
    norms = [norm(vector) for vector in vectors]
    return mean(_cut(vectors, norms, factor * _middle(norms)))


def median(vectors: list[np.ndarray]) -> np.ndarray:
    """The coordinate-wise median (of an even number the mean of the middle two).

    With fewer than half bad, whatever they hold, every coordinate lies between the smallest and the largest honest
    one. NaN counts as plus infinity.
    """
    found = np.empty_like(vectors[0])
    half = len(vectors) // 2
    for here, rows in _sorted_blocks(vectors):
        if len(vectors) % 2:
            found[here] = rows[half]
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            between = (rows[half - 1] + rows[half]) * np.float32(0.5)
        # Where the sum of two huge values overflows, the median is still between them.
        found[here] = np.clip(between, rows[half - 1], rows[half])
    return found


def trimmed_mean(vectors: list[np.ndarray], byzantine: int = 1) -> np.ndarray:
    """The coordinate-wise mean without the `byzantine` smallest and largest values.

    With at most `byzantine` bad vectors, whatever they hold, every coordinate lies between the smallest and the largest
    honest one, up to rounding. Of few vectors so many are trimmed that at least one is left. NaN counts
    as plus infinity.
    """
    cut = min(byzantine, (len(vectors) - 1) // 2)
    if cut <= 0:
        return mean(vectors)
    found = np.empty_like(vectors[0])
    for here, rows in _sorted_blocks(vectors):
        found[here] = mean(list(rows[cut : len(vectors) - cut]))
    return found


def centered_clip(vectors: list[np.ndarray], radius: float | None = None, rounds: int = CLIP_ROUNDS) -> np.ndarray:
    """The centre moves to the mean of the vectors, each clipped to `radius` around the centre; `rounds` times.

    A vector moves the result by at most radius / n in each round. One that is not finite counts as the centre.

    Args:
        radius: None for the median distance from the centre, in each round.
    """
    centre = median(vectors)
    for _ in range(rounds):
        differences = [_minus(vector, centre) for vector in vectors]
        distances = [norm(difference) for difference in differences]
        most = _middle(distances) if radius is None else radius
        if all(distance <= most for distance in distances):
            return mean(vectors)
        centre = centre + mean(_cut(differences, distances, most))
    return centre


def squares(values: np.ndarray, before: float = 0.0) -> float:
    """The sum of the squares, added to `before`: that of the earlier values of a longer vector.

    So a caller that gets a vector piece by piece adds each piece while it is in the processor's cache. The last bits
    of the sum depend on the pieces.

    Args:
        values: float32 (size,).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, values.size, SQUARES_VALUES):
            block = values[start : start + SQUARES_VALUES]
            before += float(np.dot(block, block))
    return before


def norm(values: np.ndarray, total: float | None = None) -> float:
    """The Euclidean norm; infinity, or NaN, where any value is not finite, and only there.

    One pass over memory: the squares of values that are not finite are not finite, and neither is their sum. Only where
    the sum overflows, a second pass tells large finite values from infinite ones.

    Args:
        values: float32 (size,).
        total: the sum of the squares of `values`, where it is known.
    """
    total = squares(values) if total is None else total
    if math.isfinite(total):
        return math.sqrt(total)
    largest = float(np.abs(values).max())
    if not math.isfinite(largest):
        return largest
    scaled = values.astype(np.float64) / largest
    return min(largest * math.sqrt(float(np.dot(scaled, scaled))), float(np.finfo(np.float64).max))


def distance(values: np.ndarray, other: np.ndarray) -> float:
    """The norm of the difference of two vectors, float32 (size,) each; as `norm` where it is not finite."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, values.size, BLOCK_VALUES):
            block = values[start : start + BLOCK_VALUES] - other[start : start + BLOCK_VALUES]
            total += float(np.dot(block, block))
    return math.sqrt(total) if math.isfinite(total) else norm(_minus(values, other))


def is_finite(values: np.ndarray) -> bool:
    """Whether all values are finite; see `norm`."""
    return math.isfinite(norm(values))


def _minus(values: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        found: np.ndarray = values - other
    return found


def _cut(vectors: list[np.ndarray], norms: list[float], most: float) -> list[np.ndarray]:
    """Every vector clipped to the norm `most`; a vector with a smaller norm is returned itself."""
    found = []
    for vector, its_norm in zip(vectors, norms, strict=True):
        if not math.isfinite(its_norm):
            vector = np.zeros_like(vector)
        elif its_norm > most:
            vector = vector * np.float32(most / its_norm)
        found.append(vector)
    return found


def _middle(norms: list[float]) -> float:
    """The lower median: with half of them bad, or fewer, no larger than an honest one. NaN counts as infinite."""
    return sorted(its_norm if math.isfinite(its_norm) else math.inf for its_norm in norms)[(len(norms) - 1) // 2]


def _sorted_blocks(vectors: list[np.ndarray]) -> Iterator[tuple[slice, np.ndarray]]:
    """Block by block the vectors' values, sorted per coordinate: the slice, and float32 (vectors, block), reused.

    By compare-and-exchange of whole rows (an odd-even transposition network): for 3 to 16 vectors 2 to 30 times
    as fast as numpy's sort along the first axis, which sorts one coordinate at a time.
    """
    count, size = len(vectors), vectors[0].size
    block = np.empty((count, min(BLOCK_VALUES, size)), dtype=np.float32)
    lower = np.empty((max(1, count // 2), block.shape[1]), dtype=np.float32)
    for start in range(0, size, BLOCK_VALUES):
        here = slice(start, min(start + BLOCK_VALUES, size))
        rows = block[:, : here.stop - here.start]
        for row, vector in zip(rows, vectors, strict=True):
            row[:] = vector[here]
        np.copyto(rows, np.float32(np.inf), where=np.isnan(rows))
        for turn in range(count):
            left, right = rows[turn % 2 : count - 1 : 2], rows[turn % 2 + 1 : count : 2]
            least = lower[: len(left), : rows.shape[1]]
            np.minimum(left, right, out=least)
            np.maximum(left, right, out=right)
            left[:] = least
        yield here, rows
