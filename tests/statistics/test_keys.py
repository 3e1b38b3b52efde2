"""What answers say of keys: against loops over pairs, and where the truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import keys as module
from bench.statistics.keys import (
    Estimate,
    correlation,
    difference,
    key_auc,
    null_share,
    permutation_p,
    share_within,
    slope,
)
from conftest import examples

greys = st.lists(st.integers(0, 255), min_size=2, max_size=12)


def drawn(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count) / 255


@given(greys, st.randoms(use_true_random=False), st.sampled_from([0.1, 0.05, 0.005, 51 / 255]))
@examples(60)
def test_shares_and_their_null_are_those_of_loops(given_keys, random, delta):
    keys = np.array(given_keys) / 255
    answers = np.array([random.randrange(256) for _ in keys]) / 255
    pairs = [a - delta < k < a + delta for a in answers for k in keys]
    assert null_share(answers, keys, delta) == pytest.approx(np.mean(pairs), abs=0)
    own = [a - delta < k < a + delta for a, k in zip(answers, keys, strict=True)]
    assert share_within(answers, keys, delta) == np.mean(own)


@given(greys, st.randoms(use_true_random=False))
@examples(60)
def test_the_area_is_that_of_a_loop_over_pairs(given_keys, random):
    keys = np.array(given_keys) / 255
    answers = np.array([random.randrange(256) for _ in keys]) / 255
    won = [
        float(abs(answers[i] - keys[i]) < abs(answers[i] - keys[j]))
        + 0.5 * (abs(answers[i] - keys[i]) == abs(answers[i] - keys[j]))
        for i in range(len(keys))
        for j in range(len(keys))
        if i != j
    ]
    found = key_auc(answers, keys)
    assert found.value == pytest.approx(np.mean(won))
    assert found.low <= found.value <= found.high


def test_whoever_knows_the_keys_is_never_wrong():
    keys = np.linspace(0, 1, 30)
    found = key_auc(keys, keys)
    assert found.value == 1 and found.high == 1 and 0.8 < found.low < 1
    assert share_within(keys, keys, 0.005) == 1
    assert permutation_p(keys, keys, 0.05) == pytest.approx(1e-4)
    assert correlation(keys, keys).value == pytest.approx(1)
    assert slope(keys, keys).value == pytest.approx(1)


def test_a_constant_answer_is_at_chance():
    keys = drawn(200)
    answers = np.full(200, 0.5)
    found = key_auc(answers, keys)
    assert found.value == pytest.approx(0.5) and found.low < 0.47 and found.high > 0.53
    # It agrees with as many keys however they are dealt out.
    assert permutation_p(answers, keys, 0.1) == 1
    assert share_within(answers, keys, 0.1) == pytest.approx(null_share(answers, keys, 0.1))
    assert correlation(answers, keys) is None and slope(answers, keys) is None


def test_p_values_of_answers_that_know_nothing_are_uniform(monkeypatch):
    monkeypatch.setattr(module, "PERMUTATIONS", 199)
    random = np.random.default_rng(0)
    found = [permutation_p(random.random(40), random.random(40), 0.1) for _ in range(300)]
    for level in (0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(found) <= level) < level + 0.06
    assert np.mean(np.array(found) <= 0.5) > 0.3


def test_the_interval_of_the_area_covers_chance():
    random, held = np.random.default_rng(0), 0
    for _ in range(60):
        found = key_auc(random.random(30), random.random(30))
        held += found.low <= 0.5 <= found.high
    assert held >= 53


def test_correlation_and_slope_of_a_gaussian_pair_are_found():
    random = np.random.default_rng(0)
    keys = random.normal(0.5, 0.1, 20_000)
    answers = 0.2 + 0.6 * keys + random.normal(0, 0.08, 20_000)
    rho = 0.06 / np.hypot(0.06, 0.08)
    found, steep = correlation(answers, keys), slope(answers, keys)
    assert found.low < rho < found.high and found.value == pytest.approx(rho, abs=0.02)
    assert steep.low < 0.6 < steep.high and steep.value == pytest.approx(0.6, abs=0.02)


def test_uniform_guesses_have_the_null_of_the_closed_form():
    random, delta = np.random.default_rng(0), 0.1
    null = null_share(random.random(5000), random.random(5000), delta)
    assert null == pytest.approx(2 * delta - delta**2, abs=0.01)


def test_shares_rise_with_delta():
    answers, keys = drawn(50, 1), drawn(50, 2)
    shares = [share_within(answers, keys, delta) for delta in (0.005, 0.05, 0.1, 0.5)]
    assert shares == sorted(shares)


def test_a_difference_has_the_margins_of_both():
    found = difference(Estimate(0.9, 0.8, 0.95), Estimate(0.5, 0.4, 0.6))
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - np.hypot(0.1, 0.1))
    assert found.high == pytest.approx(0.4 + np.hypot(0.05, 0.1))


def test_one_picture_has_no_other_key():
    with pytest.raises(ValueError, match="two pictures"):
        key_auc(np.array([0.5]), np.array([0.5]))
