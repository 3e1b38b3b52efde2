"""Untargeted extraction (Carlini et al., USENIX Security 2023, section 5.1): generations much
nearer to one training picture than to others.

Distance alone does not show a copy: a flat picture is near to everything. So the distance l2 of a
generation g to its nearest training picture x is divided by `alpha` times the mean distance to the
`neighbours` nearest training pictures; below 1, x counts as extracted.

Whose neighbours is read in two ways, which give different numbers, so both are here and the record
says which was used:

- `anchor = "generated"`, the paper's words: the training pictures nearest to g, with their
  distances to g. The first of them is x itself;
  `include_self` counts it as one of the `neighbours`, else these are the ones after it.
- `anchor = "train"`, as in the public code LeakPro: the training pictures nearest to x, with their
  distances to x. `include_self` counts x itself,
  at distance 0, as one of the `neighbours`, else these are the ones after it.

A picture that the training set holds `neighbours` times is near to its own copies as a flat one is
to everything, and is not found: give each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from attacks._exact import stacked
from attacks._nearest import Report, nearest
from attacks._training_set import TrainingSet
from attacks._verification import training_references
from bench import (
    IMAGES_PER_PROMPT,
    Attack,
    PerImage,
    PerSet,
    Prompt,
    Role,
    Scores,
    Suite,
    Target,
    Threat,
    Unmeasurable,
    digest_of,
    path_digest,
)

Anchor = Literal["generated", "train"]
MEMORY = 2**30  # bytes of generations that are compared at a time


class KnnExtraction(Attack):
    """Generations that are much nearer to one training picture than to its neighbours: share,
    different pictures, and the ratio itself.
    """

    threat: ClassVar[Threat] = "api"
    names: ClassVar[tuple[str, ...]] = ("knn_extracted", "knn_unique", "knn_score")
    files: ClassVar[tuple[str, ...]] = ("training",)
    trial: ClassVar[Mapping[str, Any]] = {"images": 2, "neighbours": 3}

    images: int = Field(4, ge=1, le=IMAGES_PER_PROMPT, description="generations a prompt")
    role: Role = Field(
        "memorized", description="whose prompts: memorized, clean, quality, fit or calibration"
    )
    training: str = Field(
        "",
        description=(
            "Parquet shards or pictures (folder or file), relative to the suite; empty: its"
            " training references"
        ),
    )
    neighbours: int = Field(
        50,
        ge=1,
        description="training pictures over which the distance is averaged (n; 50 in the paper)",
    )
    alpha: float = Field(0.5, gt=0, description="factor of that mean (0.5 in the paper)")
    anchor: Anchor = Field(
        "generated",
        description=(
            "whose nearest training pictures these are: the generation's, or the matched training"
            " picture's"
        ),
    )
    include_self: bool = Field(
        True, description="whether the matched training picture is one of them"
    )

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> KnnExtraction:
        if self.include_self and self.neighbours < 2:
            raise ValueError(
                "with include_self, neighbours must be at least 2: the matched training picture is"
                " one of them"
            )
        return self

    def asks(self, suite: Suite) -> Sequence[tuple[Sequence[Prompt], int]]:
        return [(suite.prompts(self.role), self.images)]

    def run(self, target: Target) -> Scores:
        """Raises `Unmeasurable` without prompts of the role, and where the training set has too few
        different pictures.
        """
        prompts = target.suite.prompts(self.role)
        if not prompts:
            raise Unmeasurable(f"the suite has no prompts of the role {self.role}")
        source, digest = self._source(target.suite)
        samples = target.generate(prompts, self.images)
        side = target.suite.settings.model.side
        training = TrainingSet.open(source, side)
        at_once = max(1, MEMORY // (self.images * side * side * 3))
        parts = []
        for start in range(0, len(prompts), at_once):
            rows = range(start, min(start + at_once, len(prompts)))
            pictures = stacked([picture for row in rows for picture in samples.pictures_of(row)])
            parts.append(
                ratios(
                    pictures, training, self.neighbours, self.alpha, self.anchor, self.include_self
                )
            )
            target.report("compare", rows.stop, len(prompts))
        scores, matched = (np.concatenate(part) for part in zip(*parts, strict=True))
        table = scores.reshape(len(prompts), self.images)
        details: dict[str, Any] = {
            **self.model_dump(include={"neighbours", "alpha", "anchor", "include_self"}),
            "distance": "l2",
            "side": training.side,
            "resize": training.policy,
            "training_pictures": training.count,
            "training_sha256": digest,
        }
        extracted = table < 1
        unique = len(np.unique(matched[extracted.ravel()]))
        return {
            "knn_extracted": PerImage(
                extracted.astype(float),
                prompts,
                "share of images",
                higher_is_better=False,
                proportion=True,
                details=details,
            ),
            "knn_unique": PerSet(
                float(unique),
                table.size,
                "pictures",
                higher_is_better=False,
                prompts=len(prompts),
                details=details,
            ),
            "knn_score": PerImage(table, prompts, "ratio", higher_is_better=True, details=details),
        }

    def _source(self, suite: Suite) -> tuple[Path | list[Path], str]:
        """Where the training pictures are, and a sha256 of their files."""
        if self.training:
            path = suite.path(self.training)
            return path, path_digest(path)
        references = list(dict.fromkeys(path for *_, path in training_references(suite)))
        if not references:
            raise Unmeasurable(
                "no training pictures: `training` is empty and the suite's prompts have no"
                " reference pictures"
            )
        return references, digest_of([path_digest(path) for path in references])


def ratios(
    generated: np.ndarray,
    training: TrainingSet,
    neighbours: int,
    alpha: float,
    anchor: Anchor,
    include_self: bool,
    report: Report | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of generations, uint8 `[g, S, S, 3]`: float64 `[g]`, and the position of the nearest
    training picture of each, int64 `[g]`.

    A generation that equals a training picture scores 0.
    """
    skipped = 0 if include_self else 1
    needed = neighbours + skipped
    found = nearest(generated, training, needed if anchor == "generated" else 1, report)
    if found.scanned < needed:
        raise Unmeasurable(
            f"{needed} training pictures are needed for the {neighbours} nearest and there are"
            f" {found.scanned}; set `neighbours`"
        )
    matched, around, ids = found.positions[:, 0], found.squared, found.ids
    if anchor == "train":
        _, first, back = np.unique(matched, return_index=True, return_inverse=True)
        # first the picture itself
        around = nearest(found.closest[first], training, needed, report).squared[back]
    means = np.sqrt(around[:, skipped:].astype(np.float64)).mean(1)
    distance = np.sqrt(found.squared[:, 0].astype(np.float64))
    endless = (means == 0) & (distance > 0)
    if endless.any():
        raise Unmeasurable(
            f"the training set holds {ids[int(endless.argmax())]} at least {needed} times: no"
            " distance to compare with; give it once"
        )
    return (
        np.divide(distance, alpha * means, out=np.zeros(len(distance)), where=distance > 0),
        matched,
    )
