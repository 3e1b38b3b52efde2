"""What helps, and whether a smaller weight of the LoRA would have helped as much.

Everything that damages a model makes it copy less. So each remedy is held against the yardstick
that costs nothing: the same file at a smaller weight, at the same use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.auditing.verdicts import units_of
from bench.statistics.intervals import cluster_bootstrap, proportion_interval

DRAWS, LEVEL = 2000, 0.95
SAME = 1e-9
STEPS = 100  # of the weights between 0 and 1 that are looked at


@dataclass(frozen=True)
class Point:
    """One setting: a weight, an epoch or a remedy.

    `copies` has by picture and image whether it is a copy, `[N, n]`; `likeness` by novel image the
    mean similarity (CLIP) to the training pictures, `[P, m]`; `alignment` the cosine to the prompt,
    `[P, m]`. The two are None where nothing measures them. `groups` has each picture's group of
    near-duplicates, `[N]`, which stand or fall together; None where every picture is alone.
    """

    name: str
    copies: np.ndarray
    likeness: np.ndarray | None = None
    alignment: np.ndarray | None = None
    weight: float | None = None
    travels: str = ""
    kind: str = "weight"
    groups: np.ndarray | None = None

    @property
    def share(self) -> float:
        """The share of images of training captions that are copies."""
        return float(self.copies.mean())

    @property
    def interval(self) -> tuple[float, float]:
        units = None if self.groups is None else units_of(self.groups)
        return proportion_interval(self.copies.astype(float), units=units)


def use(point: Point, base: Point, yours: Point) -> tuple[float, float, float] | None:
    """How much of what the training taught is left: likeness of novel images to the training
    pictures, 0 for the base and 1 for the model, with its 95 % interval over novel prompts.

    None where it is not measured, and where base and model do not differ by more than the error: a
    share of nothing means nothing.
    """
    if point.likeness is None or base.likeness is None or yours.likeness is None:
        return None
    if not separates(base, yours):
        return None
    low, high = base.likeness.mean(1), yours.likeness.mean(1)
    value = point.likeness.mean(1)

    def rescaled(rows: np.ndarray) -> np.ndarray:
        first = low[rows].mean(-1)
        gap = high[rows].mean(-1) - first
        return np.divide(value[rows].mean(-1) - first, gap, where=gap > SAME, out=np.ones_like(gap))

    rows = np.random.default_rng(0).integers(0, len(value), (DRAWS, len(value)))
    bounds = np.quantile(rescaled(rows), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(rescaled(np.arange(len(value)))), float(bounds[0]), float(bounds[1])


def separates(base: Point, yours: Point) -> bool:
    """Whether the model's novel images are nearer to the training pictures than the base's, beyond
    the error over novel prompts.
    """
    if base.likeness is None or yours.likeness is None or len(base.likeness) < 2:
        return False
    difference = yours.likeness.mean(1) - base.likeness.mean(1)
    return cluster_bootstrap(difference[:, None])[0] > 0


@dataclass(frozen=True)
class Against:
    """A remedy against the curve: of the weights that keep at least as much use, the one with the
    fewest copies, and copies there minus copies of the remedy with the 95 % interval; positive
    where the remedy is better. Its words go by the interval alone: where that holds 0, the two are
    not told apart, whichever gave fewer.
    """

    weight: float
    gain: tuple[float, float, float]

    @property
    def words(self) -> str:
        _, low, high = self.gain
        found = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
        return f"{found} weight {self.weight:.2g}"


def against_curve(remedy: Point, curve: Sequence[Point], seed: int = 0) -> Against | None:
    """Hold a remedy against the weights from 0 to 1, between which copies and use are taken to
    change evenly.

    Use is the likeness of novel images to the training pictures. The interval is that of a
    bootstrap that draws groups of pictures and novel prompts, each for all settings together, and
    looks for the weight anew in every draw: which weight keeps as much use is itself uncertain.
    None where use is not measured or base (weight 0) and model (weight 1) do not differ in it,
    where nothing was measured between the two, and where no weight keeps as much of it as the
    remedy.
    """
    points = [point for point in curve if point.weight is not None and 0 <= point.weight <= 1]
    points.sort(key=_weight)
    if not points or _weight(points[0]) != 0.0 or _weight(points[-1]) != 1.0:
        return None
    if not has_between(points):
        return None
    if remedy.likeness is None or not separates(points[0], points[-1]) or len(remedy.copies) < 2:
        return None
    tables = _Tables(
        np.array([_weight(point) for point in points]),
        np.stack([point.copies.mean(1) for point in points]),
        np.stack([_likeness(point) for point in points]),
        remedy.copies.mean(1),
        _likeness(remedy),
    )
    pictures, prompts = tables.copies.shape[1], tables.use.shape[1]
    whole = tables.best(np.arange(pictures), np.arange(prompts))
    groups = np.arange(pictures) if remedy.groups is None else remedy.groups
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if whole is None or len(members) < 2:
        return None
    random, gains = np.random.default_rng([seed, 17]), []
    for _ in range(DRAWS):
        picked = random.integers(0, len(members), len(members))
        drawn = np.concatenate([members[group] for group in picked])
        found = tables.best(drawn, np.asarray(random.integers(0, prompts, prompts)))
        # Where no weight keeps as much use, the whole file comes nearest.
        gains.append(tables.gain_over_all(drawn) if found is None else found[1])
    low, high = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    weight, gain = whole
    return Against(weight, (gain, float(min(low, gain)), float(max(high, gain))))


def has_between(curve: Sequence[Point]) -> bool:
    """Whether a weight between base and model was measured: with none, what is in between is a
    guess, and of an embedding it is no file that anybody could make.
    """
    return any(point.weight is not None and 0 < point.weight < 1 for point in curve)


@dataclass(frozen=True)
class _Tables:
    """Weights `[W]`, share of copies by weight and picture `[W, N]`, likeness by weight and novel
    prompt `[W, P]`, and the same of a remedy, `[N]` and `[P]`.
    """

    weights: np.ndarray
    copies: np.ndarray
    use: np.ndarray
    remedy_copies: np.ndarray
    remedy_use: np.ndarray

    def best(self, pictures: np.ndarray, prompts: np.ndarray) -> tuple[float, float] | None:
        """Over some pictures and prompts: the weight with the fewest copies of those that keep as
        much use as the remedy, and copies there minus the remedy's.
        """
        grid = np.unique(np.concatenate([np.linspace(0, 1, STEPS + 1), self.weights]))
        use_there = np.interp(grid, self.weights, self.use[:, prompts].mean(1))
        there = np.interp(grid, self.weights, self.copies[:, pictures].mean(1))
        enough = np.flatnonzero(use_there >= self.remedy_use[prompts].mean() - SAME)
        if not len(enough):
            return None
        place = int(enough[np.argmin(there[enough])])
        return float(grid[place]), float(there[place] - self.remedy_copies[pictures].mean())

    def gain_over_all(self, pictures: np.ndarray) -> float:
        """Copies of the whole file minus the remedy's."""
        return float(self.copies[-1, pictures].mean() - self.remedy_copies[pictures].mean())


def _weight(point: Point) -> float:
    assert point.weight is not None
    return point.weight


def _likeness(point: Point) -> np.ndarray:
    """By novel prompt, `[P]`."""
    assert point.likeness is not None
    return np.asarray(point.likeness.mean(1))
