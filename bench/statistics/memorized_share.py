"""How many generations are memorized as the number of training pictures grows: the 1/3 rule (Yoon
et al. 2023; Gu et al. 2023, arXiv 2310.02664), and the effective model memorization (EMM), which is
the largest number of training pictures of which nearly all generations are copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.statistics.intervals import CONFIDENCE, clopper_pearson, difference_of_shares

DRAWS = 4000
BLOCK = 64  # generations that are compared at a time


def nearest_two(generations: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared differences, int64 `[M]` both, of each generation to the nearest and to the
    second nearest of the training pictures; uint8 `[M, ...]` and `[N, ...]`.

    They are exact: whole numbers below 2^53 in float64, whatever the order of summation. Raises
    `ValueError` for fewer than two training pictures, among which there is no second nearest.
    """
    if len(training) < 2:
        raise ValueError("the 1/3 rule needs two training pictures at least")
    known = training.reshape(len(training), -1).astype(np.float64)
    squares = np.square(known).sum(1)
    first, second = (np.empty(len(generations), np.int64) for _ in range(2))
    for start in range(0, len(generations), BLOCK):
        made = generations[start : start + BLOCK]
        made = made.reshape(len(made), -1).astype(np.float64)
        sums = np.square(made).sum(1)[:, None] + squares - 2 * (made @ known.T)
        least = np.partition(sums, 1, axis=1)[:, :2]
        first[start : start + len(made)], second[start : start + len(made)] = least.T
    return first, second


def memorized(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of which generations the distance to the nearest training picture is less than a third of
    that to the second nearest: bool, in whole numbers (9 SSD_1 < SSD_2).
    """
    return 9 * np.asarray(first, dtype=np.int64) < np.asarray(second, dtype=np.int64)


@dataclass(frozen=True)
class Bracket:
    """Where the EMM lies: from the largest size that surely has it to the smallest that surely has
    not. None: no size tried is small, or large, enough to say.
    """

    low: int | None
    high: int | None


def emm_bracket(
    sizes: Sequence[int], bounds: Sequence[tuple[float, float]], epsilon: float
) -> Bracket:
    """The bracket at `epsilon`, of ascending sizes and the 95 % interval of each one's share."""
    enough = [n for n, (low, _) in zip(sizes, bounds, strict=True) if low >= 1 - epsilon]
    too_few = [n for n, (_, high) in zip(sizes, bounds, strict=True) if high < 1 - epsilon]
    return Bracket(max(enough, default=None), min(too_few, default=None))


def falling(shares: np.ndarray) -> np.ndarray:
    """The falling sequence that is nearest in squares to shares `[sizes]` of equal weight, by
    pooling neighbours that rise (Ayer et al. 1955).
    """
    pools: list[tuple[float, int]] = []
    for share in shares:
        pools.append((float(share), 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (value, count), (before, many) = pools.pop(), pools.pop()
            pools.append(((value * count + before * many) / (count + many), count + many))
    return np.repeat([value for value, _ in pools], [count for _, count in pools])


def emm_point(sizes: Sequence[int], shares: np.ndarray, epsilon: float) -> float:
    """Where the falling curve through the shares crosses 1 - `epsilon`, between two sizes evenly
    in the logarithm; 0 where the smallest size is below it already, infinity where the largest is
    not.
    """
    level, curve = 1 - epsilon, falling(np.asarray(shares, dtype=np.float64))
    below = np.flatnonzero(curve < level)
    if not len(below):
        return math.inf
    place = int(below[0])
    if place == 0:
        return 0.0
    part = (curve[place - 1] - level) / (curve[place - 1] - curve[place])
    low, high = math.log(sizes[place - 1]), math.log(sizes[place])
    return math.exp(low + part * (high - low))


def emm_interval(
    sizes: Sequence[int], tables: Sequence[np.ndarray], epsilon: float, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `emm_point` by a bootstrap over trainings and, in each, over
    generations; `tables` has truth values `[seeds, M]` of each size.

    With one training a size it says nothing of how trainings differ.
    """
    random = np.random.default_rng(seed)
    drawn = np.stack([_resampled(np.asarray(table, np.float64), random) for table in tables], 1)
    points = np.sort([emm_point(sizes, shares, epsilon) for shares in drawn])
    # Not interpolated: a point may be infinite.
    low, high = (points[round(share * (DRAWS - 1))] for share in _TAILS)
    return float(low), float(high)


_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def _resampled(table: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means `[DRAWS]` of a table `[seeds, M]` over draws of its rows, and of the columns in each
    drawn row.
    """
    seeds, count = table.shape
    rows = random.integers(0, seeds, (DRAWS, seeds))
    return random.binomial(count, table.mean(1)[rows]).mean(1) / count


def share_interval(table: np.ndarray) -> tuple[float, float]:
    """95 % interval of the share of a table of truth values `[seeds, M]`: Clopper-Pearson over the
    generations of one training; of several, from the lowest to the highest bound of any.
    """
    bounds = [clopper_pearson(int(row.sum()), len(row)) for row in np.asarray(table, dtype=bool)]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def paired_shares(
    table: np.ndarray, baseline: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `table - baseline` with its 95 % interval (low, high), of values `[seeds, M]` whose
    columns began with the same noise.

    One training: the adjusted Wald interval of paired shares over generations, which says nothing
    of how trainings differ. Several: from the lowest to the highest bound of any training's, and of
    a bootstrap over trainings and, in each, over generations, which alone would have no width where
    nothing changed.
    """
    differences = np.asarray(table, np.float64) - np.asarray(baseline, np.float64)
    value = float(differences.mean())
    bounds = [difference_of_shares(row) for row in differences]
    if len(bounds) == 1:
        return (value, *bounds[0])
    random = np.random.default_rng(seed)
    seeds, count = differences.shape
    means = []
    for _ in range(DRAWS):
        rows = random.integers(0, seeds, (seeds, 1))
        columns = random.integers(0, count, (seeds, count))
        means.append(differences[rows, columns].mean())
    low, high = np.quantile(means, _TAILS)
    bounds.append((float(low), float(high)))
    return value, min(low for low, _ in bounds), max(high for _, high in bounds)
