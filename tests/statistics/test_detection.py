"""Areas, intervals and rates of detectors, against slow and obvious counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.statistics.detection import area, area_interval, at_rate, at_threshold, newcombe, roc
from bench.statistics.intervals import student
from bench.statistics.units import Design
from conftest import examples

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@examples(60)
@given(SCORES, SCORES)
def test_the_area_counts_pairs_and_ties_half(positives, negatives):
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert area(np.array(positives), np.array(negatives)) == pytest.approx(np.mean(pairs))


@examples(60)
@given(SCORES, SCORES)
def test_only_the_order_of_scores_counts_and_a_sign_turns_the_area_round(positives, negatives):
    p, n = np.array(positives), np.array(negatives)
    assert area(np.exp(p), np.exp(n)) == pytest.approx(area(p, n))
    assert area(-p, -n) == pytest.approx(1 - area(p, n))


@examples(60)
@given(SCORES, SCORES)
def test_the_interval_has_a_width_and_holds_the_area(positives, negatives):
    p, n = np.array(positives), np.array(negatives)
    low, high = area_interval(p, n)
    assert 0 <= low <= area(p, n) <= high <= 1 and high - low > 1e-3


def test_a_constant_score_is_worth_nothing():
    same = np.ones(200)
    assert area(same[:50], same) == 0.5
    found = at_rate(same[:50], same, 0.01)
    assert found is not None and (found.found, found.alarms) == (0.0, 0.0)


def test_delongs_variance_is_that_of_its_formula():
    rng = np.random.default_rng(3)
    p, n = rng.normal(1, 1, 40), rng.normal(0, 1, 70)
    above = np.array([np.mean(n < x) for x in p])
    below = np.array([np.mean(p > x) for x in n])
    spread = math.sqrt(above.var(ddof=1) / 40 + below.var(ddof=1) / 70)
    value = above.mean()
    logit = math.log(value / (1 - value))
    margin = 1.959963984540054 * spread / (value * (1 - value))
    expected = [1 / (1 + math.exp(-(logit + side * margin))) for side in (-1, 1)]
    assert area_interval(p, n) == pytest.approx(expected)


def units_of(clusters):
    ids = [str(number) for number in range(len(clusters))]
    return Design(dict(zip(ids, clusters, strict=True)), {}).units(ids)


def test_the_variance_of_clusters_is_that_of_leaving_one_out_after_the_other():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(12), [1, 2, 3, 4] * 3)
    p, n = rng.normal(1, 1, 12)[clusters] + 0.2 * rng.normal(size=30), rng.normal(0, 1, 70)
    above = np.array([np.mean(n < x) for x in p])
    below = np.array([np.mean(p > x) for x in n])
    without = np.array([above[clusters != number].mean() for number in range(12)])
    jackknife = 11 / 12 * ((without - without.mean()) ** 2).sum()
    assert jackknife > 2 * above.var(ddof=1) / 30
    units = units_of(clusters.tolist())
    assert units.independent(above).var(ddof=1) / 12 == pytest.approx(jackknife, rel=0.05)
    of_positives = student(units.effective) ** 2 * units.independent(above).var(ddof=1) / 12
    reach = math.sqrt(of_positives + 1.959963984540054**2 * below.var(ddof=1) / 70)
    value = above.mean()
    margin, logit = reach / (value * (1 - value)), math.log(value / (1 - value))
    expected = [1 / (1 + math.exp(-(logit + side * margin))) for side in (-1, 1)]
    assert area_interval(p, n, (units, None)) == pytest.approx(expected)


def test_intervals_cover_the_area_where_positives_hang_together():
    """Twelve clusters of four: taken for 48 units they cover 84 of 100."""
    clusters, runs, covered = np.repeat(np.arange(12), 4), 300, 0
    units, truth = units_of(clusters.tolist()), stats.norm.cdf(1 / math.sqrt(2))
    for run in range(runs):
        rng = np.random.default_rng([7, run])
        common, own = rng.normal(size=12)[clusters], rng.normal(size=48)
        p = 1 + math.sqrt(0.8) * common + math.sqrt(0.2) * own
        low, high = area_interval(p, rng.normal(size=100), (units, None))
        covered += low <= truth <= high
    assert covered / runs >= 0.92


def test_separated_clusters_count_as_so_many():
    p, n = np.arange(10, 30.0), np.arange(0, 8.0)
    units = units_of(np.repeat(np.arange(5), 4).tolist())
    assert area_interval(p, n, (units, None)) == newcombe(1.0, 5, 8)


def test_separated_groups_get_newcombes_interval():
    low, high = area_interval(np.arange(10, 30.0), np.arange(0, 8.0))
    assert (low, high) == newcombe(1.0, 20, 8) and high == 1.0 and 0.7 < low < 0.95
    # The bound is where the area's own standard error reaches it.
    mean = (20 + 8) / 2 - 1
    error = math.sqrt(
        low * (1 - low) * (1 + mean * ((1 - low) / (2 - low) + low / (1 + low))) / 160
    )
    assert (1 - low) / error == pytest.approx(1.959963984540054, rel=1e-6)


@examples(40)
@given(st.lists(st.integers(0, 5).map(float), min_size=100, max_size=130))
def test_no_more_false_alarms_than_allowed_whatever_ties_there_are(negatives):
    n = np.array(negatives)
    found = at_rate(np.array([2.5, 6.0]), n, 0.01)
    assert found is not None and (n > found.threshold).sum() <= found.allowed == 1
    lower = [value for value in np.unique(n) if value < found.threshold]
    assert all((n > value).sum() > found.allowed for value in lower)


def test_few_negatives_resolve_no_rate_of_one_percent():
    assert at_rate(np.ones(5), np.zeros(99), 0.01) is None
    found = at_threshold(np.array([0.0, 2.0]), np.array([0.0, 0.0, 3.0, 1.0]), 1.0)
    assert (found.found, found.alarms) == (0.5, 0.25)


def test_the_curve_has_the_area_below_it():
    rng = np.random.default_rng(0)
    p, n = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 40).astype(float)
    curve = np.array(roc(p, n))
    assert curve[0].tolist() == [0, 0] and curve[-1].tolist() == [1, 1]
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(area(p, n))


def test_scores_that_are_missing_or_not_finite_are_refused():
    with pytest.raises(ValueError, match="positives and negatives"):
        area(np.array([]), np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        area(np.array([np.nan]), np.ones(3))
