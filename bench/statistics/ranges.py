"""Which numbers a score may be, by its unit."""

from __future__ import annotations

import math

import numpy as np

from bench.statistics.intervals import OF_SHARES

# Shares are within [0, 1], whatever they are of. Other units may be any number.
RANGES = {
    "cosine": (-1.0, 1.0),
    "1 - cosine": (0.0, 2.0),
    "distance": (0.0, math.inf),
    OF_SHARES: (-1.0, 1.0),
}


def range_of(unit: str) -> tuple[float, float]:
    """The least and the largest number of a unit."""
    return (0.0, 1.0) if unit.startswith("share") else RANGES.get(unit, (-math.inf, math.inf))


def within(unit: str, interval: tuple[float, float], values: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of some values without the part that no score of the unit can be in.
    Values that are out of their unit's range are left in: somebody else's check is to see them.
    """
    least, largest = range_of(unit)
    low, high = interval
    return max(low, min(least, float(values.min()))), min(high, max(largest, float(values.max())))
