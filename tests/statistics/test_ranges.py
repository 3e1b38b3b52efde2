"""Numbers that a unit cannot have are in no interval."""

import math

import numpy as np

from bench.contracts.metric import PerImage
from bench.running.scoring import _interval
from bench.statistics.intervals import cluster_bootstrap
from bench.statistics.ranges import range_of, within
from bench.statistics.units import Units


def test_every_unit_has_its_range():
    assert range_of("share of captions") == range_of("share") == (0.0, 1.0)
    assert range_of("cosine") == (-1.0, 1.0)
    assert range_of("seconds") == (-math.inf, math.inf)
    half = np.array([0.5])
    assert within("distance", (-0.5, 2.0), half) == (0.0, 2.0)
    assert within("difference of shares", (-1.5, 0.5), half) == (-1.0, 0.5)
    assert within("cosine", (0.5, 3.0), np.array([0.5, 2.0])) == (0.5, 2.0)  # of somebody's metric


def test_an_interval_of_cosines_ends_at_one():
    """Of few prompts in strata, the resampled values of units lie beyond those of any prompt."""
    table = np.array([[0.99], [1.0], [0.1], [1.0], [0.98], [1.0]])
    units = Units(np.arange(6), np.array([0, 0, 1, 1, 2, 2]))
    assert cluster_bootstrap(table, units=units)[1] > 1
    low, high = _interval(PerImage(table, [], "cosine", False), table, units)
    assert 0 < low < high == 1
