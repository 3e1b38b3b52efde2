"""Replication: similarity of generations to their training pictures under a copy descriptor (SSCD, Pizzi et al., CVPR 2022).

At least five incompatible pipelines are called "SSCD score" in the literature. A profile names one: how pictures are
resized and normalised, and how several training pictures of a prompt are reduced. Profiles are never compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator

from bench.errors import Unmeasurable, UnknownName, UserError
from bench.extractors import load_torchscript, unit_pixels
from bench.metric import Evaluation, Metric, PerImage, PerSet
from bench.store import decode_png
from bench.suite import Role, path_digest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Profile:
    """`square`: both sides are resized to it. Otherwise the short side becomes `short` and `crop` is cut from the centre."""

    square: int | None
    short: int | None
    crop: int | None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    references: Literal["max", "mean", "lower_median"]


_CROPPED = Profile(None, 256, 224, HALF, "max")
# As the code of each work does it; the checkpoint belongs to it too and is the suite's to give.
PROFILES = {
    "nemo": Profile(320, None, None, IMAGENET, "lower_median"),
    "han": Profile(320, None, None, IMAGENET, "max"),
    "membench": Profile(288, None, None, IMAGENET, "max"),
    "wen": _CROPPED,
    "jeon": _CROPPED,
    "dcr": _CROPPED,
    "concept_prune": Profile(None, 256, 224, HALF, "mean"),
    "testbed": Profile(32, None, None, IMAGENET, "max"),
}


class Sscd(Metric):
    """Similarity to the training picture by a copy descriptor: mean, 95th percentile, share above a threshold; and diversity."""

    names: ClassVar[tuple[str, ...]] = ("sscd", "sscd_p95", "memorized_ratio", "diversity")
    roles: ClassVar[tuple[Role, ...]] = ("memorized",)

    weights: str = Field(description="TorchScript of a copy descriptor, relative to the suite file")
    profile: str = Field("nemo", description=f"one of {', '.join(PROFILES)}")
    threshold: float = Field(0.7, gt=-1, lt=1, description="an image above it counts as memorized")

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROFILES:
            raise UnknownName("SSCD profile", name, PROFILES)
        return name

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        samples = evaluation.samples("memorized")
        without = [prompt.id for prompt in samples.prompts if not prompt.references]
        if without:
            raise Unmeasurable(f"{len(without)} of {len(samples.prompts)} memorized prompts have no reference picture ({without[0]} is the first)")
        extractor = DescriptorExtractor(evaluation.path(self.weights), self.profile, evaluation.device)
        generated = samples.features(extractor)
        references = [extractor([decode_png(path.read_bytes()) for path in prompt.references]) for prompt in samples.prompts]
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


@dataclass(frozen=True)
class DescriptorExtractor:
    """A descriptor file with a profile's preprocessing: pictures to unit vectors `[n, d]`."""

    weights: Path
    profile: str
    device: Any
    batch_size: int = 64

    @cached_property
    def digest(self) -> str:
        return path_digest(self.weights)

    @property
    def fingerprint(self) -> str:
        return f"sscd-{self.profile}-{self.digest[:12]}"

    @cached_property
    def network(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return load_torchscript(self.weights, self.device)

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            batch = torch.stack([preprocess(picture, PROFILES[self.profile]) for picture in pictures[start : start + self.batch_size]])
            with torch.no_grad():
                descriptors = self.network(batch.to(self.device)).float()
            parts.append(torch.nn.functional.normalize(descriptors, dim=1).cpu().numpy())
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise UserError(f"descriptor {self.weights.name} gives NaN or infinity for a picture")
        return features


def preprocess(picture: np.ndarray, profile: Profile) -> torch.Tensor:
    """One picture, uint8 `[H, W, 3]`, to the network's input, float32 `[3, h, w]`. Bilinear with antialiasing on 8-bit pixels, as torchvision does on PIL images."""
    image = Image.fromarray(picture)
    if profile.square is not None:
        image = image.resize((profile.square, profile.square), Image.Resampling.BILINEAR)
    elif profile.short is not None:
        width, height = image.size
        scale = profile.short / min(width, height)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    if profile.crop is not None:
        left, top = round((image.width - profile.crop) / 2), round((image.height - profile.crop) / 2)
        image = image.crop((left, top, left + profile.crop, top + profile.crop))
    mean, std = (torch.tensor(values)[:, None, None] for values in profile.normalisation)
    return (unit_pixels(np.asarray(image)) - mean) / std
