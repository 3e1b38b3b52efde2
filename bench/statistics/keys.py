"""How well a model gives back keys: numbers that were drawn at random for training pictures, so
that whoever knows them has learned them (SolidMark: Kriplani et al. 2025, arXiv 2503.00592).

Answers g and keys k are greys from 0 to 1, one of each for a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.statistics.detection import newcombe
from bench.statistics.intervals import CONFIDENCE, NORMAL, student

DRAWS = 4000  # of the bootstrap
PERMUTATIONS = 9999
BLOCK = 250  # draws held at a time


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def within(answers: np.ndarray, keys: np.ndarray, delta: float) -> np.ndarray:
    """Which answers are less than `delta` from their keys: bool of the common shape.

    The bounds are laid around the answer, so that the sorted count of `null_share` meets the same
    numbers.
    """
    return (answers - delta < keys) & (keys < answers + delta)


def share_within(answers: np.ndarray, keys: np.ndarray, delta: float) -> float:
    """Share of the answers `[n]` that are less than `delta` from their keys."""
    return float(within(answers, keys, delta).mean())


def null_share(answers: np.ndarray, keys: np.ndarray, delta: float) -> float:
    """What `share_within` is on average when the keys are dealt out at random: the share of all
    pairs of an answer and a key, exactly, in O(n log n).
    """
    ordered = np.sort(keys)
    above = np.searchsorted(ordered, answers + delta, side="left")
    below = np.searchsorted(ordered, answers - delta, side="right")
    return float(np.maximum(above - below, 0).sum() / len(answers) ** 2)


def permutation_p(answers: np.ndarray, keys: np.ndarray, delta: float, seed: int = 0) -> float:
    """How often keys dealt out at random agree with at least as many answers: a p-value of at least
    1/10,000, from 9,999 permutations.

    A constant answer agrees with as many keys however they are dealt out, so it has the p-value 1.
    """
    random, seen = np.random.default_rng(seed), int(within(answers, keys, delta).sum())
    as_many = sum(
        int(within(answers, random.permutation(keys), delta).sum()) >= seen
        for _ in range(PERMUTATIONS)
    )
    return (1 + as_many) / (1 + PERMUTATIONS)


def key_auc(answers: np.ndarray, keys: np.ndarray, seed: int = 0) -> Estimate:
    """The chance that an answer is nearer to its own key than to another picture's, ties counted
    half: .5 for whoever does not know the keys, whatever the distribution of the answers.

    The interval is a bootstrap over pictures (percentiles); where all draws agree (every picture
    says the same, or the answer never changes) Newcombe's score interval of as many pictures takes
    its place, which is wide.
    Raises `ValueError` for fewer than two pictures.
    """
    if len(answers) < 2:
        raise ValueError("a key AUC needs two pictures at least")
    distances = np.abs(answers[:, None] - keys[None, :])
    own = np.diag(distances)[:, None]
    nearer = (own < distances) + 0.5 * (own == distances)
    np.fill_diagonal(nearer, 0.0)
    count = len(answers)
    value = float(nearer.sum() / (count * (count - 1)))
    random, found = np.random.default_rng(seed), list[np.ndarray]()
    for start in range(0, DRAWS, BLOCK):
        many = min(BLOCK, DRAWS - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=many).astype(float)
        # A picture that was drawn twice is no other picture than itself.
        pairs = count**2 - np.square(weights).sum(1)
        sums = np.einsum("bi,bi->b", weights @ nearer, weights)
        found.append(np.divide(sums, pairs, out=np.full(many, value), where=pairs > 0))
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = (float(bound) for bound in np.quantile(np.concatenate(found), tails))
    if high - low < 1e-9:
        low, high = newcombe(value, count, count)
    return Estimate(value, low, high)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """The difference of two numbers of pictures that have nothing to do with each other, by the
    margins of both intervals, squared and added (Zou and Donner 2008).
    """
    value = one.value - other.value
    return Estimate(
        value,
        value - math.hypot(one.value - one.low, other.high - other.value),
        value + math.hypot(one.high - one.value, other.value - other.low),
    )


def correlation(answers: np.ndarray, keys: np.ndarray) -> Estimate | None:
    """Pearson's correlation with Fisher's interval; None for fewer than four pictures, and where
    answers or keys are all the same.
    """
    if len(answers) < 4 or not np.ptp(answers) or not np.ptp(keys):
        return None
    value = float(np.clip(np.corrcoef(answers, keys)[0, 1], -1, 1))
    if abs(value) > 1 - 1e-12:
        return Estimate(value, value, value)
    margin = NORMAL / math.sqrt(len(answers) - 3)
    low, high = (math.tanh(math.atanh(value) + side * margin) for side in (-1, 1))
    return Estimate(value, low, high)


def slope(answers: np.ndarray, keys: np.ndarray) -> Estimate | None:
    """By how much the answer rises with its key (least squares), with Student's interval; None
    where `correlation` is None. A model that gives every key back has the slope 1.
    """
    if len(answers) < 4 or not np.ptp(answers) or not np.ptp(keys):
        return None
    from scipy import stats

    found = stats.linregress(keys, answers)
    margin = student(len(answers) - 1) * float(found.stderr)
    value = float(found.slope)
    return Estimate(value, value - margin, value + margin)
