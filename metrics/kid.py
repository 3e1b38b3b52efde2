"""Picture quality where images are few: the kernel distance of Binkowski et al. (2018), which does
not fall with the number of images as FID does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Shown, Suite, Unmeasurable
from bench.features import CleanFeatures, Extractor, feature_blocks, originals, pictures_in
from bench.statistics import first_rows


class Kid(Metric):
    """Unbiased squared maximum mean discrepancy between features of generations and of real
    pictures, cubic kernel, mean over random subsets.

    Features and cached files are those of `fid`. All features of both sets are held at once, as
    float32. May be slightly negative.
    """

    names: ClassVar[tuple[str, ...]] = ("kid",)
    roles: ClassVar[tuple[Role, ...]] = ("quality",)
    files: ClassVar[tuple[str, ...]] = ("weights", "real")
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
        "weights": "features.torchscript.pt",
        "real": ".",
        "images": 6,
        "size": 32,
        "subsets": 4,
        "subset_size": 3,
    }

    weights: str = Field(
        description=(
            "TorchScript with `.layers`, as clean-fid's Inception file, relative to the suite file"
        )
    )
    real: str = Field(
        "",
        description=(
            "folder of real pictures; without it, those that the prompts name as references"
        ),
    )
    real_side: int | None = Field(
        None,
        ge=8,
        description=(
            "shorter side of real pictures is resized to it and the centre square kept; as they are"
            " by default"
        ),
    )
    images: int = Field(ge=2, description="the number of images; fewer are refused")
    size: int = Field(299, ge=8, description="side that pictures are resized to; 299 for Inception")
    subsets: int = Field(100, ge=1, description="random subsets that are averaged")
    subset_size: int = Field(
        1000,
        ge=2,
        description="pictures of each set in a subset; as many as there are where there are fewer",
    )
    seed: int = Field(0, ge=0, description="of the subsets")

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"quality": [CleanFeatures(suite.path(self.weights), self.size, device)]}

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        samples = evaluation.samples("quality")
        if len(samples) < self.images:
            raise Unmeasurable(
                f"KID of {self.images} images asked for and only {len(samples)} are there"
            )
        extractor = evaluation.loaded(
            CleanFeatures(evaluation.path(self.weights), self.size, evaluation.device)
        )
        used = samples.prompts[: -(-self.images // samples.images)]
        real = (
            pictures_in(evaluation.path(self.real), self.real_side)
            if self.real
            else originals(used, self.real_side)
        )
        generated = np.concatenate(list(first_rows(samples.feature_blocks(extractor), self.images)))
        theirs = np.concatenate(
            list(feature_blocks(real, extractor, evaluation.cache, evaluation.report))
        )
        values = list(discrepancies(generated, theirs, self.subsets, self.subset_size, self.seed))
        details = {
            "mode": "clean",
            "size": self.size,
            "weights_sha256": extractor.digest,
            "subsets": self.subsets,
            "subset_size": min(self.subset_size, self.images, len(real.files)),
            "real": real.name,
            "real_images": len(real.files),
            "real_sha256": real.digest,
            "crop": real.crop,
        }
        return {
            "kid": PerSet(
                float(np.mean(values)),
                self.images,
                "squared discrepancy",
                False,
                prompts=len(samples.prompts),
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
