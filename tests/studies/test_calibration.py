"""The threshold of the clique attack follows from the nearest pairs of clean prompts and a rate."""

import numpy as np
import pytest

from attacks._calibration import allowed, nearest_pair, threshold_below
from attacks._exact import squared_limit
from bench.base.errors import UserError


def test_the_nearest_pair_is_the_first_edge():
    distances = np.array([[0, 7, 3], [7, 0, 9], [3, 9, 0]], dtype=np.int64)
    assert nearest_pair(distances) == 3


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.34])
def test_the_threshold_joins_as_many_as_its_rate_allows_and_a_step_more_joins_too_many(rate):
    elements = 192
    nearest = sorted(int(x) for x in np.random.default_rng(1).integers(10_000, 900_000, 20))
    threshold = threshold_below(nearest, rate, elements)
    joined = [
        sum(c <= squared_limit(t, elements) for c in nearest)
        for t in (threshold, round(threshold + 1e-4, 4))
    ]
    assert joined[0] <= rate * 20 + 1e-9 < joined[1] or threshold == 1.0
    ties = [5000] * 20
    assert (
        sum(c <= squared_limit(threshold_below(ties, rate, elements), elements) for c in ties) == 0
    )


def test_calibrations_that_cannot_be_made_say_why():
    with pytest.raises(UserError, match="at least 100 are needed"):
        threshold_below([5, 6, 7], 0.01, 192)
    assert allowed(0.01, 100) == 1 and allowed(0.1, 19) == 1
    with pytest.raises(UserError, match="identical pictures"):
        threshold_below([0] * 10, 0.1, 192)
