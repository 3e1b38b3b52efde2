"""Intervals and comparisons. Images of one prompt are not independent, so everything here resamples prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 4000
INTERVALS = "expanded percentile bootstrap over prompts"  # of means and percentiles; proportions of one value a prompt are exact
Statistic = Callable[[np.ndarray], np.ndarray]  # [..., images] to [...]


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def cluster_bootstrap(table: np.ndarray, statistic: Statistic = mean, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of a statistic over all images, by drawing whole prompts with replacement.

    `table`: one row a prompt, one column an image, `[prompts, images]`. Raises `ValueError` for fewer than two prompts.
    """
    table = np.asarray(table, dtype=np.float64)
    if len(table) < 2:
        raise ValueError("an interval over prompts needs at least two prompts")

    def of_rows(rows: np.ndarray, axis: int) -> np.ndarray:
        drawn = table[rows.astype(int)]  # [..., prompts, images]
        return statistic(drawn.reshape(*drawn.shape[:-2], -1))

    result = stats.bootstrap(
        (np.arange(len(table)),), of_rows, n_resamples=RESAMPLES, batch=500, vectorized=True, axis=-1,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def proportion_interval(table: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Interval of a proportion from a 0/1 table `[prompts, images]`.

    With one value a prompt the trials are independent: Clopper-Pearson, exact. The bootstrap has nothing to resample when
    all entries agree; then Clopper-Pearson over prompts, which claims no more independent trials than there are prompts.
    """
    table = np.asarray(table, dtype=np.float64)
    if table.shape[1] == 1 or table.min() == table.max():
        return clopper_pearson(int(table[:, 0].sum()), len(table))
    return cluster_bootstrap(table, seed=seed)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval of a proportion."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def paired_difference(values: dict[str, float], baseline: dict[str, float], seed: int = 0) -> tuple[float, float, float] | None:
    """Mean of `values - baseline` over the prompts both have, with its bootstrap interval; None for fewer than two such prompts."""
    shared = sorted(values.keys() & baseline.keys())
    if len(shared) < 2:
        return None
    differences = np.array([[values[prompt] - baseline[prompt]] for prompt in shared])
    low, high = cluster_bootstrap(differences, seed=seed)
    return float(differences.mean()), low, high


def pareto_front(points: list[tuple[float, ...]]) -> list[bool]:
    """Which points no other point beats: at least as high everywhere and higher somewhere. Higher is better in every coordinate."""
    return [not any(all(q >= p for q, p in zip(other, point, strict=True)) and other != point for other in points) for point in points]
