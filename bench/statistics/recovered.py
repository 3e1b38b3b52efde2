"""How much of what was removed comes back: a ratio of two paired differences."""

from __future__ import annotations

import math

import numpy as np

from bench.statistics.intervals import CONFIDENCE, student
from bench.statistics.units import Units

RESAMPLES = 2000


def recovered_share(
    probe: np.ndarray, edited: np.ndarray, whole: np.ndarray, units: Units | None = None
) -> tuple[float, float, float] | None:
    """(probe - edited) / (whole - edited) of mean shares, with its 95 % interval (value, low,
    high); None where `whole - edited` is not clearly above 0, so that there is nothing to recover
    and the ratio would be noise.

    Each argument has the share of one picture in every row, `[pictures]`; `units` says which
    pictures hang together. Fieller's interval (1954) of a ratio of means, after two pictures were
    added that lost everything: one that got all of it back and one that got nothing. So it has a
    width where all pictures agree, and holds its level for eight of them, as a bootstrap does not
    (`tests/benchmarks/coverage.py`).
    """
    rows = np.stack([probe, edited, whole])
    count = float(rows.shape[1])
    if units:
        rows = units.independent(rows)
        count = units.effective
    removed = rows[2] - rows[1]
    random = np.random.default_rng(0)
    drawn = removed[random.integers(0, len(removed), (RESAMPLES, len(removed)))].mean(1)
    if float(np.quantile(drawn, (1 - CONFIDENCE) / 2)) <= 0:
        return None
    value = float((rows[0] - rows[1]).mean() / removed.mean())
    came_back, gone = np.append(rows[0] - rows[1], [1.0, 0.0]), np.append(removed, [1.0, 1.0])
    above, below = float(came_back.mean()), float(gone.mean())
    squares = student(count + 2) ** 2 / len(gone)
    spread = np.cov(came_back, gone) * squares
    a, b, c = (below**2 - spread[1, 1], above * below - spread[0, 1], above**2 - spread[0, 0])
    if a <= 0:
        return None
    margin = math.sqrt(max(b * b - a * c, 0.0))
    return value, min((b - margin) / a, value), max((b + margin) / a, value)
