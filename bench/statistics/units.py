"""What varies independently: clusters of prompts, within strata that were fixed beforehand.

Captions of one training picture, or near-duplicates of one another, stand or fall together; and
where a list was laid out by levels, a resample with other numbers of prompts of each level is one
that could not have been drawn. Both are dealt with in one place: values by prompt become values of
units, with the same mean, whose plain variance over units is the variance of a stratified sample of
clusters. Whatever resamples or counts units needs to know no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Units:
    """Of some prompts in order: the number of each one's cluster, and of each cluster's stratum."""

    clusters: np.ndarray  # [prompts], 0 to C - 1
    strata: np.ndarray  # [C], 0 to H - 1

    @property
    def clustered(self) -> bool:
        return len(self.strata) < len(self.clusters)

    @property
    def effective(self) -> float:
        """As many clusters of equal size in one stratum would tell as much of the variance, at
        least two: Satterthwaite's degrees of freedom where clusters are alike, and one more.
        """
        sizes = np.bincount(self.clusters).astype(float)
        alike = float(np.square(sizes).sum() ** 2 / (sizes**4).sum())
        return max(alike - float(self.strata.max()), 2.0)

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sums over clusters of `[..., prompts]`, scaled so that their mean is the prompts':
        `[..., C]`.
        """
        count, prompts = len(self.strata), len(self.clusters)
        found = np.zeros((*values.shape[:-1], count))
        np.add.at(found.T, self.clusters, np.asarray(values).T)
        return found * (count / prompts)

    def expected(self, values: np.ndarray) -> np.ndarray:
        """Of `[..., prompts]`, for each prompt the mean of its stratum, of the same shape."""
        of_prompts = self.strata[self.clusters]
        sizes = np.bincount(of_prompts)
        level = np.zeros((len(of_prompts), len(sizes)))
        level[np.arange(len(of_prompts)), of_prompts] = 1.0 / sizes[of_prompts]
        return np.asarray((values @ level)[..., of_prompts])

    def independent(self, values: np.ndarray) -> np.ndarray:
        """`[..., prompts]` as values of units, `[..., C]`: the same mean, and the variance that
        leaving out one cluster after the other gives (the stratified jackknife, which few clusters
        of unequal size need).

        Linear in the values.
        """
        count = len(self.strata)
        if count < 2:
            return np.asarray(values.mean(-1, keepdims=True))
        sizes = np.bincount(self.strata[self.clusters])  # prompts of each stratum
        deviations = self.totals(values - self.expected(values))
        share = np.bincount(self.clusters) / sizes[self.strata]  # of its stratum, of each cluster
        clusters = np.bincount(self.strata)
        # Whoever takes the variance divides by count - 1.
        scale = np.sqrt((clusters - 1) / clusters)[self.strata] * np.sqrt((count - 1) / count)
        deviations = deviations * scale / (1 - share)
        centre = values.mean(-1, keepdims=True) - deviations.mean(-1, keepdims=True)
        return np.asarray(centre + deviations)


@dataclass(frozen=True)
class Design:
    """How the prompts of a role hang together, by their ids: the cluster of those that are not
    alone, and the stratum of each, where strata were fixed beforehand.
    """

    clusters: Mapping[str, int] = field(default_factory=dict)
    strata: Mapping[str, str] = field(default_factory=dict)

    def units(self, ids: Sequence[str]) -> Units | None:
        """Of these prompts; None where each is a unit of its own and there is one stratum.

        A cluster lies in the stratum of its first prompt. A stratum of one cluster says nothing of
        its variance and is joined to the one before it (the first to the second).
        """
        names = [self.clusters.get(prompt, f"alone {prompt}") for prompt in ids]
        clusters = _numbered(names)
        first = np.unique(clusters, return_index=True)[1]  # the place of each one's first prompt
        strata = _joined(_numbered([self.strata.get(ids[place], "") for place in first]))
        if len(strata) == len(ids) and strata.max() == 0:
            return None
        return Units(clusters, strata)


def _numbered(names: Iterable[object]) -> np.ndarray:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def _joined(strata: np.ndarray) -> np.ndarray:
    """Strata, numbered by first appearance, without any of a single cluster."""
    sizes = np.bincount(strata)
    joined, current = np.zeros(len(sizes), dtype=int), -1
    for number, size in enumerate(sizes):
        current += size > 1 or current < 0
        joined[number] = current
    result = joined[strata]
    if len(result) > 1 and (np.bincount(result) == 1).any():  # the first one alone
        result = np.maximum(result - 1, 0)
    return np.asarray(result)
