"""What measures of picture quality share: the settings of their features and real pictures, what
they refuse, and errors by leaving blocks out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from bench import (
    Evaluation,
    Metric,
    Prompt,
    Role,
    SampleSet,
    Suite,
    Unmeasurable,
    UserError,
    path_digest,
)
from bench.features import CleanFeatures, Extractor, feature_blocks, originals, pictures_in
from bench.statistics import Statistics, read_features

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RealFeatures:
    """Features `[n, d]` of real pictures, float32, and which pictures these are."""

    features: np.ndarray
    name: str
    digest: str
    crop: str

    def details(self) -> dict[str, Any]:
        return {
            "real": self.name,
            "real_images": len(self.features),
            "real_sha256": self.digest,
            "crop": self.crop,
        }


class FeatureMetric(Metric):
    """The settings of a metric that compares features of generations with those of real pictures:
    all of them have the same features, made once.
    """

    weights: str = Field(
        description=(
            "weights of a network with `.layers`, as clean-fid's Inception file, relative to the"
            " suite file"
        )
    )
    statistics: str = Field(
        "",
        description=(
            "`.npz` that keeps the real pictures' features: `bench statistics --features` makes one"
        ),
    )
    real: str = Field(
        "",
        description=(
            "folder of real pictures, instead of `statistics`; without either, the pictures that"
            " the prompts name as references"
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

    @model_validator(mode="after")
    def _one_reference(self) -> FeatureMetric:
        if self.statistics and (self.real or self.real_side):
            raise ValueError(
                "statistics and real (with real_side) are two ways to say the same: give one"
            )
        return self

    def fits(self, suite: Suite) -> None:
        if self.statistics:
            read_features(suite.path(self.statistics))

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"quality": [CleanFeatures(suite.path(self.weights), self.size, device)]}

    def network(self, evaluation: Evaluation) -> CleanFeatures:
        return evaluation.loaded(
            CleanFeatures(evaluation.path(self.weights), self.size, evaluation.device)
        )

    def enough(self, evaluation: Evaluation, what: str) -> SampleSet:
        """The images to measure. Raises `Unmeasurable` where there are fewer than asked for."""
        samples = evaluation.samples("quality")
        if len(samples) < self.images:
            raise Unmeasurable(
                f"{what} of {self.images} images asked for and only {len(samples)} are there"
            )
        return samples

    def refuse_other_network(self, known: Statistics, extractor: CleanFeatures) -> None:
        if known.fingerprint not in ("", extractor.fingerprint):
            raise UserError(
                f"reference statistics {self.statistics} were made with {known.fingerprint} and not"
                f" with {extractor.fingerprint}"
            )

    def real_features(
        self, evaluation: Evaluation, extractor: CleanFeatures, prompts: Sequence[Prompt]
    ) -> RealFeatures:
        """Of the file, the folder, or the references of `prompts`."""
        if not self.statistics:
            real = (
                pictures_in(evaluation.path(self.real), self.real_side)
                if self.real
                else originals(prompts, self.real_side)
            )
            blocks = feature_blocks(real, extractor, evaluation.cache, evaluation.report)
            return RealFeatures(np.concatenate(list(blocks)), real.name, real.digest, real.crop)
        file = evaluation.path(self.statistics)
        known, features = read_features(file)
        self.refuse_other_network(known, extractor)
        name, digest = known.pictures or file.name, known.digest or path_digest(file)
        return RealFeatures(features, name, digest, known.crop or "unknown")


def jackknife_variance(left_out: np.ndarray) -> float:
    """Of a statistic, from its values `[blocks]` with each equal block left out (Tukey 1958)."""
    count = len(left_out)
    return float((count - 1) / count * np.square(left_out - left_out.mean()).sum())


def margin(variance: float, blocks: int) -> float:
    """Half the width of a 95 % interval with a variance from so many blocks."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, blocks - 1)) * math.sqrt(variance)
