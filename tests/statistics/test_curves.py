import numpy as np
import pytest

from bench.statistics.curves import at_equal_utility
from bench.statistics.intervals import clopper_pearson
from bench.statistics.units import Design


def units_of(clusters):
    ids = [str(number) for number in range(len(clusters))]
    return Design(dict(zip(ids, clusters, strict=True)), {}).units(ids)


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


def test_intervals_cover_what_is_left_where_prompts_hang_together():
    """Twelve clusters of four prompts, which share the most part of their effect: taken for 48
    units they cover 72 of 100.
    """
    truth, covered, runs = 0.8 - 0.5 * 0.4, 0, 60
    clusters = np.repeat(np.arange(12), 4).tolist()
    for run in range(runs):
        random = np.random.default_rng([5, run])
        strengths = np.linspace(0, 1, 6)[:, None]
        levels, slopes = random.normal(size=(2, 12))[:, clusters]
        replication = 0.8 - 0.4 * strengths + 0.2 * levels + 0.15 * slopes * strengths
        replication = replication + 0.05 * random.normal(size=(6, 48))
        utility = 0.7 - 0.04 * strengths + 0.1 * random.normal(size=(1, 40))
        utility = utility + 0.01 * random.normal(size=(6, 40))
        (at,) = at_equal_utility(replication, utility, [0.02], units=(units_of(clusters), None))
        covered += at is not None and at[1] <= truth <= at[2]
    assert covered / runs >= 0.88


def test_four_copies_of_every_prompt_say_no_more_than_one():
    random = np.random.default_rng(0)
    replication = np.linspace(0.8, 0.4, 4)[:, None] + 0.1 * random.normal(size=(4, 15))
    utility = np.linspace(0.7, 0.6, 4)[:, None] + 0.02 * random.normal(size=(4, 15))
    (once,) = at_equal_utility(replication, utility, [0.05], units=(None, None))
    fourfold = [np.repeat(table, 4, axis=1) for table in (replication, utility)]
    hanging = units_of(np.repeat(np.arange(15), 4).tolist())
    (same,) = at_equal_utility(*fourfold, [0.05], units=(hanging, hanging))
    assert same == pytest.approx(once, abs=0.01)
    (naive,) = at_equal_utility(*fourfold, [0.05], units=(None, None))
    assert naive[2] - naive[1] < 0.6 * (once[2] - once[1])


def test_few_prompts_have_wider_intervals_where_units_are_known():
    replication = line(4, 8, [0.8, 0.6, 0.2, 0.1], 0.05, 0)
    utility = line(4, 8, [0.70, 0.69, 0.65, 0.60], 0.001, 1)
    (plain,) = at_equal_utility(replication, utility, [0.03])
    (wider,) = at_equal_utility(replication, utility, [0.03], units=(None, None))
    assert wider[0] == plain[0] and wider[1] < plain[1] and wider[2] > plain[2]


def test_prompts_that_all_agree_leave_as_much_open_as_a_share_of_so_many():
    utility = line(3, 20, [0.70, 0.60, 0.50], 0.01, 1)
    nothing = np.zeros((3, 12))
    (at,) = at_equal_utility(nothing, utility, [0.05])
    assert at == pytest.approx((0.0, *clopper_pearson(0, 12)))
    hanging = units_of(np.repeat(np.arange(3), 4).tolist())
    (at,) = at_equal_utility(nothing, utility, [0.05], units=(hanging, None))
    assert at == pytest.approx((0.0, *clopper_pearson(0, 3)))
    # Utility without any spread, and all prompts copied before and none after.
    steep = line(2, 20, [0.70, 0.60], 0.0, 1)
    (at,) = at_equal_utility(np.repeat([[1.0], [0.0]], 12, 1), steep, [0.05])
    assert at == pytest.approx((0.5, *clopper_pearson(6, 12)))
    # What one prompt alone has left says nothing of others.
    (at,) = at_equal_utility(np.array([[1.0], [0.0]]), steep, [0.05], units=(None, None))
    assert at[1] < 0.05 and at[2] > 0.95
