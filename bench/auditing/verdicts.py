"""From similarities to what is said of each picture: pure numpy, no pictures and no model.

A picture is *copied* where some image of a natural prompt is at least as similar to it as a copy,
and more similar to it than to any held-out picture, while the base model never gets so far with the
same prompts and seeds. Similarity alone would call every picture of a narrow theme a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.statistics.intervals import clopper_pearson, independent_shares, proportion_interval
from bench.statistics.units import Units

Verdict = Literal["copied", "already in the base", "extractable", "not seen"]
RISK = 0.025  # that the true rate lies above the upper limit of "not seen"
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Assigned:
    """Which prompt each of M images has: its number in the list of prompts, int64 `[M]`; and by
    prompt which pictures it is the caption of, bool `[P, N]`.
    """

    prompt: np.ndarray
    own: np.ndarray

    @property
    def own_images(self) -> np.ndarray:
        """Whether an image was made with the picture's caption, bool `[M, N]`."""
        return self.own[self.prompt]

    @property
    def parts(self) -> np.ndarray:
        """Which images of its caption are a picture's own part, bool `[M, N]`: pictures that share
        a caption share its images evenly, so that each has as many as any other picture.
        """
        found = np.zeros((len(self.prompt), self.own.shape[1]), dtype=bool)
        for number, whose in enumerate(self.own):
            rows, pictures = np.flatnonzero(self.prompt == number), np.flatnonzero(whose)
            each = len(rows) // len(pictures) if len(pictures) else 0
            for place, picture in enumerate(pictures):
                found[rows[place * each : (place + 1) * each], picture] = True
        return found


@dataclass(frozen=True)
class Share:
    """Of `total` pictures, `count` (an expectation may be no whole number), with the 95 % interval
    of the share; None where there is none.
    """

    count: float
    total: int
    interval: tuple[float, float] | None = None

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else float("nan")


def hits(similarity: np.ndarray, threshold: float, others: np.ndarray | None = None) -> np.ndarray:
    """Which images count as copies of which pictures, bool `[M, N]`: at least as similar as the
    threshold, and more than to any of `others`, float `[M, H]`, pictures that cannot have been
    learned.
    """
    found = similarity >= threshold
    if others is not None and others.shape[1]:
        found &= similarity > others.max(1, keepdims=True)
    return np.asarray(found)


