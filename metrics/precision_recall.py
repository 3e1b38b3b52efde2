"""Picture quality in two numbers: do generations look like real pictures, and do they show all that
real pictures show? Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019).

A distance such as FID or KID does not tell blurred pictures from few kinds of pictures. Both
numbers depend on how many pictures there are, so that is the suite's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Shown, Unmeasurable
from metrics._features import FeatureMetric, jackknife_variance, margin

GROUPS = 20  # of prompts, each left out once for the interval of recall
ROWS = 1024  # of a matrix of distances that are held at a time


class PrecisionRecall(FeatureMetric, Metric):
    """Share of generations inside the manifold of real pictures, and share of real pictures inside
    the manifold of generations.

    A manifold is the union of balls around its pictures' features that reach to the `nearest`-th
    neighbour. As many real pictures are used as there are generations, the first ones, or all where
    there are fewer.
    """

    names: ClassVar[tuple[str, ...]] = ("precision", "recall")
    roles: ClassVar[tuple[Role, ...]] = ("quality",)
    files: ClassVar[tuple[str, ...]] = ("weights", "statistics", "real")
    shown: ClassVar[dict[str, Shown]] = {
        "precision": Shown(
            heading="precision",
            meaning="share of generations whose features lie among those of real pictures",
        ),
        "recall": Shown(
            heading="recall",
            meaning="share of real pictures whose features lie among those of generations",
        ),
    }
    trial: ClassVar[Mapping[str, Any]] = {
        "weights": "features.safetensors",
        "real": ".",
        "images": 6,
        "size": 32,
        "nearest": 2,
    }

    nearest: int = Field(3, ge=1, description="the neighbour that a ball reaches to")

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        samples = self.enough(evaluation, "precision and recall")
        used = samples.prompts[: -(-self.images // samples.images)]
        extractor = self.network(evaluation)
        real = self.real_features(evaluation, extractor, used)
        table = samples.features(extractor)[: len(used)]
        generated = table.reshape(-1, table.shape[-1])
        theirs = real.features[: len(generated)]
        if min(len(generated), len(theirs)) <= self.nearest:
            raise Unmeasurable(
                f"balls to neighbour {self.nearest} need more pictures than"
                f" {min(len(generated), len(theirs))}"
            )
        inside = covered(generated, theirs, radii(theirs, self.nearest))
        recalled, low, high = recall(generated, theirs, self.nearest, samples.images)
        details = {
            "nearest": self.nearest,
            "size": self.size,
            "weights_sha256": extractor.digest,
            **real.details(),
            "real_images": len(theirs),
        }
        return {
            "precision": PerImage(
                inside.reshape(len(used), -1).astype(float),
                used,
                "share",
                True,
                proportion=True,
                details=details,
            ),
            "recall": PerSet(
                recalled,
                len(theirs),
                "share of real pictures",
                True,
                interval=(low, high),
                prompts=len(used),
                details=details,
            ),
        }


def radii(features: np.ndarray, nearest: int) -> np.ndarray:
    """Of each row of `[n, d]` the squared distance to its `nearest`-th other row, `[n]`."""
    found = []
    for start, distances in _distances(features, features):
        distances[np.arange(len(distances)), start + np.arange(len(distances))] = np.inf
        found.append(np.partition(distances, nearest - 1, axis=1)[:, nearest - 1])
    return np.concatenate(found)


def covered(points: np.ndarray, centres: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Whether each row of `points` `[n, d]` lies in a ball: squared radius `reach` `[m]` around a
    row of `centres` `[m, d]`. Booleans `[n]`.
    """
    return np.concatenate([(d <= reach).any(1) for _, d in _distances(points, centres)])


def recall(
    generated: np.ndarray, real: np.ndarray, nearest: int, images: int
) -> tuple[float, float, float]:
    """The share of `real` `[m, d]` in the manifold of `generated` `[n, d]`, of which every `images`
    rows are of one prompt; with a 95 % interval.

    Its variance is that of a share of `m` pictures, and that from leaving out each of `GROUPS`
    groups of prompts in turn, which thins the manifold (jackknife).
    """
    prompts = np.arange(len(generated)) // images
    groups = min(GROUPS, int(prompts[-1]) + 1)
    value = float(covered(real, generated, radii(generated, nearest)).mean())
    without = []
    for group in range(groups):
        kept = generated[prompts % groups != group]
        if len(kept) > nearest:
            without.append(covered(real, kept, radii(kept, nearest)).mean())
    if len(without) < 2:
        return value, 0.0, 1.0
    # Two pictures more on either side, so that no share is certain: Agresti and Coull (1998).
    share = (value * len(real) + 2) / (len(real) + 4)
    variance = jackknife_variance(np.array(without)) + share * (1 - share) / (len(real) + 4)
    half = margin(variance, len(without))
    return value, max(min(share - half, value), 0.0), min(max(share + half, value), 1.0)


def _distances(points: np.ndarray, centres: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Squared distances `[rows, m]` of some rows of `points` at a time, with the first one's
    number, in float64: differences of nearly equal numbers lose too much in float32.
    """
    there = centres.astype(np.float64)
    lengths = np.square(there).sum(1)
    for start in range(0, len(points), ROWS):
        rows = points[start : start + ROWS].astype(np.float64)
        squared = np.square(rows).sum(1)[:, None] + lengths - 2 * rows @ there.T
        yield start, np.maximum(squared, 0.0)
