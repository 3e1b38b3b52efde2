"""How well scores tell positives from negatives: area under the ROC curve with its interval, and
rates at a threshold. Higher scores speak for a positive; nothing is turned round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.statistics.intervals import NORMAL, student
from bench.statistics.units import Units


def area(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counted half (the midrank AUC), of
    scores `[m]` and `[n]`. Raises `ValueError` where either is empty or a score is not finite.
    """
    above, _ = _placements(positives, negatives)
    return float(above.mean())


def area_interval(
    positives: np.ndarray,
    negatives: np.ndarray,
    units: tuple[Units | None, Units | None] = (None, None),
) -> tuple[float, float]:
    """95 % interval of the area, of one score a prompt.

    DeLong's variance (DeLong, DeLong and Clarke-Pearson 1988) on the logit scale, which keeps it
    in [0, 1]. Where the groups are as good as separated that variance is 0 or nearly so, and says
    nothing; the wider of it and Newcombe's score interval (2006, method 5), which depends on the
    area and the two counts alone, is taken there.

    `units` are those of positives and of negatives, None where each prompt is one. The variance is
    then that of DeLong's components over units (as Obuchowski 1997 has it for clusters), each
    kind's share of it as wide as Student's for so many units, and counts are those of units.
    """
    above, below = _placements(positives, negatives)
    value = float(above.mean())
    of_units = [
        each.independent(part) if each else part
        for part, each in zip((above, below), units, strict=True)
    ]
    m, n = map(len, of_units)
    score = newcombe(value, m, n)
    if min(m, n) < 2 or not 0 < value < 1:
        return score
    reach = math.hypot(
        *(
            (student(each.effective) if each else NORMAL) * math.sqrt(part.var(ddof=1) / len(part))
            for part, each in zip(of_units, units, strict=True)
        )
    )
    margin = reach / (value * (1 - value))
    logit = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + side * margin))) for side in (-1, 1))
    # Less than about one unit of the smaller group is out of order: too few for a variance.
    if value * (1 - value) * min(m, n) < 1:
        return min(low, score[0]), max(high, score[1])
    return low, high


def _placements(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each positive the share of negatives below it, of each negative the share of positives
    above it, ties counted half.
    """
    positives, negatives = (np.asarray(found, dtype=np.float64) for found in (positives, negatives))
    if not len(positives) or not len(negatives):
        raise ValueError("an area needs positives and negatives")
    if not (np.isfinite(positives).all() and np.isfinite(negatives).all()):
        raise ValueError("scores must be finite")
    m, n = len(positives), len(negatives)
    from scipy import stats

    together = stats.rankdata(np.concatenate([positives, negatives]))
    above = (together[:m] - stats.rankdata(positives)) / n
    below = 1 - (together[m:] - stats.rankdata(negatives)) / m
    return above, below


def newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """Newcombe's score interval (2006, method 5): the areas from which `value` is not more than
    1.96 of their own standard errors away, for m positives and n negatives.
    """
    from scipy import optimize

    mean = (m + n) / 2 - 1

    def error(area: float) -> float:
        spread = 1 + mean * ((1 - area) / (2 - area) + area / (1 + area))
        return math.sqrt(max(area * (1 - area) * spread / (m * n), 0.0))

    def below(area: float) -> float:
        return value - area - NORMAL * error(area)

    def above(area: float) -> float:
        return area - value - NORMAL * error(area)

    # At 0 and 1 the error itself vanishes, which is a root that says nothing.
    inside = min(max(value, 1e-12), 1 - 1e-12)
    low = 0.0 if value <= 0 else float(optimize.brentq(below, 0.0, inside))
    high = 1.0 if value >= 1 else float(optimize.brentq(above, inside, 1.0))
    return low, high


@dataclass(frozen=True)
class Operating:
    """A threshold and what it does: a score above it raises the alarm.

    `found` and `alarms` are the shares of positives and negatives above it, `allowed` the number of
    false alarms that the rate allows.
    """

    threshold: float
    found: float
    alarms: float
    allowed: int


def at_rate(positives: np.ndarray, negatives: np.ndarray, rate: float) -> Operating | None:
    """The lowest threshold that at most `floor(rate * n)` of the negatives exceed, whatever ties
    there are; None for fewer than `1 / rate` negatives, which cannot resolve it.
    """
    allowed = int(rate * len(negatives) + 1e-9)
    if allowed < 1:
        return None
    threshold = float(np.sort(negatives)[-allowed - 1]) if allowed < len(negatives) else -math.inf
    return at_threshold(positives, negatives, threshold, allowed)


def at_threshold(
    positives: np.ndarray, negatives: np.ndarray, threshold: float, allowed: int = 0
) -> Operating:
    """What a given threshold does to scores `[m]` and `[n]`."""
    return Operating(
        threshold,
        float((np.asarray(positives) > threshold).mean()),
        float((np.asarray(negatives) > threshold).mean()),
        allowed,
    )


def roc(positives: np.ndarray, negatives: np.ndarray) -> list[tuple[float, float]]:
    """The curve from (0, 0) to (1, 1): share of negatives and of positives at or above each score
    that occurs, from the highest down.
    """
    scores = np.concatenate([positives, negatives])
    order = np.sort(np.unique(scores))[::-1]
    found = [(0.0, 0.0)]
    up, down = np.sort(positives), np.sort(negatives)
    for value in order:
        found.append(
            (
                float(1 - np.searchsorted(down, value, side="left") / len(down)),
                float(1 - np.searchsorted(up, value, side="left") / len(up)),
            )
        )
    return found
