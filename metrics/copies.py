"""Replication on the prompts that the model copies, apart from those that it never does.

An average over all memorized prompts mixes what a mitigation removes with what was never there.
Labels say which share of a prompt's images are copies without any mitigation, from seeds that no
score uses: *copied* prompts (at least half of their images), prompts copied *sometimes*, and
prompts that are *never* copied. Only on the first is there much to mitigate, and nothing on the
last is a mitigation's merit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import (
    Evaluation,
    Metric,
    PerImage,
    Prompt,
    Role,
    Suite,
    Target,
    Unmeasurable,
    UserError,
    one_line,
    read_picture,
    read_table,
    validation_line,
)
from bench.features import PROFILES, CopyDescriptor, Extractor, ProfileName
from metrics.sscd import compare, reduce_references

LABEL_IMAGES = 16
COPIED = 0.5  # the share of a prompt's images from which it counts as copied
STRATA = {
    "copied": f"prompts of which at least {COPIED:.0%} of the images are copies without mitigation",
    "sometimes": "prompts that are copied less often, but sometimes",
    "never": "prompts that are never copied without mitigation",
}
# Score names to strata.
_OF = {
    "copies": "copied",
    "sscd_copied": "copied",
    "copies_sometimes": "sometimes",
    "copies_never": "never",
}


class Labels(BaseModel):
    """A labels file: which share of each prompt's images are copies without any mitigation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images_per_prompt: int = Field(ge=1)
    descriptor: str
    threshold: float
    share_of_copies: dict[str, Annotated[float, Field(ge=0, le=1)]]

    def stratum(self, prompt: Prompt) -> str:
        share = self.share_of_copies[prompt.id]
        return "copied" if share >= COPIED else "sometimes" if share > 0 else "never"


class Copies(Metric):
    """Share of copies and similarity over the prompts that the model copies; copies on the
    others.
    """

    names: ClassVar[tuple[str, ...]] = tuple(_OF)
    roles: ClassVar[tuple[Role, ...]] = ("memorized",)
    files: ClassVar[tuple[str, ...]] = ("weights", "labels")
    pictured: ClassVar[tuple[str, ...]] = names
    calibrated: ClassVar[str] = "labels"
    trial: ClassVar[Mapping[str, Any]] = {
        "weights": "descriptor.safetensors",
        "profile": "testbed",
        "threshold": 0.5,
        "labels": "labels.json",
    }

    weights: str = Field(description="weights of a copy descriptor, relative to the suite file")
    profile: ProfileName = Field("nemo", description=f"one of {', '.join(PROFILES)}")
    threshold: float = Field(0.7, gt=-1, lt=1, description="an image above it counts as a copy")
    labels: str = Field(
        description="JSON of the share of copies by prompt id, relative to the suite file"
    )

    def fits(self, suite: Suite) -> None:
        """Raises `UserError` for labels that are not there, damaged, or of other prompts."""
        if not suite.place(self.labels).exists():
            raise UserError(
                f"metric copies: {self.labels} is not there yet; make it: bench calibrate copies"
                f" --suite {suite.name}"
            )
        self.measured(suite, self.names[0])

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"memorized": [CopyDescriptor(suite.path(self.weights), self.profile, device)]}

    def measured(self, suite: Suite, name: str) -> tuple[Prompt, ...]:
        """The prompts of the score's stratum. Raises `UserError` for labels that do not fit."""
        labels, pictured = read_labels(suite.path(self.labels)), super().measured(suite, name)
        missing = [prompt.id for prompt in pictured if prompt.id not in labels.share_of_copies]
        if missing:
            raise UserError(
                f"{self.labels} has no label for {len(missing)} prompts of the suite, the first"
                f" '{missing[0]}': label this model's prompts again"
            )
        return tuple(prompt for prompt in pictured if labels.stratum(prompt) == _OF[name])

    def calibrate(self, target: Target) -> dict[str, Any]:
        """The labels of the suite's prompts that have a training picture, those of fitting among
        them: the share of `LABEL_IMAGES` images that are copies.
        """
        suite = target.suite
        named = [*suite.prompts("memorized"), *suite.prompts("fit")]
        prompts = [prompt for prompt in named if prompt.references]
        if not prompts:
            raise UserError(f"suite {suite.name} has no prompt with a training picture to label")
        descriptor = CopyDescriptor(suite.path(self.weights), self.profile, target.device)
        generated = target.generate(prompts, LABEL_IMAGES).features(descriptor)
        how = PROFILES[self.profile].references
        shares = {}
        for prompt, images in zip(prompts, generated, strict=True):
            own = descriptor([read_picture(path) for path in prompt.references])
            above = reduce_references(images @ own.T, how) > self.threshold
            shares[prompt.id] = float(above.mean())
        return Labels(
            images_per_prompt=LABEL_IMAGES,
            descriptor=descriptor.fingerprint,
            threshold=self.threshold,
            share_of_copies=shares,
        ).model_dump(mode="json")

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | Unmeasurable]:
        """Raises `Unmeasurable` where labels are of another descriptor or threshold."""
        found = compare(evaluation, self.weights, self.profile)
        labels = read_labels(evaluation.path(self.labels))
        descriptor = CopyDescriptor(
            evaluation.path(self.weights), self.profile, evaluation.device
        ).fingerprint
        if (labels.descriptor, labels.threshold) != (descriptor, self.threshold):
            raise Unmeasurable(
                f"the labels are of {labels.descriptor} above {labels.threshold:g}, and the suite"
                f" has {descriptor} above {self.threshold:g}: label the prompts again"
            )
        similarity = {
            prompt.id: reduce_references(table, PROFILES[self.profile].references)
            for prompt, table in zip(found.prompts, found.tables, strict=True)
        }
        scores: dict[str, PerImage | Unmeasurable] = {}
        for name, stratum in _OF.items():
            within = {prompt.id for prompt in self.measured(evaluation.suite, name)}
            prompts = [prompt for prompt in found.prompts if prompt.id in within]
            if not prompts:
                scores[name] = Unmeasurable(f"the suite has no {STRATA[stratum]}")
                continue
            table = np.stack([similarity[prompt.id] for prompt in prompts])
            details = found.details | {
                "threshold": self.threshold,
                "label_images": labels.images_per_prompt,
                "n_expected": len(prompts),
                "n_found": len(prompts),
            }
            if name == "sscd_copied":
                scores[name] = PerImage(table, prompts, "cosine", False, details=details)
            else:
                above = (table > self.threshold).astype(float)
                scores[name] = PerImage(
                    above, prompts, "share", False, proportion=True, details=details
                )
        return scores


def read_labels(path: Path) -> Labels:
    """Raises `UserError` when the file cannot be read or is no labels file."""
    try:
        return Labels.model_validate(read_table(path))
    except ValidationError as error:
        raise UserError(f"{path} is no labels file: {validation_line(error)}") from error
    except UserError as error:
        raise UserError(
            f"labels {path} cannot be read ({one_line(error)[:100]}); make them again: bench"
            " calibrate copies"
        ) from error
