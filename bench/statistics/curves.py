"""What a method's strength curve says at equal utility."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 4000
LEVEL = 0.95
ROUNDING = 1e-9  # of differences of means
BLOCK = 500  # draws held at a time

At = tuple[float, float, float]  # value, low, high


def at_equal_utility(
    replication: np.ndarray, utility: np.ndarray, losses: Sequence[float], seed: int = 0
) -> list[At | None]:
    """Replication where utility has fallen by each of `losses`, with its 95 % interval; None where
    the curve never falls so far.

    `replication` `[points, prompts]` and `utility` `[points, other prompts]` hold values by prompt
    at every strength, the first of them without any method. Between two strengths both are taken to
    change evenly; the first crossing counts. The interval is that of a bootstrap that draws both
    kinds of prompts, each for all strengths together (percentiles); a draw that never falls so far
    gives what its strongest setting gives.
    """
    random = np.random.default_rng(seed)
    whole = [
        _crossings(replication.mean(1)[None], utility.mean(1)[None], loss)[0] for loss in losses
    ]
    drawn: list[list[np.ndarray]] = [[] for _ in losses]
    for start in range(0, DRAWS, BLOCK):
        count = min(BLOCK, DRAWS - start)
        means = [_resampled(table, count, random) for table in (replication, utility)]
        for place, loss in enumerate(losses):
            drawn[place].append(_crossings(means[0], means[1], loss, means[0][:, -1]))
    found: list[At | None] = []
    for value, parts in zip(whole, drawn, strict=True):
        if np.isnan(value):
            found.append(None)
            continue
        low, high = np.quantile(np.concatenate(parts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found.append((float(value), float(min(low, value)), float(max(high, value))))
    return found


def _resampled(table: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Means of `[points, prompts]` over `count` draws of the prompts, `[count, points]`."""
    prompts = table.shape[1]
    weights = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)
    return np.asarray(weights @ table.T / prompts)


def _crossings(
    replication: np.ndarray, utility: np.ndarray, loss: float, otherwise: np.ndarray | None = None
) -> np.ndarray:
    """For each row of curves `[draws, points]`: replication where utility first is `loss` below its
    first point, NaN (or `otherwise`) where it never is.
    """
    below = utility - utility[:, :1] <= -loss + ROUNDING
    below[:, 0] = False
    reached, rows = below.any(1), np.arange(len(utility))
    after = np.where(reached, below.argmax(1), 1)
    before = after - 1
    fallen = utility[rows, after] - utility[rows, before]
    wanted = utility[:, 0] - loss - utility[rows, before]
    share = np.divide(wanted, fallen, out=np.ones_like(wanted), where=reached & (fallen != 0))
    value = replication[rows, before] + share * (
        replication[rows, after] - replication[rows, before]
    )
    return np.where(reached, value, np.nan if otherwise is None else otherwise)
