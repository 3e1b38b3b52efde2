"""Intervals and comparisons.

Images of one prompt are not independent, so everything here resamples prompts. scipy's statistics
are imported where they are used: they take half a second, and every start of `bench` reads this.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np

from bench.statistics.units import Design, Units

CONFIDENCE = 0.95
NORMAL = 1.959963984540054  # how many standard errors it reaches of a normal distribution
OF_SHARES = "difference of shares"  # the unit of scores that are one
RESAMPLES = 4000
PER_STRATUM = 6  # units of strata on average, from which single trials tell of the variance
# prompts, beyond which bias and skew of a mean no longer show and the jackknife would take minutes
MANY = 2000
# How intervals are made, as a record says. Another text for every other way.
INTERVALS = (
    "over prompts, within strata and by clusters where there are any: expanded BCa bootstrap; of"
    " shares Wilson's score interval, Clopper-Pearson of one image a prompt"
)
Statistic = Callable[[np.ndarray], np.ndarray]  # [..., images] to [...]
StatisticName = Literal["mean", "lower_median", "lower_mad", "std"]


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def std(values: np.ndarray) -> np.ndarray:
    """The standard deviation of the values (ddof 0), as papers print it beside a mean."""
    return values.std(axis=-1)


def lower_median(values: np.ndarray) -> np.ndarray:
    """The lower of the two middle values where their number is even, as `torch.median`; numpy gives
    their mean.
    """
    middle = (values.shape[-1] - 1) // 2
    return np.partition(values, middle, axis=-1)[..., middle]


def lower_mad(values: np.ndarray) -> np.ndarray:
    """The median of |x - median(x)|, without the factor 1.4826; both medians are lower ones."""
    return lower_median(np.abs(values - lower_median(values)[..., None]))


STATISTICS: dict[StatisticName, Statistic] = {
    "mean": mean,
    "lower_median": lower_median,
    "lower_mad": lower_mad,
    "std": std,
}


def cluster_bootstrap(
    table: np.ndarray, statistic: Statistic = mean, seed: int = 0, units: Units | None = None
) -> tuple[float, float]:
    """95 % interval of a statistic over all images, by drawing whole prompts with replacement; of a
    mean, by drawing `units`.

    Bias-corrected and accelerated (Efron 1987), at a level expanded for the number of prompts as
    Hesterberg (2015, section 4.3) does for percentiles: without it intervals of few prompts are too
    short. `tests/benchmarks/coverage.py` measures what it covers.

    `table`: one row a prompt, one column an image, `[prompts, images]`. Returns (low, high). Raises
    `ValueError` for fewer than two prompts.
    """
    table = np.asarray(table, dtype=np.float64)
    if statistic is mean:  # of the prompts' means, as all have the same number of images
        means = table.mean(1)[None]
        if units:
            return _of_means(units.independent(means), seed, units.effective)[0]
        return _of_means(means, seed)[0]

    def of_rows(rows: np.ndarray) -> np.ndarray:
        drawn = table[rows]  # [..., prompts, images]
        return statistic(drawn.reshape(*drawn.shape[:-2], -1))[None]

    return _intervals(of_rows, len(table), seed)[0]


def enough_for(percentile: float, prompts: int) -> bool:
    """Whether there are enough prompts for an interval of a percentile (0 to 100): with fewer than
    5 prompts expected beyond it, a 95 % interval covers 82 to 91 of 100.
    """
    return prompts * min(percentile, 100 - percentile) / 100 >= 5 - 1e-9


def _of_means(
    columns: np.ndarray, seed: int, effective: float | None = None
) -> list[tuple[float, float]]:
    """The interval of the mean of each row of `[scores, prompts]`. All rows share the same
    resamples, so that each interval is what it would be if its row were given alone. `effective` is
    the number of prompts that tell as much of the variance, where it is not theirs.
    """
    prompts = columns.shape[1]

    def of_rows(rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(-1, rows.shape[-1])
        places = flat + prompts * np.arange(len(flat))[:, None]
        # how often each prompt was drawn
        drawn = np.bincount(places.ravel(), minlength=prompts * len(flat)).reshape(
            len(flat), prompts
        )
        return (columns @ drawn.T / rows.shape[-1]).reshape(len(columns), *rows.shape[:-1])

    return _intervals(of_rows, prompts, seed, effective)


def _intervals(
    statistics: Callable[[np.ndarray], np.ndarray],
    prompts: int,
    seed: int,
    effective: float | None = None,
) -> list[tuple[float, float]]:
    """Intervals of several statistics. `statistics` takes rows of prompt numbers `[..., drawn]` to
    values `[scores, ...]`.
    """
    if prompts < 2:
        raise ValueError("an interval over prompts needs at least two prompts")

    def rounded(rows: np.ndarray, axis: int) -> np.ndarray:
        # So that resamples that tie with the sample do so in any order of summation: the bias
        # correction counts ties.
        return np.round(statistics(rows.astype(int)), 9)

    from scipy import stats

    level, whole = expanded(prompts, effective or prompts), rounded(np.arange(prompts), -1)
    with warnings.catch_warnings():
        # scipy's of a degenerate distribution, which is dealt with below
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            (np.arange(prompts),),
            rounded,
            n_resamples=RESAMPLES,
            batch=1000,
            vectorized=True,
            axis=-1,
            confidence_level=level,
            method="BCa" if prompts <= MANY else "percentile",
            rng=np.random.default_rng(seed),
        )
    found = []
    for low, high, distribution, value in zip(
        *result.confidence_interval, result.bootstrap_distribution, whole, strict=True
    ):
        # all resamples agree, or the jackknife does: no correction is defined
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = np.quantile(distribution, [(1 - level) / 2, (1 + level) / 2])
        found.append((float(min(low, value)), float(max(high, value))))
    return found


def expanded(prompts: int, effective: float) -> float:
    """The confidence level at which a normal interval with the plug-in deviation is as wide as
    Student's interval for so many prompts, of which `effective` tell of the variance.
    """
    from scipy import stats

    return float(1 - 2 * stats.norm.cdf(-student(effective) * math.sqrt(prompts / (prompts - 1))))


def student(effective: float) -> float:
    """How many standard errors a 95 % interval reaches where so many units tell of the variance."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, effective - 1))


