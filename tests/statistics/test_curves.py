import numpy as np
import pytest

from bench.statistics.curves import at_equal_utility


def line(points, prompts, values, spread, seed):
    noise = np.random.default_rng(seed).normal(size=prompts)
    noise -= noise.mean()
    return np.array(values)[:points, None] + spread * noise[None]


def test_between_two_strengths_both_change_evenly():
    replication = line(4, 30, [0.8, 0.6, 0.2, 0.1], 0.05, 0)
    utility = line(4, 20, [0.70, 0.69, 0.65, 0.60], 0.0, 1)
    (at,) = at_equal_utility(replication, utility, [0.03])
    # half way from the second to the third
    assert at[0] == pytest.approx(0.4) and at[1] < 0.4 < at[2]
    first, second = at_equal_utility(replication, utility, [0.005, 0.1])
    assert first[0] == pytest.approx(0.7)
    assert second[0] == pytest.approx(0.1)


def test_a_curve_that_never_falls_so_far_says_nothing():
    replication = line(3, 30, [0.8, 0.6, 0.5], 0.05, 0)
    utility = line(3, 20, [0.70, 0.71, 0.69], 0.01, 1)
    assert at_equal_utility(replication, utility, [0.05]) == [None]


def test_the_first_crossing_counts_where_utility_comes_back():
    replication = line(4, 30, [0.8, 0.4, 0.3, 0.0], 0.0, 0)
    utility = line(4, 20, [0.70, 0.60, 0.69, 0.50], 0.0, 1)
    (at,) = at_equal_utility(replication, utility, [0.05])
    assert at[0] == pytest.approx(0.6)


def test_intervals_cover_what_is_left():
    """On a straight line whose truth is known, at 40 and 60 prompts."""
    truth, covered, runs = 0.8 - 0.5 * 0.4, 0, 150
    for run in range(runs):
        random = np.random.default_rng([3, run])
        strengths = np.linspace(0, 1, 6)[:, None]
        replication = 0.8 - 0.4 * strengths + 0.2 * random.normal(size=(1, 60))
        replication = replication + 0.05 * random.normal(size=(6, 60))
        utility = 0.7 - 0.04 * strengths + 0.1 * random.normal(size=(1, 40))
        utility = utility + 0.01 * random.normal(size=(6, 40))
        (at,) = at_equal_utility(replication, utility, [0.02], seed=run)
        covered += at is not None and at[1] <= truth <= at[2]
    assert 0.88 <= covered / runs <= 0.99
