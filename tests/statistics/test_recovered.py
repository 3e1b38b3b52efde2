"""How much of what was removed comes back, and how sure that is."""

import numpy as np
import pytest

from bench.statistics.recovered import recovered_share
from bench.statistics.units import Design


def shares(random, mean, pictures, images=4):
    """Shares of images by picture, whose chances differ from picture to picture."""
    chances = random.beta(2 * mean, 2 * (1 - mean), pictures) if 0 < mean < 1 else mean
    return random.binomial(images, chances, pictures) / images


def test_the_value_is_the_ratio_of_the_mean_differences():
    probe, edited, whole = np.array([1.0, 0.5, 0.25, 0.5] * 4), np.zeros(16), np.ones(16)
    value, low, high = recovered_share(probe, edited, whole)
    assert value == pytest.approx(np.mean(probe)) and low < value < high


def test_where_all_pictures_agree_the_interval_still_has_a_width():
    for back, value in ((np.zeros(8), 0.0), (np.ones(8), 1.0)):
        found = recovered_share(back, np.zeros(8), np.ones(8))
        assert found[0] == value and found[2] - found[1] > 0.3


def test_where_hardly_anything_was_removed_there_is_no_number():
    some = np.array([0.5, 0.75, 1.0, 0.5, 0.25, 1.0, 0.75, 0.5])
    assert recovered_share(some, some, some) is None
    assert recovered_share(some, some, some + 0.25 * (np.arange(8) == 3)) is None


@pytest.mark.parametrize("truth", [0.02, 0.1, 0.5, 0.88])
def test_its_interval_holds_its_level_for_few_pictures(truth):
    """Where a bootstrap of eight pictures covers .37, .82, .89 and .80."""
    random = np.random.default_rng(0)
    held = tried = 0
    for _ in range(300):
        probe, whole = shares(random, 0.9 * truth, 8), shares(random, 0.9, 8)
        if found := recovered_share(probe, np.zeros(8), whole):
            tried += 1
            held += found[1] <= truth <= found[2]
    assert tried > 250 and held / tried > 0.93


def test_pictures_that_hang_together_make_it_wider():
    random = np.random.default_rng(1)
    probe = np.repeat(shares(random, 0.5, 6), 4)
    edited, whole = np.zeros(24), np.ones(24)
    ids = [f"p{i}" for i in range(24)]
    units = Design({name: i // 4 for i, name in enumerate(ids)}).units(ids)
    alone, together = (recovered_share(probe, edited, whole, given) for given in (None, units))
    assert together[0] == pytest.approx(alone[0])
    assert together[2] - together[1] > 1.2 * (alone[2] - alone[1])
