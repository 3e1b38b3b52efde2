"""How far apart vectors lie, from running sums: pure functions.

The root mean square distance over all pairs of R vectors needs no pairs. It follows from their mean
and their mean square: distance² = 2R/(R-1) (mean |y|² - |mean y|²).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Spread:
    """How far apart vectors of one length lie; they are given one by one and not kept.

    Sums are taken of differences from the first vector, so that vectors which are equal lie exactly
    0 apart, and nothing is lost where they are long and close together.
    """

    count: int = 0
    _first: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _sum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _squares: float = 0.0  # of the differences from the first
    _sizes: float = 0.0  # of the vectors, squared

    @classmethod
    def of(cls, vectors: Sequence[np.ndarray] | np.ndarray) -> Spread:
        """Of several vectors at once."""
        found = cls()
        for vector in vectors:
            found.add(vector)
        return found

    def add(self, vector: np.ndarray) -> None:
        """One more vector; an array of any shape counts as one."""
        flat = np.asarray(vector, dtype=np.float64).ravel()
        if not self.count:
            self._first, self._sum = flat, np.zeros_like(flat)
        away = flat - self._first
        self._sum += away
        self._squares += float(away @ away)
        self._sizes += float(flat @ flat)
        self.count += 1

    @property
    def distance(self) -> float:
        """The root mean square distance of two of the vectors; NaN for fewer than two."""
        if self.count < 2:
            return math.nan
        mean = self._sum / self.count
        variance = max(0.0, self._squares / self.count - float(mean @ mean))
        return math.sqrt(2 * self.count / (self.count - 1) * variance)

    @property
    def size(self) -> float:
        """The root mean square length of the vectors."""
        return math.sqrt(self._sizes / self.count) if self.count else math.nan


def spread_ratio(ends: np.ndarray, starts: np.ndarray) -> tuple[float, float]:
    """The distance of the ends `[R, ...]` over that of the starts, and its standard error by
    leaving out one member after the other (NaN for fewer than three).
    """
    whole = Spread.of(ends).distance / Spread.of(starts).distance
    count = len(ends)
    if count < 3:
        return whole, math.nan
    without = [
        Spread.of(np.delete(ends, row, 0)).distance / Spread.of(np.delete(starts, row, 0)).distance
        for row in range(count)
    ]
    return whole, math.sqrt((count - 1) * float(np.var(without)))


def shift(ends: np.ndarray, starts: np.ndarray) -> float:
    """The root mean square by which entries moved from the starts `[R, ...]` to the ends."""
    return float(np.sqrt(np.square(ends.astype(np.float64) - starts).mean()))


def unrelated_ratio(ends: np.ndarray, starts: np.ndarray) -> float:
    """What `spread_ratio` would be if every member had moved as far as it did, without regard to
    the others and to where it began: squares of distances add up then.
    """
    moved = shift(ends, starts) ** 2 * starts[0].size
    return math.sqrt(1 + 2 * moved / Spread.of(starts).distance ** 2)
