"""Picture quality where images are few: the kernel distance of Binkowski et al. (2018), which does
not fall with the number of images as FID does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Shown
from bench.statistics import first_rows
from metrics._features import FeatureMetric, jackknife_variance, margin

ROWS = 2048  # of a kernel matrix that are held at a time


class Kid(FeatureMetric, Metric):
    """Unbiased squared maximum mean discrepancy between features of generations and of real
    pictures, cubic kernel, mean over random subsets; with a 95 % interval from leaving out the
    images of each prompt and each real picture.

    May be slightly negative.
    """

    names: ClassVar[tuple[str, ...]] = ("kid",)
    roles: ClassVar[tuple[Role, ...]] = ("quality",)
    files: ClassVar[tuple[str, ...]] = ("weights", "statistics", "real")
    shown: ClassVar[dict[str, Shown]] = {
        "kid": Shown(
            heading="KID",
            decimals=5,
            meaning=(
                "unbiased kernel distance to real pictures (cubic kernel, mean over random"
                " subsets); papers print a thousand times it"
            ),
        )
    }

    trial: ClassVar[Mapping[str, Any]] = {
        "weights": "features.safetensors",
        "real": ".",
        "images": 6,
        "size": 32,
        "subsets": 4,
        "subset_size": 6,  # all images: which are drawn for fewer depends on their order
    }

    subsets: int = Field(100, ge=1, description="random subsets that are averaged")
    subset_size: int = Field(
        1000,
        ge=2,
        description="pictures of each set in a subset; as many as there are where there are fewer",
    )
    seed: int = Field(0, ge=0, description="of the subsets")

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        samples = self.enough(evaluation, "KID")
        extractor = self.network(evaluation)
        used = samples.prompts[: -(-self.images // samples.images)]
        real = self.real_features(evaluation, extractor, used)
        blocks = first_rows(samples.feature_blocks(extractor), self.images)
        generated, theirs = np.concatenate(list(blocks)), real.features
        values = list(discrepancies(generated, theirs, self.subsets, self.subset_size, self.seed))
        value, half = float(np.mean(values)), half_width(generated, theirs, samples.images)
        details = {
            "mode": "clean",
            "size": self.size,
            "weights_sha256": extractor.digest,
            "subsets": self.subsets,
            "subset_size": min(self.subset_size, self.images, len(theirs)),
            **real.details(),
        }
        return {
            "kid": PerSet(
                value,
                self.images,
                "squared discrepancy",
                False,
                interval=None if half is None else (value - half, value + half),
                prompts=len(used),
                details=details,
            )
        }


def discrepancies(
    x: np.ndarray, y: np.ndarray, subsets: int, size: int, seed: int
) -> Iterator[float]:
    """The unbiased squared discrepancy of each of `subsets` draws of `min(size, n, m)` rows without
    replacement from features `[n, d]` and `[m, d]`.
    """
    random, size = np.random.default_rng(seed), min(size, len(x), len(y))
    for _ in range(subsets):
        yield discrepancy(
            *(
                rows[random.choice(len(rows), size, replace=False)].astype(np.float64)
                for rows in (x, y)
            )
        )


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of the kernel over pairs of different rows within `x` and within `y`, less twice its
    mean between them (Gretton et al. 2012, eq. 3).
    """
    within = sum(
        (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
        for kernel in (cubic(x, x), cubic(y, y))
    )
    return float(within - 2 * cubic(x, y).mean())


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(x . y / d + 1)^3` for rows of `[n, d]` and `[m, d]`: `[n, m]`."""
    inner = x @ y.T / x.shape[1] + 1
    return inner * inner * inner


def half_width(x: np.ndarray, y: np.ndarray, images: int = 1) -> float | None:
    """Half the width of a 95 % interval of the discrepancy between all rows of features `[n, d]`
    and `[m, d]`, of which every `images` rows of `x` are of one prompt.

    By the jackknife of a two-sample U-statistic (Arvesen 1969): the variances from leaving out each
    prompt and from leaving out each row of `y` add up. None for fewer than three prompts.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    prompts = np.arange(len(x)) // images
    count, n, m = int(prompts[-1]) + 1, len(x), len(y)
    if count < 3 or m < 3:
        return None
    inner, of_x, own = np.zeros(n), np.zeros(n), np.zeros(n)  # sums over the rows of a kernel
    within, of_y = np.zeros(m), np.zeros(m)
    for start, rows in _parts(x):
        kernel = cubic(rows, x)
        kernel[np.arange(len(rows)), start + np.arange(len(rows))] = 0.0
        part = slice(start, start + len(rows))
        inner[part] = kernel.sum(1)
        same = prompts[part, None] == prompts[None, :]
        own[part] = np.where(same, kernel, 0.0).sum(1)
        cross = cubic(rows, y)
        of_x[part] = cross.sum(1)
        of_y += cross.sum(0)
    for start, rows in _parts(y):
        kernel = cubic(rows, y)
        kernel[np.arange(len(rows)), start + np.arange(len(rows))] = 0.0
        within[start : start + len(rows)] = kernel.sum(1)

    def by_prompt(values: np.ndarray) -> np.ndarray:
        return np.bincount(prompts, values, count)

    left = n - np.bincount(prompts, minlength=count)  # rows of x without a prompt
    mean_y = within.sum() / (m * (m - 1))
    mean_x = inner.sum() / (n * (n - 1))
    without_prompt = (
        (inner.sum() - 2 * by_prompt(inner) + by_prompt(own)) / (left * (left - 1))
        + mean_y
        - 2 * (of_x.sum() - by_prompt(of_x)) / (left * m)
    )
    without_real = (
        mean_x
        + (within.sum() - 2 * within) / ((m - 1) * (m - 2))
        - 2 * (of_y.sum() - of_y) / (n * (m - 1))
    )
    variance = jackknife_variance(without_prompt) + jackknife_variance(without_real)
    return margin(variance, count)


def _parts(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return ((start, rows[start : start + ROWS]) for start in range(0, len(rows), ROWS))
