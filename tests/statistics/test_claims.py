"""Tests of many comparisons against enumeration, published examples and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.statistics.claims import holm, rank_intervals, sign_flip_p
from bench.statistics.intervals import difference_of_shares


def by_enumeration(differences):
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return np.mean([value >= abs(sum(differences)) - 1e-12 for value in sums])


@pytest.mark.parametrize("differences", [[1, 1, 1, 1, 1, 1], [0.5, -0.2, 0.9, 0.1], [3, -1, -1, 2]])
def test_the_p_value_is_that_of_all_signs(differences):
    found = sign_flip_p(np.array(differences), flips=40_000)
    assert found == pytest.approx(by_enumeration(differences), abs=0.015)


def test_where_nothing_differs_nothing_is_shown_and_zeros_do_not_count():
    assert sign_flip_p(np.zeros(50)) == 1
    some = np.array([0.3, 0.4, 0.2, -0.1, 0.6])
    assert sign_flip_p(some) == sign_flip_p(np.concatenate([some, np.zeros(30)]))


def test_p_values_are_uniform_where_nothing_differs():
    random = np.random.default_rng(0)
    found = [sign_flip_p(random.normal(size=30), seed, 499) for seed in range(400)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def test_holms_example():
    """Ordered, each is multiplied by the number of tests not yet rejected, and none falls."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]


def test_rows_far_apart_have_one_rank_each_and_the_same_rows_share_all():
    random = np.random.default_rng(1)
    base = random.normal(size=60)
    noise = 0.01 * random.normal(size=(3, 60))
    assert rank_intervals(base + noise + np.array([[2.0], [0.0], [1.0]])) == [
        (3, 3),
        (1, 1),
        (2, 2),
    ]
    assert rank_intervals(np.stack([base, base, base])) == [(1, 3)] * 3
    assert rank_intervals(base[None]) == [(1, 1)]


def test_ranks_hold_the_true_ones_together_in_nineteen_of_twenty_boards():
    random, true, held = np.random.default_rng(2), np.array([0.0, 0.0, 0.15, 0.4]), 0
    for trial in range(200):
        prompts = random.normal(size=80)
        values = true[:, None] + prompts + 0.5 * random.normal(size=(4, 80))
        found = rank_intervals(values, trial, 500)
        # Rows 0 and 1 share the first two ranks.
        ranks = [(1, 2), (1, 2), (3, 3), (4, 4)]
        held += all(
            low <= greatest and high >= least
            for (low, high), (least, greatest) in zip(found, ranks, strict=True)
        )
    assert held >= 186


def test_rows_that_the_paired_interval_does_not_tell_apart_share_their_ranks():
    """Few prompts that changed a little are no proof for shares, and many that changed much are."""
    none, little, much = np.full(68, 0.9), np.full(68, 0.9), np.full(68, 0.2)
    little[:8] -= 0.25
    values = np.stack([none, little, much])
    low, high = difference_of_shares(little - none)
    assert low < 0 < high
    assert rank_intervals(values, shares=True) == [(2, 3), (2, 3), (1, 1)]
    assert rank_intervals(values) == [(3, 3), (2, 2), (1, 1)]
