"""The papers' own protocols for similarity to training pictures: chains of reducers from
similarities to one number.

`similarity [prompt, image, reference] -> references -> images (seeds) -> prompts`: which reducer
stands at each place is part of the number's name, as are checkpoint and preprocessing, so numbers
of two papers are never compared. What a chain does to a plain table needs no network and stands
here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

import bench.statistics as stats
from bench import Evaluation, Metric, PerImage, Role, Shown, Suite, Unmeasurable
from bench.features import PROFILES, CopyDescriptor, Extractor
from metrics.sscd import Compared, compare, reduce_references

Seeds = Literal["mean", "max", "min", "lower_median", "top3", "first"]
NEEDED: dict[str, int] = {"top3": 3}  # images a prompt, where one is not enough
LARGEST = 3
ABOVE = 0.5  # Somepalli et al. (2023): more similar than that is a replication


@dataclass(frozen=True)
class Paper:
    """Where a protocol is from: the work, the checkpoint that it uses, the profile of its
    preprocessing, and images a prompt.
    """

    work: str
    checkpoint: str
    profile: str
    images: int | None

    @property
    def preprocessing(self) -> str:
        """Resize and normalisation in words."""
        profile = PROFILES[self.profile]
        size = (
            f"{profile.square}x{profile.square}"
            if profile.square
            else f"short side {profile.short}, centre {profile.crop}"
        )
        half = profile.normalisation[0] == (0.5, 0.5, 0.5)
        return f"{size}, {'mean and deviation 0.5' if half else 'ImageNet mean and deviation'}"

    def shown(self, heading: str, chain: str) -> Shown:
        """A column that says which number it is."""
        return Shown(
            heading=heading,
            meaning=(
                f"{self.work}, its own protocol: checkpoint {self.checkpoint},"
                f" {self.preprocessing}; {chain}"
            ),
        )


def by_image(
    tables: Sequence[np.ndarray], references: Literal["max", "mean", "lower_median"]
) -> np.ndarray:
    """Similarities `[images, references]` of each prompt (their numbers of references may differ)
    to `[prompts, images]`.
    """
    return np.stack([reduce_references(table, references) for table in tables])


def by_prompt(table: np.ndarray, seeds: Seeds) -> np.ndarray:
    """`[prompts, images]` to `[prompts]`; `top3` is the mean of the 3 largest.

    Raises `Unmeasurable` when there are fewer images than that needs.
    """
    needed = NEEDED.get(seeds, 1)
    if table.shape[1] < needed:
        raise Unmeasurable(
            f"{seeds} needs {needed} images a prompt, and there"
            f" {'is' if table.shape[1] == 1 else 'are'} {table.shape[1]}"
        )
    reducers: dict[Seeds, Callable[[np.ndarray], np.ndarray]] = {
        "mean": stats.mean,
        "max": lambda values: values.max(1),
        "min": lambda values: values.min(1),
        "lower_median": stats.lower_median,
        "top3": lambda values: np.sort(values, axis=1)[:, -LARGEST:].mean(1),
        "first": lambda values: values[:, 0],
    }
    return reducers[seeds](table)


def pair_medians(generated: np.ndarray) -> np.ndarray:
    """Lower median of the similarities of all unordered pairs of a prompt's images: unit vectors
    `[prompts, images, d]` to `[prompts]`.
    """
    images = generated.shape[1]
    if images < 2:
        raise Unmeasurable("pairs need at least 2 images a prompt, and there is 1")
    rows, columns = np.array(list(itertools.combinations(range(images), 2))).T
    similarity = generated @ generated.transpose(0, 2, 1)
    return stats.lower_median(similarity[:, rows, columns])


class PaperSscd(Metric):
    """What the profiles share: a descriptor file, its preprocessing, and details that say how far
    the suite is from the paper.
    """

    paper: ClassVar[Paper]
    roles: ClassVar[tuple[Role, ...]] = ("memorized",)
    files: ClassVar[tuple[str, ...]] = ("weights",)
    trial: ClassVar[Mapping[str, Any]] = {"weights": "./pooled.safetensors"}

    weights: str = Field(
        description="weights of the paper's copy descriptor, relative to the suite file"
    )

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"memorized": [CopyDescriptor(suite.path(self.weights), self.paper.profile, device)]}

    def compared(self, evaluation: Evaluation) -> Compared:
        """Similarities by prompt; raises `Unmeasurable` when no prompt has a training picture."""
        return compare(evaluation, self.weights, self.paper.profile)

    def details(self, images: int, **more: Any) -> dict[str, Any]:
        """What every score of a profile says of itself."""
        return {
            "paper": self.paper.work,
            "checkpoint_of_paper": self.paper.checkpoint,
            "images": images,
            "images_of_paper": (
                self.paper.images if self.paper.images is not None else "not by prompt"
            ),
            **more,
        }

    def mean_score(self, found: Compared, seeds: Seeds, **more: Any) -> PerImage | Unmeasurable:
        """References by the profile's reducer, then `seeds`, then the mean over prompts; a mean
        over seeds keeps its images, which gives the same number.
        """
        table = by_image(found.tables, PROFILES[self.paper.profile].references)
        details = found.details | self.details(table.shape[1], **more)
        try:
            reduced = table if seeds == "mean" else by_prompt(table, seeds)[:, None]
        except Unmeasurable as why:
            return why
        return PerImage(reduced, found.prompts, "cosine", False, details=details)


def above(score: PerImage | Unmeasurable, threshold: float = ABOVE) -> PerImage | Unmeasurable:
    """The share of a score's images above a threshold."""
    if isinstance(score, Unmeasurable):
        return score
    table = (score.table > threshold).astype(float)
    return replace(
        score,
        table=table,
        unit="share",
        proportion=True,
        details=score.details | {"threshold": threshold},
    )