def proportion_interval(table: np.ndarray, units: Units | None = None) -> tuple[float, float]:
    """95 % interval of a proportion from a 0/1 table `[prompts, images]`.

    With one value a prompt, and neither clusters nor strata, the trials are independent and alike:
    Clopper-Pearson, exact. Likewise under small strata, whose variance single trials cannot tell;
    it covers nearly always then. Else `share_interval`.
    """
    table = np.asarray(table, dtype=np.float64)
    small = units and len(units.strata) < PER_STRATUM * (int(units.strata.max()) + 1)
    if table.shape[1] == 1 and (units is None or (small and not units.clustered)):
        return clopper_pearson(int(table[:, 0].sum()), len(table))
    return share_interval(table.mean(1), units)


def share_interval(means: np.ndarray, units: Units | None = None) -> tuple[float, float]:
    """95 % interval of the mean of values in [0, 1], `[prompts]`, each a prompt's share of images.

    Wilson's score interval (1927) of as many independent trials as have the variance of the mean,
    with Student's factor: what Franco, Little, Louis and Slud (2019, "Comparative study of
    confidence intervals for proportions in complex sample surveys") recommend for shares of
    clusters. Near 0 and 1 few prompts differ from the others, and how much they vary is a matter of
    luck. So the variance is a weighted mean of the observed one and the largest that so many units
    can have, p (1 - p) / units. The latter counts as one unit, the former as 4 p (1 - p) of each
    unit, p being the share of its stratum. `docs/intervals.md` says how often it covers the truth.

    Where no prompt differs, or all are one unit, it is `agreed_share` of as many trials as there
    are units.
    """
    means = np.asarray(means, dtype=np.float64)
    number = len(units.strata) if units else len(means)
    share = float(means.mean())
    if means.min() == means.max() or number < 2:
        return agreed_share(share, number)
    independent = units.independent(means) if units else means
    expected = units.expected(means) if units else np.full(len(means), share)
    weight = 4 * number * float((expected * (1 - expected)).mean())
    largest = share * (1 - share) / number
    variance = (weight * float(independent.var(ddof=1)) / number + largest) / (weight + 1)
    reach = student(units.effective if units else number) ** 2
    trials = share * (1 - share) / variance
    middle = (share + reach / (2 * trials)) / (1 + reach / trials)
    spread = math.sqrt(reach * (variance + reach / (4 * trials**2))) / (1 + reach / trials)
    return max(middle - spread, 0.0), min(middle + spread, 1.0)


