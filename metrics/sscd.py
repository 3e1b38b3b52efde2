"""Replication: similarity of generations to their training pictures under a copy descriptor (SSCD, Pizzi et al., CVPR 2022).

At least five incompatible pipelines are called "SSCD score" in the literature. A profile names one: how pictures are
resized and normalised, and how several training pictures of a prompt are reduced. Profiles are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from bench.errors import UnknownName, Unmeasurable
from bench.extractors import PROFILES, CopyDescriptor
from bench.metric import Evaluation, Extractor, Metric, PerImage, PerSet
from bench.store import read_picture
from bench.suite import Role, Suite


class Sscd(Metric):
    """Similarity to the training picture by a copy descriptor: mean, 95th percentile, share above a threshold; and diversity."""

    names: ClassVar[tuple[str, ...]] = ("sscd", "sscd_p95", "memorized_ratio", "diversity")
    roles: ClassVar[tuple[Role, ...]] = ("memorized",)
    files: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str = Field(description="TorchScript of a copy descriptor, relative to the suite file")
    profile: str = Field("nemo", description=f"one of {', '.join(PROFILES)}")
    threshold: float = Field(0.7, gt=-1, lt=1, description="an image above it counts as memorized")

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROFILES:
            raise UnknownName("SSCD profile", name, PROFILES)
        return name

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"memorized": [CopyDescriptor(suite.path(self.weights), self.profile, device)]}

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        samples = evaluation.samples("memorized")
        without = [prompt.id for prompt in samples.prompts if not prompt.references]
        if without:
            raise Unmeasurable(f"{len(without)} of {len(samples.prompts)} memorized prompts have no reference picture ({without[0]} is the first)")
        extractor = evaluation.loaded(CopyDescriptor(evaluation.path(self.weights), self.profile, evaluation.device))
        generated = samples.features(extractor)
        references = [extractor([read_picture(path) for path in prompt.references]) for prompt in samples.prompts]
        similarity = np.stack([reduce_references(g @ r.T, PROFILES[self.profile].references) for g, r in zip(generated, references, strict=True)])
        details = {"profile": self.profile, "weights_sha256": extractor.digest, "references": sum(len(r) for r in references)}

        def score(table: np.ndarray, higher_is_better: bool = False, unit: str = "cosine", **more: Any) -> PerImage:
            extra = more.pop("details", {})
            return PerImage(table, samples.prompts, unit, higher_is_better, details=details | extra, **more)

        above = (similarity > self.threshold).astype(float)
        scores: dict[str, PerImage | PerSet] = {
            "sscd": score(similarity),
            "sscd_p95": score(similarity, percentile=95),
            "memorized_ratio": score(above, unit="share", proportion=True, details={"threshold": self.threshold}),
        }
        if samples.images > 1:
            scores["diversity"] = score(1 - mean_pairwise_similarity(generated)[:, None], True, "1 - cosine")
        return scores


def reduce_references(similarity: np.ndarray, how: Literal["max", "mean", "lower_median"]) -> np.ndarray:
    """`[images, references]` to `[images]`; the lower median is what `torch.median` gives for an even number."""
    if how == "max":
        return similarity.max(1)
    if how == "mean":
        return similarity.mean(1)
    return np.sort(similarity, axis=1)[:, (similarity.shape[1] - 1) // 2]


def mean_pairwise_similarity(features: np.ndarray) -> np.ndarray:
    """Mean over all unordered pairs of a prompt's images: unit vectors `[prompts, images, d]` to `[prompts]`."""
    images = features.shape[1]
    total = np.square(features.sum(1)).sum(-1) - np.square(features).sum((1, 2))
    return total / (images * (images - 1))
