"""What else a removal changes: copies of memorized prompts that no method was told of, and pictures
of the same objects.

In the track `removal` a method is told of some memorized prompts, the named ones. The other metrics
measure these (role memorized) and clean prompts. This one measures what stands between: memorized
prompts that nobody named (spill-over: a method that changes them too has not removed items, it has
mitigated memory as a whole, which may be wished for or not), and neighbours, clean captions of the
objects of the named prompts, which should be what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import (
    Evaluation,
    Metric,
    PerImage,
    Role,
    Shown,
    Suite,
    Unmeasurable,
    UserError,
    read_picture,
)
from bench.features import PROFILES, CopyDescriptor, Extractor, OpenClip, ProfileName
from metrics.sscd import compare, reduce_references


class Removal(Metric):
    """Copies of memorized prompts that no method is told of, and alignment and copies of the named
    prompts' neighbours (track removal).
    """

    names: ClassVar[tuple[str, ...]] = (
        "copies_unnamed",
        "sscd_unnamed",
        "clip_score_neighbours",
        "any_copy_neighbours",
    )
    roles: ClassVar[tuple[Role, ...]] = ("unnamed", "neighbours")
    files: ClassVar[tuple[str, ...]] = ("weights", "clip_weights")
    pictured: ClassVar[tuple[str, ...]] = ("copies_unnamed", "sscd_unnamed")
    shown: ClassVar[Mapping[str, Shown]] = {
        "copies_unnamed": Shown(
            heading="copies, unnamed",
            meaning="share of images of memorized prompts that no method is told of that are copies"
            " of their training picture",
        ),
        "sscd_unnamed": Shown(
            heading="SSCD unnamed",
            meaning="mean similarity of a generation to its training picture, over the same"
            " prompts",
        ),
        "clip_score_neighbours": Shown(
            heading="CLIP neighbours",
            meaning="cosine of picture and prompt, over clean captions of the objects of named"
            " prompts",
        ),
        "any_copy_neighbours": Shown(
            heading="any copy, neighbours",
            meaning="share of images of the same captions that copy any training picture of the"
            " suite",
        ),
    }
    trial: ClassVar[Mapping[str, Any]] = {
        "weights": "descriptor.safetensors",
        "profile": "testbed",
        "threshold": 0.5,
        "clip": "./clip",
    }

    weights: str = Field(description="weights of a copy descriptor, relative to the suite file")
    profile: ProfileName = Field("nemo", description=f"one of {', '.join(PROFILES)}")
    threshold: float = Field(0.7, gt=-1, lt=1, description="an image above it counts as a copy")
    clip: str = Field(
        description=(
            "an open_clip folder relative to the suite file, or the name of an architecture if"
            " `clip_weights` is given"
        )
    )
    clip_weights: str = Field(
        "", description="checkpoint of the architecture, relative to the suite file"
    )

    def fits(self, suite: Suite) -> None:
        """Raises `UserError` for a suite of another track."""
        if not suite.removes:
            raise UserError(
                f"metric removal is of suites of the track removal, and {suite.name} is none"
            )

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        descriptor = CopyDescriptor(suite.path(self.weights), self.profile, device)
        return {"unnamed": [descriptor], "neighbours": [descriptor, self._clip(suite, device)]}

    def _clip(self, suite: Suite, device: Any) -> OpenClip:
        return OpenClip(
            self.clip,
            None if self.clip_weights else suite.path(self.clip),
            suite.path(self.clip_weights) if self.clip_weights else None,
            device,
        )

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | Unmeasurable]:
        """Raises `Unmeasurable` where no unnamed prompt has a training picture."""
        scores: dict[str, PerImage | Unmeasurable] = dict(self._unnamed(evaluation))
        try:
            scores |= self._neighbours(evaluation)
        except Unmeasurable as reason:
            scores |= {name: reason for name in self.names if name.endswith("_neighbours")}
        return scores

    def _unnamed(self, evaluation: Evaluation) -> dict[str, PerImage]:
        found = compare(evaluation, self.weights, self.profile, "unnamed")
        how = PROFILES[self.profile].references
        similarity = np.stack([reduce_references(table, how) for table in found.tables])
        details = found.details | {"threshold": self.threshold}
        above = (similarity > self.threshold).astype(float)
        # Neither more nor fewer of them is better: what was not named was not asked for.
        return {
            "copies_unnamed": PerImage(
                above, found.prompts, "share", None, proportion=True, details=details
            ),
            "sscd_unnamed": PerImage(similarity, found.prompts, "cosine", None, details=details),
        }

    def _neighbours(self, evaluation: Evaluation) -> dict[str, PerImage]:
        suite, samples = evaluation.suite, evaluation.samples("neighbours")
        descriptor = evaluation.loaded(
            CopyDescriptor(evaluation.path(self.weights), self.profile, evaluation.device)
        )
        training = descriptor([read_picture(path) for path in suite.training_pictures])
        nearest = (samples.features(descriptor) @ training.T).max(2)
        clip = evaluation.loaded(self._clip(suite, evaluation.device))
        texts, truncated = clip.texts([prompt.text for prompt in samples.prompts])
        cosine = np.einsum("pid,pd->pi", samples.features(clip), texts)
        copied = {
            "profile": self.profile,
            "weights_sha256": descriptor.digest,
            "threshold": self.threshold,
            "training_pictures": len(training),
        }
        aligned = {"weights_sha256": clip.digest, "truncated_prompts": truncated}
        return {
            "clip_score_neighbours": PerImage(
                cosine, samples.prompts, "cosine", True, details=aligned
            ),
            "any_copy_neighbours": PerImage(
                (nearest > self.threshold).astype(float),
                samples.prompts,
                "share",
                False,
                proportion=True,
                details=copied,
            ),
        }