@lru_cache(maxsize=4096)
def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval of a proportion."""
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def agreed_share(value: float, trials: int) -> tuple[float, float]:
    """95 % interval of a mean of values in [0, 1] that are all the same: Clopper-Pearson of so many
    trials, also between whole numbers of successes. Of all variables in [0, 1] with a given mean
    the one with values 0 and 1 varies most.
    """
    from scipy import stats

    successes, tail = min(max(value, 0.0), 1.0) * trials, (1 - CONFIDENCE) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1
    return float(low), float(high)


def paired_difference(
    values: dict[str, float],
    baseline: dict[str, float],
    seed: int = 0,
    share: bool = False,
    design: Design | None = None,
) -> tuple[float, float, float] | None:
    """Mean of `values - baseline` over the prompts that both have, with its 95 % bootstrap interval
    (low, high); None for fewer than two such prompts. `share` says that the values are proportions,
    `design` which prompts hang together.
    """
    designs = {"": design} if design else {}
    shares = [""] if share else []
    return paired_differences({"": values}, {"": baseline}, seed, shares, designs).get("")


def paired_differences(
    values: dict[str, dict[str, float]],
    baseline: dict[str, dict[str, float]],
    seed: int = 0,
    shares: Collection[str] = (),
    designs: Mapping[str, Design] = MappingProxyType({}),
    of_shares: Collection[str] = (),
) -> dict[str, tuple[float, float, float]]:
    """`paired_difference` of several scores by name: the same numbers, but scores over the same
    number of units are resampled together, which is faster. `shares` names those that are
    proportions, `of_shares` those that are differences of two proportions, `designs` has the design
    of the prompts of each.
    """
    by_count: dict[tuple[int, float | None], dict[str, np.ndarray]] = {}
    found: dict[str, tuple[float, float, float]] = {}
    known: dict[tuple[int, tuple[str, ...]], Units | None] = {}
    for name in sorted(values.keys() & baseline.keys()):
        shared = sorted(values[name].keys() & baseline[name].keys())
        if len(shared) < 2:
            continue
        row = np.array([values[name][prompt] - baseline[name][prompt] for prompt in shared])
        units = None
        if name in designs:
            # Many scores are over the same prompts of one design, which is asked once.
            key = (id(designs[name]), tuple(shared))
            units = known[key] if key in known else designs[name].units(shared)
            known[key] = units
        if name in shares or name in of_shares:
            found[name] = (
                float(row.mean()),
                *difference_of_shares(row, units, 1.0 if name in shares else 2.0),
            )
            continue
        of_units = units.independent(row) if units else row
        if len(of_units) > 1:
            alike = (len(of_units), units.effective if units else None)
            by_count.setdefault(alike, {})[name] = of_units
    for (_, effective), rows in by_count.items():
        intervals = _of_means(np.stack(list(rows.values())), seed, effective)
        for (name, row), interval in zip(rows.items(), intervals, strict=True):
            found[name] = (float(np.mean(row)), *interval)
    return found


def difference_of_shares(
    differences: np.ndarray, units: Units | None = None, largest: float = 1.0
) -> tuple[float, float]:
    """95 % interval of the mean of paired differences of shares, `[n]`, of prompts of which `units`
    says which hang together. `largest` is the largest that a difference can be: 1, or 2 where each
    is one of two differences.

    The adjusted Wald interval of Bonett and Price (2012): two prompts are added, one that changed
    all the way for the better and one for the worse. So it has a width where nothing changed, and
    holds its level where few prompts did, as a bootstrap does not. For differences of -1, 0 and 1
    it is theirs; for shares of several images the squares of the differences take the place of the
    number of prompts that changed.
    """
    clustered = units is not None and units.clustered
    changes = (units.totals(differences) if units and clustered else differences) / largest
    total = len(changes) + 2
    middle = float(changes.sum()) / total
    spread = (float(np.square(changes).sum()) + 2) / total - middle**2
    margin = NORMAL * math.sqrt(spread / total)
    return largest * max(middle - margin, -1.0), largest * min(middle + margin, 1.0)


def threshold_at(negatives: np.ndarray, rate: float) -> float:
    """The value that exactly `floor(rate * n)` of the negatives exceed; ties never push it over.

    Raises `ValueError` for fewer than `1 / rate` of them.
    """
    allowed = int(rate * len(negatives) + 1e-9)
    if allowed < 1:
        raise ValueError(f"{len(negatives)} negatives cannot resolve a rate of {rate}")
    return float(np.sort(negatives)[-allowed - 1])


def independent_shares(
    one: np.ndarray, other: np.ndarray, units: Units | None = None
) -> tuple[float, float]:
    """95 % interval of the difference of two shares from 0/1 tables `[pictures, images]` of
    pictures that have nothing to do with each other.

    Newcombe's method 10 (1998): the margins of both shares' own intervals, squared and added. So it
    has a width even where all entries of both tables agree, which a bootstrap has not. `units` says
    which pictures of the first table hang together.
    """
    first, second = float(np.mean(one)), float(np.mean(other))
    (low1, high1), (low2, high2) = proportion_interval(one, units=units), proportion_interval(other)
    difference = first - second
    return (
        max(difference - math.hypot(first - low1, high2 - second), -1.0),
        min(difference + math.hypot(high1 - first, second - low2), 1.0),
    )
