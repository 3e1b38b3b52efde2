"""Many comparisons at once: tests of paired differences, Holm's correction, intervals of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.statistics.intervals import NORMAL
from bench.statistics.units import Units

FLIPS = 9999
RANK_DRAWS = 4000
LEVEL = 0.95
BLOCK = 2**24  # signs or draws held at a time


def sign_flip_p(differences: np.ndarray, seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p-value of a mean of paired differences `[n]` of prompts, or of totals of clusters,
    under random signs.

    If neither side is better, the sign of each prompt's difference is as likely as its opposite.
    The share of `flips` random sign vectors, and of the signs as they are, whose mean is at least
    as far from 0 (Phipson and Smyth 2010: never 0). 1 where nothing differs.
    """
    changed = differences[differences != 0].astype(np.float64)
    if not len(changed):
        return 1.0
    random, observed = np.random.default_rng(seed), abs(changed.sum())
    # Sums of the same terms in another order differ by rounding.
    bound = observed - 1e-9 * np.abs(changed).sum()
    reached, left = 1, flips
    while left:
        part = min(left, max(1, BLOCK // len(changed)))
        signs = random.integers(0, 2, (part, len(changed)), dtype=np.int8) * 2 - 1
        reached += int((np.abs(signs @ changed) >= bound).sum())
        left -= part
    return reached / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979), in the order given.

    A test holds at level a in the whole family when its adjusted value is at most a.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def rank_intervals(
    values: np.ndarray,
    seed: int = 0,
    draws: int = RANK_DRAWS,
    shares: bool = False,
    units: Units | None = None,
) -> list[tuple[int, int]]:
    """For rows of values by prompt, `[rows, prompts]`, where less is better: the least and the
    greatest rank of each that the data allow, all rows together, with 95 % confidence.

    A row is certainly behind another when the simultaneous lower bound of their difference is above
    0; bounds come from the studentised maximum over all pairs in a paired bootstrap over prompts
    (as in Mogstad et al. 2024). The least rank is 1 and the number of rows certainly ahead, the
    greatest leaves out those certainly behind.

    `shares` says that the values are proportions: means and errors are then those of
    `difference_of_shares`, with one prompt more that changed all the way for the better and one for
    the worse, so that no two rows are told apart here that their paired interval does not. `units`
    says which prompts hang together.
    """
    if units:
        values = units.totals(values) if shares else units.independent(values)
    rows, prompts = values.shape
    if rows < 2 or prompts < 2:
        return [(1, rows)] * rows
    first, second = np.triu_indices(rows, 1)
    differences = values[first] - values[second]  # [pairs, prompts]
    means = differences.mean(1)
    errors = differences.std(1, ddof=1) / np.sqrt(prompts)
    moving = errors > 1e-12
    if not moving.any():
        margin = 0.0
    else:
        random = np.random.default_rng(seed)
        largest = []
        part = max(1, BLOCK // max(prompts, int(moving.sum())))
        for start in range(0, draws, part):
            count = min(part, draws - start)
            weights = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)
            drawn = weights @ differences[moving].T / prompts  # [count, pairs]
            largest.append((np.abs(drawn - means[moving]) / errors[moving]).max(1))
        margin = float(np.quantile(np.concatenate(largest), LEVEL))
    if shares:
        total = prompts + 2
        means = differences.sum(1) / total
        spread = (np.square(differences).sum(1) + 2) / total - means**2
        errors = np.sqrt(spread / total)
        margin = max(margin, NORMAL)
    behind = np.zeros((rows, rows), dtype=bool)  # [i, j]: i is certainly behind j
    behind[first, second] = means > margin * errors + 1e-12
    behind[second, first] = -means > margin * errors + 1e-12
    return [(1 + int(behind[i].sum()), rows - int(behind[:, i].sum())) for i in range(rows)]
