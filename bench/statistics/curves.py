"""What a method's strength curve says at equal utility."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.statistics.intervals import CONFIDENCE, agreed_share, expanded
from bench.statistics.units import Units

DRAWS = 4000
ROUNDING = 1e-9  # of differences of means
BLOCK = 500  # draws held at a time

At = tuple[float, float, float]  # value, low, high


def at_equal_utility(
    replication: np.ndarray,
    utility: np.ndarray,
    losses: Sequence[float],
    seed: int = 0,
    units: tuple[Units | None, Units | None] | None = None,
) -> list[At | None]:
    """Replication where utility has fallen by each of `losses`, with its 95 % interval; None where
    the curve never falls so far.

    `replication` `[points, prompts]`, in [0, 1], and `utility` `[points, other prompts]` hold
    values by prompt at every strength, the first of them without any method. Between two strengths
    both are taken to change evenly; the first crossing counts. The interval is that of a bootstrap
    that draws both kinds of prompts, each for all strengths together (percentiles); a draw that
    never falls so far gives what its strongest setting gives. Where all prompts agree on what is
    left, which leaves nothing to resample, it reaches at least as far as that of a share of as many
    independent trials as there are units (Clopper-Pearson).

    `units` are those of both kinds of prompts, None for a kind of which each prompt is one: units
    are drawn, and the percentiles are expanded for the smaller number of them. Without `units`, as
    of files that do not know them, prompts are drawn and the percentiles are plain.
    """
    random = np.random.default_rng(seed)
    tables, level = [replication, utility], CONFIDENCE
    if units is not None:
        tables = [
            each.independent(table) if each else table
            for table, each in zip(tables, units, strict=True)
        ]
        level = max(
            expanded(max(table.shape[1], 2), each.effective if each else max(table.shape[1], 2))
            for table, each in zip(tables, units, strict=True)
        )
    drawn: list[list[np.ndarray]] = [[] for _ in losses]
    for start in range(0, DRAWS, BLOCK):
        count = min(BLOCK, DRAWS - start)
        means = [_resampled(table, count, random) for table in tables]
        for place, loss in enumerate(losses):
            drawn[place].append(_left(means[0], means[1], loss, means[0][:, -1]))
    found: list[At | None] = []
    for parts, loss in zip(drawn, losses, strict=True):
        # What each unit has left where the mean utility of all has fallen so far.
        left = _left(tables[0].T, utility.mean(1)[None], loss)
        if np.isnan(left).any():
            found.append(None)
            continue
        value = float(left.mean())
        low, high = np.quantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2])
        bounds = [low, high, value]
        if np.ptp(left) <= ROUNDING:
            bounds += agreed_share(value, len(left))
        found.append((value, float(min(bounds)), float(max(bounds))))
    return found


def _resampled(table: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Means of `[points, units]` over `count` draws of the units, `[count, points]`."""
    units = table.shape[1]
    weights = random.multinomial(units, np.full(units, 1 / units), size=count)
    return np.asarray(weights @ table.T / units)


def _left(
    replication: np.ndarray, utility: np.ndarray, loss: float, otherwise: np.ndarray | None = None
) -> np.ndarray:
    """For each row of `replication` `[rows, points]`: what it is where the utility of the same row,
    or of the only one, is first `loss` below its first point; NaN (or `otherwise`) where it never
    is.
    """
    below = utility - utility[:, :1] <= -loss + ROUNDING
    below[:, 0] = False
    reached, rows = below.any(1), np.arange(len(utility))
    after = np.where(reached, below.argmax(1), 1)
    before = after - 1
    fallen = utility[rows, after] - utility[rows, before]
    wanted = utility[:, 0] - loss - utility[rows, before]
    share = np.divide(wanted, fallen, out=np.ones_like(wanted), where=reached & (fallen != 0))
    rows = np.arange(len(replication))
    value = replication[rows, before] + share * (
        replication[rows, after] - replication[rows, before]
    )
    return np.where(reached, value, np.nan if otherwise is None else otherwise)
