"""Pure numpy: intervals, paired differences and the Frechet distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.base.lazy import door

_HOMES = {
    "StatisticName": "bench.statistics.intervals",
    "mean": "bench.statistics.intervals",
    "std": "bench.statistics.intervals",
    "lower_median": "bench.statistics.intervals",
    "lower_mad": "bench.statistics.intervals",
    "clopper_pearson": "bench.statistics.intervals",
    "cluster_bootstrap": "bench.statistics.intervals",
    "paired_difference": "bench.statistics.intervals",
    "proportion_interval": "bench.statistics.intervals",
    "share_interval": "bench.statistics.intervals",
    "threshold_at": "bench.statistics.intervals",
    "Design": "bench.statistics.units",
    "Units": "bench.statistics.units",
    "Statistics": "bench.statistics.frechet",
    "first_rows": "bench.statistics.frechet",
    "frechet_distance": "bench.statistics.frechet",
    "moments": "bench.statistics.frechet",
    "read_features": "bench.statistics.frechet",
    "read_statistics": "bench.statistics.frechet",
}
__all__ = list(_HOMES)
__getattr__ = door(__name__, _HOMES)

if TYPE_CHECKING:  # the same names for type checkers and editors
    from bench.statistics.frechet import Statistics as Statistics
    from bench.statistics.frechet import first_rows as first_rows
    from bench.statistics.frechet import frechet_distance as frechet_distance
    from bench.statistics.frechet import moments as moments
    from bench.statistics.frechet import read_features as read_features
    from bench.statistics.frechet import read_statistics as read_statistics
    from bench.statistics.intervals import StatisticName as StatisticName
    from bench.statistics.intervals import clopper_pearson as clopper_pearson
    from bench.statistics.intervals import cluster_bootstrap as cluster_bootstrap
    from bench.statistics.intervals import lower_mad as lower_mad
    from bench.statistics.intervals import lower_median as lower_median
    from bench.statistics.intervals import mean as mean
    from bench.statistics.intervals import paired_difference as paired_difference
    from bench.statistics.intervals import proportion_interval as proportion_interval
    from bench.statistics.intervals import share_interval as share_interval
    from bench.statistics.intervals import std as std
    from bench.statistics.intervals import threshold_at as threshold_at
    from bench.statistics.units import Design as Design
    from bench.statistics.units import Units as Units
