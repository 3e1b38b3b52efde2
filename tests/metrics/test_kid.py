import numpy as np
import pytest
from scipy import stats

from metrics import kid
from metrics.kid import discrepancies, discrepancy, half_width


def features(seed, n, d=12, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


def pair_by_pair(x, y):
    def kernel(a, b):
        return (float(a.astype(float) @ b.astype(float)) / len(a) + 1) ** 3

    def within(z):
        pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (9, 9), (7, 12)])
def test_discrepancy_is_that_of_all_pairs(n, m):
    x, y = features(0, n), features(1, m, shift=0.3)
    assert discrepancy(x.astype(float), y.astype(float)) == pytest.approx(
        pair_by_pair(x, y), rel=1e-10
    )


def test_a_subset_of_everything_gives_the_value_of_clean_fid():
    from cleanfid.fid import kernel_distance

    x, y = features(2, 60), features(3, 60, shift=0.5)
    (value,) = discrepancies(x, y, 1, 1000, 0)
    assert value == pytest.approx(
        kernel_distance(x.astype(float), y.astype(float), num_subsets=1, max_subset_size=60),
        rel=1e-9,
    )


def test_values_of_one_distribution_lie_around_nothing():
    """Unbiased, so some are below 0; a shift is far from that."""
    values = np.array(
        [
            discrepancy(features(2 * i, 40).astype(float), features(2 * i + 1, 40).astype(float))
            for i in range(300)
        ]
    )
    assert (
        abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
        and values.min() < 0 < values.max()
    )
    assert (
        discrepancy(features(0, 40).astype(float), features(1, 40, shift=1).astype(float))
        > values.max()
    )


def test_subsets_follow_from_the_seed():
    x, y = features(4, 50), features(5, 80)
    first, again, other = (list(discrepancies(x, y, 5, 20, seed)) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 5


def test_fewer_pictures_than_a_subset_are_all_drawn():
    x, y = features(6, 10), features(7, 10)
    assert list(discrepancies(x, y, 2, 1000, 0)) == pytest.approx(
        [pair_by_pair(x, y)] * 2, rel=1e-9
    )


@pytest.mark.parametrize("rows", [3, 2048])
@pytest.mark.parametrize(("n", "images", "m"), [(12, 1, 9), (12, 3, 9), (11, 4, 5)])
def test_interval_is_that_of_leaving_out_each_prompt_and_each_real_picture(
    n, images, m, rows, monkeypatch
):
    monkeypatch.setattr(kid, "ROWS", rows)
    x, y = features(8, n), features(9, m, shift=0.3)
    prompts = np.arange(n) // images

    def variance(values):
        return (len(values) - 1) / len(values) * np.sum((values - np.mean(values)) ** 2)

    without_prompt = [pair_by_pair(x[prompts != p], y) for p in sorted(set(prompts))]
    without_real = [pair_by_pair(x, np.delete(y, j, axis=0)) for j in range(m)]
    expected = stats.t.ppf(0.975, len(without_prompt) - 1) * np.sqrt(
        variance(without_prompt) + variance(without_real)
    )
    assert half_width(x, y, images) == pytest.approx(expected, rel=1e-9)


def test_two_prompts_have_no_interval():
    assert half_width(features(0, 8), features(1, 9), 4) is None
