"""Prompts that hang together, against leaving them out one cluster after the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from bench.statistics.claims import rank_intervals, sign_flip_p
from bench.statistics.intervals import (
    clopper_pearson,
    cluster_bootstrap,
    paired_difference,
    proportion_interval,
    share_interval,
    student,
)
from bench.statistics.units import Design
from conftest import examples

IDS = [f"p{i}" for i in range(24)]


def design(clusters, strata):
    """From lists: a cluster (None: alone) and a stratum for each of `IDS`."""
    return Design(
        {name: number for name, number in zip(IDS, clusters, strict=False) if number is not None},
        dict(zip(IDS, strata, strict=False)),
    )


def jackknife(values, clusters, strata):
    """The variance of the mean from leaving out each cluster in turn, the shares of strata kept."""

    def mean_without(left_out):
        found = 0.0
        for stratum in set(strata):
            rows = [i for i in range(len(values)) if strata[i] == stratum]
            kept = [values[i] for i in rows if clusters[i] != left_out]
            found += len(rows) / len(values) * np.mean(kept)
        return found

    weighted = []
    for cluster in sorted(set(clusters)):
        stratum = strata[clusters.index(cluster)]
        c = len({k for k, s in zip(clusters, strata, strict=True) if s == stratum})
        weighted.append(np.sqrt((c - 1) / c) * (mean_without(cluster) - np.mean(values)))
    weighted = np.array(weighted)
    return np.sum((weighted - weighted.mean()) ** 2)


@examples(50)
@given(st.data())
def test_units_have_the_mean_of_prompts_and_the_variance_of_leaving_out_clusters(data):
    count = data.draw(st.integers(6, 24))
    strata = sorted(data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count)))
    clusters = [f"{s}{data.draw(st.integers(0, 4))}" for s in strata]
    for stratum in set(strata):  # none of a single cluster
        if len({c for c, s in zip(clusters, strata, strict=True) if s == stratum}) < 2:
            return
    values = np.array(data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    units = design(clusters, strata).units(IDS[:count])
    if units is None:
        return
    found = units.independent(values)
    assert found.mean() == pytest.approx(values.mean(), abs=1e-12)
    expected = jackknife(values, clusters, strata)
    assert found.var() / (len(found) - 1) == pytest.approx(expected, abs=1e-12)
    assert units.totals(values).mean() == pytest.approx(values.mean(), abs=1e-12)


def test_prompts_of_their_own_in_one_stratum_are_left_alone():
    assert Design().units(IDS) is None
    assert design([None] * 24, ["a"] * 24).units(IDS) is None
    assert design([3] + [None] * 23, ["a"] * 24).units(IDS) is None  # its others are not here


def test_a_stratum_of_one_cluster_joins_a_neighbour():
    units = design([None] * 6, ["a", "b", "b", "c", "d", "d"]).units(IDS[:6])
    assert units.strata.tolist() == [0, 0, 0, 0, 1, 1]
    assert Design({}, {"p0": "a", "p1": "b"}).units(IDS[:2]) is None


def test_copies_of_one_prompt_count_once():
    """Twelve prompts, each there twice: the interval is that of the twelve."""
    half = np.random.default_rng(0).normal(size=12)
    pairs = design([i % 12 for i in range(24)], ["a"] * 24)
    both, units = np.concatenate([half, half]), pairs.units(IDS)
    alone = cluster_bootstrap(half[:, None])
    assert cluster_bootstrap(both[:, None], units=units) == pytest.approx(alone)
    assert np.subtract(*cluster_bootstrap(both[:, None])[::-1]) < np.subtract(*alone[::-1])
    values, none = dict(zip(IDS, both, strict=True)), dict.fromkeys(IDS, 0.0)
    of_twelve = paired_difference({name: values[name] for name in IDS[:12]}, none)
    assert paired_difference(values, none, design=pairs) == pytest.approx(of_twelve)
    assert sign_flip_p(units.totals(both)) == pytest.approx(sign_flip_p(half))
    assert rank_intervals(np.stack([both, both + 1]), units=units) == [(1, 1), (2, 2)]


def test_shares_of_clusters():
    pairs = design([i % 12 for i in range(24)], ["a"] * 24)
    units, ones = pairs.units(IDS), np.ones((24, 1))
    assert proportion_interval(ones, units=units) == pytest.approx(clopper_pearson(12, 12))
    changed = {name: float(i % 12 == 0) for i, name in enumerate(IDS)}
    none = dict.fromkeys(IDS, 0.0)
    alone = paired_difference({name: changed[name] for name in IDS[:12]}, none, share=True)
    assert paired_difference(changed, none, share=True, design=pairs) == pytest.approx(alone)


def test_a_share_whose_strata_agree_each_is_not_known_exactly():
    """Nothing varies within a level, of which there are few prompts: the bootstrap has no width."""
    units = design([None] * 8, ["a", "a", "b", "b", "c", "c", "d", "d"]).units(IDS[:8])
    values = np.repeat([1.0, 1.0, 1.0, 0.0], 2)[:, None].repeat(3, 1)  # of three generations
    low, high = cluster_bootstrap(values, units=units)
    assert low == high == 0.75
    assert proportion_interval(values, units=units) == share_interval(values[:, 0], units)
    assert share_interval(values[:, 0], units) == pytest.approx(
        scored(0.75, 0.75 * 0.25 / 8, student(5))  # eight trials, of which five tell
    )


def scored(share, variance, reach):
    """The shares from which the observed one is `reach` standard errors off, at the number of
    trials that has this variance.
    """
    trials = share * (1 - share) / variance

    def off(truth):
        return (share - truth) ** 2 - reach**2 * truth * (1 - truth) / trials

    return brentq(off, 0, share), brentq(off, share, 1)


def test_the_variance_of_a_share_is_that_of_prompts_and_the_largest_one():
    """Shares in quarters of 18 prompts, without and with strata."""
    means = np.random.default_rng(3).integers(0, 5, 18) / 4
    observed, largest = means.var(ddof=1) / 18, means.mean() * (1 - means.mean()) / 18
    weight = 4 * means.mean() * (1 - means.mean()) * 18
    variance = (weight * observed + largest) / (weight + 1)
    assert share_interval(means) == pytest.approx(scored(means.mean(), variance, student(18)))

    means = np.sort(means)
    strata = means.reshape(2, 9)
    units = design([None] * 18, ["low"] * 9 + ["high"] * 9).units(IDS[:18])
    observed = strata.var(axis=1, ddof=1).sum() / 9 / 4
    weight = sum(4 * level.mean() * (1 - level.mean()) * 9 for level in strata)
    variance = (weight * observed + largest) / (weight + 1)
    assert share_interval(means, units) == pytest.approx(
        scored(means.mean(), variance, student(17))
    )


def test_one_image_that_is_no_copy_does_not_make_a_share_nearly_certain():
    """With eight prompts of twelve copies each the share may be as low as 0.63; the bootstrap said
    that it is 0.93 at least once a single image was none.
    """
    table = np.ones((8, 12))
    assert proportion_interval(table) == pytest.approx(clopper_pearson(8, 8))
    table[0, 0] = 0
    assert cluster_bootstrap(table)[0] > 0.9
    low, high = proportion_interval(table)
    assert 0.6 < low < 0.8 and 95 / 96 < high < 1
    # as low as any that is nearer to the middle
    table[:4, 1] = 0
    assert proportion_interval(table)[0] < 92 / 96 and proportion_interval(table)[1] < high


def test_a_share_of_one_unit_is_that_of_one_trial():
    units = design([0, 0, 0], ["a"] * 3).units(IDS[:3])
    low, high = proportion_interval(np.array([[1.0], [0.0], [1.0]]), units)
    assert low < 0.05 and high > 0.98
    assert proportion_interval(np.ones((1, 4))) == pytest.approx(clopper_pearson(1, 1))


def test_a_share_of_strata_is_no_wider_than_they_leave_open():
    """All that can vary lies in the middle level; an exact interval would not know that."""
    levels = [f"level {i // 8}" for i in range(24)]
    units = design([None] * 24, levels).units(IDS)
    values = np.array([0.0] * 8 + [0, 1] * 4 + [1.0] * 8)[:, None]
    low, high = proportion_interval(values, units=units)
    exact = clopper_pearson(12, 24)
    assert exact[0] < low < 0.5 < high < exact[1]


def test_strata_take_out_what_lies_between_them():
    random = np.random.default_rng(1)
    values = np.repeat([0.0, 0.5, 1.0], 8) + 0.01 * random.normal(size=24)
    units = design([None] * 24, [f"level {i // 8}" for i in range(24)]).units(IDS)
    low, high = cluster_bootstrap(values[:, None], units=units)
    wide = cluster_bootstrap(values[:, None])
    assert low < values.mean() < high and high - low < 0.05 * (wide[1] - wide[0])
