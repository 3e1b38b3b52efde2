"""Replication: similarity of generations to their training pictures under a copy descriptor (SSCD,
Pizzi et al., CVPR 2022).

At least five incompatible pipelines are called "SSCD score" in the literature. A profile names one:
how pictures are resized and normalised, and how several training pictures of a prompt are reduced.
Profiles are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bench import (
    Evaluation,
    Metric,
    PerImage,
    PerSet,
    Prompt,
    Role,
    SampleSet,
    Suite,
    Target,
    Unmeasurable,
    UserError,
    read_picture,
)
from bench.features import PROFILES, CopyDescriptor, Extractor, ProfileName
from bench.statistics import threshold_at

FALSE_POSITIVES = 0.001  # of clean generations that a threshold lets pass for copies
NEGATIVES = 1000


class Sscd(Metric):
    """Similarity to the training picture by a copy descriptor: mean, 95th percentile, share above a
    threshold; and diversity.
    """

    names: ClassVar[tuple[str, ...]] = ("sscd", "sscd_p95", "memorized_ratio", "diversity")
    over_prompts: ClassVar[Mapping[str, str]] = {"sscd_p95": "percentile"}
    pictured: ClassVar[tuple[str, ...]] = ("sscd", "sscd_p95", "memorized_ratio")
    one_a_prompt: ClassVar[tuple[str, ...]] = ("diversity",)
    roles: ClassVar[tuple[Role, ...]] = ("memorized",)
    files: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str = Field(description="weights of a copy descriptor, relative to the suite file")
    profile: ProfileName = Field("nemo", description=f"one of {', '.join(PROFILES)}")
    threshold: float = Field(0.7, gt=-1, lt=1, description="an image above it counts as memorized")

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"memorized": [CopyDescriptor(suite.path(self.weights), self.profile, device)]}

    def calibrate(self, target: Target) -> dict[str, Any]:
        """The threshold of this model: the similarity to any training picture that one in a
        thousand generations for prompts of the role calibration exceed.
        """
        suite = target.suite
        named = [*suite.prompts("memorized"), *suite.prompts("fit")]
        paths = list(dict.fromkeys(path for prompt in named for path in prompt.references))
        prompts = suite.prompts("calibration")
        if not paths or not prompts:
            raise UserError(
                f"suite {suite.name} needs training pictures and [prompts.calibration] for a"
                " threshold of its own"
            )
        descriptor = CopyDescriptor(suite.path(self.weights), self.profile, target.device)
        images = -(-NEGATIVES // len(prompts))
        generated = target.generate(prompts, images).features(descriptor)
        training = descriptor([read_picture(path) for path in paths])
        nearest = (generated @ training.T).max(2).ravel()
        return {
            "threshold": round(threshold_at(nearest, FALSE_POSITIVES), 4),
            "rate": FALSE_POSITIVES,
            "images": len(nearest),
            "training_pictures": len(paths),
            "descriptor": descriptor.fingerprint,
            "largest": [round(float(value), 4) for value in np.sort(nearest)[::-1][:20]],
        }

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        found = compare(evaluation, self.weights, self.profile)
        similarity = np.stack(
            [reduce_references(table, PROFILES[self.profile].references) for table in found.tables]
        )

        def score(
            table: np.ndarray, higher_is_better: bool = False, unit: str = "cosine", **more: Any
        ) -> PerImage:
            extra = more.pop("details", {})
            return PerImage(
                table,
                more.pop("prompts", found.prompts),
                unit,
                higher_is_better,
                details=found.details | extra,
                **more,
            )

        above = (similarity > self.threshold).astype(float)
        scores: dict[str, PerImage | PerSet] = {
            "sscd": score(similarity),
            "sscd_p95": score(similarity, percentile=95),
            "memorized_ratio": score(
                above, unit="share", proportion=True, details={"threshold": self.threshold}
            ),
        }
        if found.samples.images > 1:
            table = 1 - mean_pairwise_similarity(found.generated)[:, None]
            scores["diversity"] = score(table, True, "1 - cosine", prompts=found.samples.prompts)
        return scores


@dataclass(frozen=True)
class Compared:
    """Generations beside training pictures.

    `tables`: similarities `[images, references]` of each of `prompts`, those that have a training
    picture.
    """

    samples: SampleSet
    generated: np.ndarray  # descriptors of all prompts, `[prompts, images, d]`
    prompts: tuple[Prompt, ...]
    tables: tuple[np.ndarray, ...]
    details: dict[str, Any]


def compare(
    evaluation: Evaluation, weights: str, profile: str, role: Role = "memorized"
) -> Compared:
    """Describe the generations of the memorized prompts (or of those of another role) and their
    training pictures; prompts whose picture was lost are counted and left out.

    Raises `Unmeasurable` when no prompt has a training picture.
    """
    samples = evaluation.samples(role)
    places = [place for place, prompt in enumerate(samples.prompts) if prompt.references]
    if not places:
        raise Unmeasurable(
            f"none of the {len(samples.prompts)} {role} prompts has a training picture"
        )
    extractor = evaluation.loaded(
        CopyDescriptor(evaluation.path(weights), profile, evaluation.device)
    )
    generated = samples.features(extractor)
    prompts = tuple(samples.prompts[place] for place in places)
    references = [
        extractor([read_picture(path) for path in prompt.references]) for prompt in prompts
    ]
    details = {
        "profile": profile,
        "weights_sha256": extractor.digest,
        "references": sum(len(r) for r in references),
        "n_expected": len(samples.prompts),
        "n_found": len(prompts),
    }
    return Compared(
        samples,
        generated,
        prompts,
        tuple(generated[place] @ r.T for place, r in zip(places, references, strict=True)),
        details,
    )


def reduce_references(
    similarity: np.ndarray, how: Literal["max", "mean", "lower_median"]
) -> np.ndarray:
    """`[images, references]` to `[images]`; the lower median is what `torch.median` gives for an
    even number.
    """
    if how == "max":
        return similarity.max(1)
    if how == "mean":
        return similarity.mean(1)
    return np.sort(similarity, axis=1)[:, (similarity.shape[1] - 1) // 2]


def mean_pairwise_similarity(features: np.ndarray) -> np.ndarray:
    """Mean over all unordered pairs of a prompt's images: unit vectors `[prompts, images, d]` to
    `[prompts]`.
    """
    images = features.shape[1]
    total = np.square(features.sum(1)).sum(-1) - np.square(features).sum((1, 2))
    return total / (images * (images - 1))