def hits_among(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """The same of held-out pictures, bool `[M, H]`, each held against the others: the condition
    that training pictures meet, so that shares of the two may be compared.
    """
    found = similarity >= threshold
    count = similarity.shape[1]
    for picture in range(count if count > 1 else 0):
        others = np.delete(similarity, picture, axis=1)
        found[:, picture] &= similarity[:, picture] > others.max(1)
    return np.asarray(found)


def verdicts(
    yours: np.ndarray, base: np.ndarray | None, attacked: np.ndarray | None = None
) -> list[Verdict]:
    """One for each picture, from `hits` of the model's images, `[M, N]`, those of the base's images
    with the same prompts and seeds, and those of an attack, `[A, N]`.
    """
    never = np.zeros((1, yours.shape[1]), dtype=bool)
    seen, before, found = (
        np.asarray((never if table is None else table).any(0)).tolist()
        for table in (yours, base, attacked)
    )
    return [
        "already in the base"
        if known and reached
        else "copied"
        if reached
        else "extractable"
        if extracted
        else "not seen"
        for reached, known, extracted in zip(seen, before, found, strict=True)
    ]


def ease(
    hit: np.ndarray, asked: Assigned, picture: int
) -> tuple[int, int, tuple[float, float] | None]:
    """Of the images made with a picture's caption, how many copy it, how many there are, and
    the 95 % interval of the share (Clopper-Pearson); None where there are none.
    """
    rows = asked.own_images[:, picture]
    count, total = int(hit[rows, picture].sum()), int(rows.sum())
    return count, total, clopper_pearson(count, total) if total else None


def upper_limit(images: int) -> float:
    """The rate of copies above which so many images without one would be a surprise (2.5 %)."""
    return float(1 - RISK ** (1 / images)) if images else 1.0


def share_of(which: np.ndarray, groups: np.ndarray) -> Share:
    """The share of pictures, bool `[N]`, with an interval over groups of near-duplicates."""
    if not len(which):
        return Share(0, 0)
    table = which.astype(float)[:, None]
    interval = proportion_interval(table, units=units_of(groups))
    return Share(int(which.sum()), len(which), interval)


def units_of(groups: np.ndarray) -> Units | None:
    """What varies independently of pictures in these groups of near-duplicates, `[N]`; None where
    every picture does.
    """
    clusters = np.unique(groups, return_inverse=True)[1]
    count = int(clusters.max()) + 1
    return None if count == len(groups) else Units(clusters, np.zeros(count, dtype=int))


def chance(
    hit: np.ndarray, asked: Assigned, captions: np.ndarray, groups: np.ndarray
) -> Share | None:
    """How many pictures would seem copied if captions were shuffled against pictures: for each the
    share of other captions, of other groups, whose images hit it.

    `captions` is bool `[P]`: which prompts are captions. The expectation over all such exchanges;
    None where some picture has no caption to exchange with.
    """
    pictures = hit.shape[1]
    own = asked.own[captions]
    reached = np.stack([hit[asked.prompt == number].any(0) for number in np.flatnonzero(captions)])
    expected = 0.0
    for picture in range(pictures):
        related = own[:, groups == groups[picture]].any(1)
        if related.all():
            return None
        expected += float(reached[~related, picture].mean())
    return Share(expected, pictures)


def best_of_own(similarity: np.ndarray, asked: Assigned) -> np.ndarray:
    """The largest similarity that an image of a picture's own part has to it, float `[N]`; NaN
    where it has none.
    """
    own = np.where(asked.parts, similarity, -np.inf).max(0)
    return np.asarray(np.where(np.isfinite(own), own, np.nan))


def permutation_p(trained: np.ndarray, held_out: np.ndarray, seed: int = 0) -> float | None:
    """The chance that a random split of the same pictures has at least the difference of means that
    trained and held-out ones have; for a hold-out that was drawn at random. None for fewer than two
    of either.
    """
    trained, held_out = trained[np.isfinite(trained)], held_out[np.isfinite(held_out)]
    if min(len(trained), len(held_out)) < 2:
        return None
    pooled, count = np.concatenate([trained, held_out]), len(trained)
    observed = trained.mean() - held_out.mean()
    random = np.random.default_rng([seed, 13])
    order = random.permuted(np.tile(np.arange(len(pooled)), (PERMUTATIONS, 1)), axis=1)
    drawn = pooled[order]
    differences = drawn[:, :count].mean(1) - drawn[:, count:].mean(1)
    return float((1 + (differences >= observed - 1e-12).sum()) / (1 + PERMUTATIONS))


def excess(
    yours: np.ndarray, groups: np.ndarray, other: np.ndarray
) -> tuple[float, float, float] | None:
    """The difference of two shares of different pictures, bool `[N]` in groups of near-duplicates
    and `[H]`, with its interval; None where one of them has no pictures.
    """
    if not len(yours) or not len(other):
        return None
    one, two = yours.astype(float)[:, None], other.astype(float)[:, None]
    low, high = independent_shares(one, two, units_of(groups))
    return float(yours.mean() - other.mean()), low, high


def rank_correlation(shown: Sequence[float], best: np.ndarray) -> float | None:
    """Spearman's correlation between how often each picture was shown in training and how near the
    model comes to it; None where all were shown as often, or there are fewer than three.
    """
    from scipy import stats

    known = np.isfinite(best)
    views = np.asarray(shown, dtype=float)[known]
    if len(views) < 3 or np.ptp(views) == 0 or np.ptp(best[known]) == 0:
        return None
    return float(stats.spearmanr(views, best[known]).statistic)
