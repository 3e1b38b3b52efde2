"""Intervals against the formulas written out one number at a time."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import t as student

from bench.statistics.intervals import (
    RESAMPLES,
    clopper_pearson,
    cluster_bootstrap,
    difference_of_shares,
    independent_shares,
    paired_difference,
    paired_differences,
    proportion_interval,
    threshold_at,
)


def slow_interval(per_prompt, statistic):
    """BCa at the expanded level (Efron 1987; Hesterberg 2015), with a loop for every resample.

    The resamples are those of seed 0.
    """
    normal, random, n = NormalDist(), np.random.default_rng(0), len(per_prompt)
    whole = round(statistic(per_prompt), 9)
    picks = [row for _ in range(0, RESAMPLES, 1000) for row in random.integers(0, n, (1000, n))]
    drawn = sorted(round(statistic([per_prompt[i] for i in row]), 9) for row in picks)
    below, ties = sum(value < whole for value in drawn), sum(value == whole for value in drawn)
    bias = normal.inv_cdf((below + ties / 2) / RESAMPLES)
    without = [statistic(per_prompt[:i] + per_prompt[i + 1 :]) for i in range(n)]
    center = sum(without) / n
    skew = sum((center - value) ** 3 for value in without) / (
        6 * sum((center - value) ** 2 for value in without) ** 1.5
    )
    tail = normal.cdf(-math.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1))
    bounds = []
    for z in (normal.inv_cdf(tail), normal.inv_cdf(1 - tail)):
        place = normal.cdf(bias + (bias + z) / (1 - skew * (bias + z))) * (RESAMPLES - 1)
        below = int(place)
        bounds.append(
            drawn[below] + (place - below) * (drawn[min(below + 1, RESAMPLES - 1)] - drawn[below])
        )
    return bounds


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_the_interval_equals_the_formula_and_resamples_prompts_and_not_images(shape):
    random = np.random.default_rng(0)
    per_prompt = random.normal(size=30) if shape == "normal" else random.exponential(size=30)
    few, many = np.repeat(per_prompt[:, None], 2, 1), np.repeat(per_prompt[:, None], 50, 1)
    assert cluster_bootstrap(few) == pytest.approx(cluster_bootstrap(many))
    assert cluster_bootstrap(few) == pytest.approx(
        slow_interval(list(per_prompt), lambda values: sum(values) / len(values)), abs=1e-6
    )


def test_a_percentile_is_of_all_images_of_the_drawn_prompts():
    table = np.random.default_rng(1).normal(size=(15, 4))
    fast = cluster_bootstrap(table, lambda values: np.percentile(values, 90, axis=-1))
    slow = slow_interval(
        [list(row) for row in table],
        lambda rows: float(np.percentile([value for row in rows for value in row], 90)),
    )
    assert fast == pytest.approx(slow, abs=1e-6)


def test_an_interval_holds_its_value_and_a_constant_has_a_point():
    assert cluster_bootstrap(np.full((5, 2), 0.3)) == (0.3, 0.3)
    low, high = cluster_bootstrap(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    assert low <= 1 / 6 <= high and math.isfinite(low) and math.isfinite(high)
    with pytest.raises(ValueError, match="at least two prompts"):
        cluster_bootstrap(np.zeros((1, 4)))


def test_the_order_of_prompts_and_images_changes_nothing_that_can_be_seen():
    table = (np.random.default_rng(2).random((48, 3)) < 0.2).astype(float)
    shuffled = np.random.default_rng(3).permuted(table, axis=1)
    # the same sums: ties stay ties in any order of summation
    assert cluster_bootstrap(shuffled) == cluster_bootstrap(table)
    means = {f"p{i}": float(row.mean()) for i, row in enumerate(table)}
    again = cluster_bootstrap(np.array([[round(value, 12)] for value in means.values()]))
    assert again == cluster_bootstrap(table)  # from what a record keeps


def test_clopper_pearson_fixtures():
    assert clopper_pearson(0, 112)[1] == pytest.approx(0.0324, abs=1e-4)
    assert clopper_pearson(112, 500) == pytest.approx((0.1882, 0.2631), abs=1e-4)
    assert clopper_pearson(5, 500) == pytest.approx((0.00325, 0.02318), abs=1e-4)
    assert proportion_interval(np.zeros((112, 4)))[1] == pytest.approx(0.0324, abs=1e-4)


def test_differences_are_paired_by_prompt():
    base = {f"p{i}": float(i) for i in range(20)}
    shifted = {name: value - 0.5 for name, value in base.items()} | {"only here": 9.0}
    assert paired_difference(shifted, base) == pytest.approx((-0.5, -0.5, -0.5))
    assert paired_difference({"p1": 1.0}, base) is None


def test_differences_of_several_scores_at_once_are_those_of_each_alone():
    random = np.random.default_rng(4)
    scores = {
        name: {f"p{i}": float(value) for i, value in enumerate(random.normal(size=count))}
        for name, count in (("a", 9), ("b", 9), ("c", 7), ("d", 1))
    }
    base = {
        name: {prompt: float(random.normal()) for prompt in values}
        for name, values in scores.items()
    } | {"other": {"p0": 1.0}}
    together = paired_differences(scores, base)
    assert together == {name: paired_difference(scores[name], base[name]) for name in "abc"}


def test_a_difference_of_shares_is_that_of_bonett_and_price():
    """With values 0 and 1, from the four counts: p12 = (f12 + 1) / (n + 2), p21 alike."""
    for better, worse, n in [(3, 0, 48), (8, 1, 48), (10, 10, 48), (0, 7, 20), (0, 0, 130)]:
        before = {f"p{i}": float(i < better) for i in range(n)}
        after = {f"p{i}": float(n - worse <= i) for i in range(n)}
        value, low, high = paired_difference(after, before, share=True)
        gain, loss = (worse + 1) / (n + 2), (better + 1) / (n + 2)
        margin = 1.959964 * math.sqrt((gain + loss - (gain - loss) ** 2) / (n + 2))
        assert value == pytest.approx((worse - better) / n)
        assert (low, high) == pytest.approx((gain - loss - margin, gain - loss + margin), abs=1e-6)
    # Three prompts of forty-eight are no proof, seven of twenty are.
    assert difference_of_shares(np.array([1.0] * 3 + [0.0] * 45))[0] < 0
    assert difference_of_shares(np.array([1.0] * 7 + [0.0] * 13))[0] > 0


@pytest.mark.parametrize("prompts", [18, 48, 200])
@pytest.mark.parametrize("better, worse", [(0.02, 0.0), (0.1, 0.02), (0.3, 0.0), (0.6, 0.05)])
def test_a_difference_of_shares_holds_its_level_where_few_prompts_change(prompts, better, worse):
    drawn = np.random.default_rng(prompts).random((1500, prompts))
    differences = np.where(drawn < better, 1.0, np.where(drawn < better + worse, -1.0, 0.0))
    found = np.array([difference_of_shares(row) for row in differences])
    held = np.mean((found[:, 0] <= better - worse) & (better - worse <= found[:, 1]))
    assert held >= 0.925


def test_an_interval_of_shares_is_never_of_no_width():
    same = {f"p{i}": 1.0 for i in range(48)}
    value, low, high = paired_difference(same, same, share=True)
    assert value == 0 and low < 0 < high and high - low > 0.05


def test_a_threshold_lets_exactly_its_share_of_negatives_through():
    negatives = np.random.default_rng(0).permutation(1000) / 1000
    assert (negatives > threshold_at(negatives, 0.001)).sum() == 1
    assert (negatives > threshold_at(negatives, 0.05)).sum() == 50
    assert (np.ones(1000) > threshold_at(np.ones(1000), 0.05)).sum() == 0
    with pytest.raises(ValueError, match="cannot resolve"):
        threshold_at(negatives[:500], 0.001)


def test_independent_shares_are_newcombe_s_method_10_with_exact_margins():
    """56 of 70 and 48 of 80, one value each: the margins of Clopper-Pearson, squared and added."""
    one = np.array([1.0] * 56 + [0.0] * 14)[:, None]
    other = np.array([1.0] * 48 + [0.0] * 32)[:, None]
    low, high = independent_shares(one, other)
    (low1, high1), (low2, high2) = clopper_pearson(56, 70), clopper_pearson(48, 80)
    assert low == pytest.approx(0.2 - np.hypot(0.8 - low1, high2 - 0.6))
    assert high == pytest.approx(0.2 + np.hypot(high1 - 0.8, 0.6 - low2))
    # Newcombe (1998) prints 0.0524 to 0.3339 for score intervals; exact ones are a little wider
    assert 0.02 < low < 0.0524 and 0.3339 < high < 0.36


def test_independent_shares_have_a_width_where_all_agree_and_turn_with_their_order():
    all_, none = np.ones((8, 4)), np.zeros((8, 4))
    low, high = independent_shares(all_, none)
    assert low < 1 == high and low > 0.3
    back = independent_shares(none, all_)
    assert back == pytest.approx((-high, -low))
    low, high = independent_shares(none, none)
    assert low < 0 < high


def test_a_difference_of_differences_of_shares_holds_its_level():
    """Each prompt's value is -1, 0 or 1 in both rows; the true mean difference is 0.03."""
    random, held, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        rows = random.random((4, 48)) < np.array([[0.10], [0.05], [0.05], [0.03]])
        one, other = rows[0] * 1.0 - rows[1], rows[2] * 1.0 - rows[3]
        values, baseline = ({f"p{i}": v for i, v in enumerate(row)} for row in (one, other))
        found = paired_differences({"x": values}, {"x": baseline}, of_shares=["x"])["x"]
        held += found[1] <= 0.03 <= found[2]
    assert held / trials > 0.94
    same = dict.fromkeys("abcd", 1.0)
    _, low, high = paired_differences({"x": same}, {"x": same}, of_shares=["x"])["x"]
    assert low < -0.5 and high > 0.5
