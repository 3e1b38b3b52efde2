"""The 1/3 rule and the EMM, against slow loops, closed forms and synthetic curves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics.memorized_share import (
    BLOCK,
    Bracket,
    emm_bracket,
    emm_interval,
    emm_point,
    falling,
    memorized,
    nearest_two,
    paired_shares,
    share_interval,
)
from conftest import examples


def pictures(count, seed=0, side=4):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def slow(generations, training):
    first, second = [], []
    for made in generations:
        sums = sorted(
            sum((int(a) - int(b)) ** 2 for a, b in zip(made.ravel(), known.ravel(), strict=True))
            for known in training
        )
        first.append(sums[0])
        second.append(sums[1])
    return first, second


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 1000))
@examples(20)
def test_sums_are_those_of_a_loop_over_whole_numbers(known, made, seed):
    training, generations = pictures(known, seed), pictures(made, seed + 1)
    first, second = nearest_two(generations, training)
    assert (first.tolist(), second.tolist()) == slow(generations, training)


def test_blocks_change_no_bit():
    training, generations = pictures(7), pictures(2 * BLOCK + 3, 1)
    first, second = nearest_two(generations, training)
    alone = [nearest_two(made[None], training) for made in generations]
    assert first.tolist() == [int(found[0][0]) for found in alone]
    assert second.tolist() == [int(found[1][0]) for found in alone]


def test_extreme_pictures_are_exact():
    black, white = np.zeros((1, 300, 300, 3), np.uint8), np.full((1, 300, 300, 3), 255, np.uint8)
    first, second = nearest_two(white, np.concatenate([black, white]))
    assert (first[0], second[0]) == (0, 300 * 300 * 3 * 255**2)


def test_generations_out_of_the_training_set_are_all_memorized():
    training = pictures(20)
    assert memorized(*nearest_two(training[::2], training)).all()


def test_far_pictures_change_nothing():
    training = pictures(10) // 8
    generations = pictures(30, 1) // 8
    before = memorized(*nearest_two(generations, training))
    far = np.full((5, 4, 4, 3), 255, np.uint8)
    after = memorized(*nearest_two(generations, np.concatenate([training, far])))
    assert np.array_equal(before, after)


def test_a_neighbour_in_the_middle_flips_it():
    training = np.zeros((2, 1, 1, 3), np.uint8)
    training[1] = 100
    made = np.full((1, 1, 1, 3), 8, np.uint8)
    assert memorized(*nearest_two(made, training)).all()
    between = np.full((1, 1, 1, 3), 20, np.uint8)
    assert not memorized(*nearest_two(made, np.concatenate([training, between]))).any()


def test_a_third_exactly_is_not_less_than_a_third():
    assert memorized(np.array([1, 1]), np.array([9, 10])).tolist() == [False, True]


def test_one_training_picture_has_no_second_nearest():
    with pytest.raises(ValueError, match="two training pictures"):
        nearest_two(pictures(3), pictures(1))


def test_a_duplicate_would_hide_a_copy():
    training = pictures(3)
    twice = np.concatenate([training, training[:1]])
    assert not memorized(*nearest_two(training[:1], twice)).any()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@examples(60)
def test_the_falling_curve_is_the_nearest_one(shares):
    found = falling(np.array(shares))
    assert (np.diff(found) <= 1e-12).all()
    assert found.mean() == pytest.approx(np.mean(shares))
    # Max-min formula of isotonic regression, over all pieces.
    for place in range(len(shares)):
        slow = min(
            max(np.mean(shares[low : high + 1]) for high in range(place, len(shares)))
            for low in range(place + 1)
        )
        assert found[place] == pytest.approx(slow)


def test_the_point_lies_between_two_sizes_evenly_in_the_logarithm():
    assert emm_point([10, 40], np.array([1.0, 0.8]), 0.1) == pytest.approx(20)
    assert emm_point([10, 40], np.array([0.5, 0.4]), 0.1) == 0
    assert emm_point([10, 40], np.array([1.0, 0.95]), 0.1) == math.inf


@pytest.mark.parametrize("middle", [20.0, 50.0, 90.0])
def test_the_bracket_contains_the_truth_of_a_logistic_curve(middle):
    sizes = [4, 8, 16, 32, 64, 128, 256, 512]
    truth = middle * (0.1 / 0.9) ** (1 / 3)
    shares = [1 / (1 + (size / middle) ** 3) for size in sizes]
    random, held = np.random.default_rng(0), 0
    for _ in range(40):
        tables = [random.random((1, 400)) < share for share in shares]
        found = emm_bracket(sizes, [share_interval(table) for table in tables], 0.1)
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
        point = emm_point(sizes, np.array([table.mean() for table in tables]), 0.1)
        assert found.low <= point <= found.high
    assert held >= 38


def test_a_bracket_says_where_no_size_is_enough():
    assert emm_bracket([8], [(0.5, 0.95)], 0.1) == Bracket(None, None)
    assert emm_bracket([8, 16], [(0.95, 1.0), (0.1, 0.2)], 0.1) == Bracket(8, 16)


def test_the_interval_of_the_point_holds_it():
    random, sizes = np.random.default_rng(1), [8, 16, 32]
    tables = [random.random((2, 200)) < share for share in (0.99, 0.93, 0.5)]
    low, high = emm_interval(sizes, tables, 0.1)
    point = emm_point(sizes, np.array([table.mean() for table in tables]), 0.1)
    assert low < point < high
    assert emm_interval(sizes, [np.ones((1, 50), bool)] * 3, 0.1) == (math.inf, math.inf)


def test_several_trainings_reach_from_the_lowest_to_the_highest_bound():
    one, other = np.array([[1] * 9 + [0]]), np.array([[1] * 5 + [0] * 5])
    low, high = share_interval(np.concatenate([one, other]))
    assert (low, high) == (share_interval(other)[0], share_interval(one)[1])


def test_paired_differences_know_pairs_and_trainings():
    true = np.array([[0, 0, 1, 1] * 25])
    value, low, high = paired_shares(true, true)
    assert value == 0 and low < 0 < high
    value, low, high = paired_shares(np.ones_like(true), true)
    assert value == 0.5 and low > 0.3
    # Two trainings that disagree leave open what a third one would do.
    wide = paired_shares(np.array([[1] * 100, [0] * 100]), np.zeros((2, 100)))
    assert wide[0] == 0.5 and -0.05 < wide[1] <= 0 and wide[2] == 1


def test_trainings_that_agree_are_no_surer_than_the_least_sure_of_them():
    flags = np.array([[0, 0, 1, 1] * 16])
    value, low, high = paired_shares(np.repeat(flags, 3, 0), np.repeat(flags, 3, 0))
    assert (value, low, high) == paired_shares(flags, flags) and low < 0 < high
    fewer = flags * np.array([[0] * 8 + [1] * 56])
    tables = np.concatenate([flags, fewer, flags]), np.repeat(flags, 3, 0)
    _, low, high = paired_shares(*tables)
    for mine, true in zip(*tables, strict=True):
        _, one_low, one_high = paired_shares(mine[None], true[None])
        assert low <= one_low and high >= one_high
