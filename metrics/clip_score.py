"""Alignment: cosine between a generation and its original prompt under an open_clip model.

Raw cosine in [-1, 1]; other scales in the literature are functions of it. The prompt is always the
one that was asked for, never one that a mitigation made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Suite
from bench.features import Extractor, OpenClip


class ClipScore(Metric):
    """Cosine of picture and original prompt under an open_clip model, on memorized and on clean
    prompts.
    """

    names: ClassVar[tuple[str, ...]] = ("clip_score", "clip_score_clean")
    roles: ClassVar[tuple[Role, ...]] = ("memorized", "clean")
    files: ClassVar[tuple[str, ...]] = ("weights",)

    model: str = Field(
        description=(
            "an open_clip folder relative to the suite file, or the name of an architecture if"
            " `weights` is given"
        )
    )
    weights: str = Field(
        "", description="checkpoint of the architecture, relative to the suite file"
    )

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        clip = self._clip(suite, device)
        return {"memorized": [clip], "clean": [clip]}

    def _clip(self, suite: Suite, device: Any) -> OpenClip:
        return OpenClip(
            self.model,
            None if self.weights else suite.path(self.model),
            suite.path(self.weights) if self.weights else None,
            device,
        )

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        clip = evaluation.loaded(self._clip(evaluation.suite, evaluation.device))
        scores: dict[str, PerImage | PerSet] = {}
        for name, role in (("clip_score", "memorized"), ("clip_score_clean", "clean")):
            if not evaluation.suite.prompts(role):  # type: ignore[arg-type]
                continue
            samples = evaluation.samples(role)  # type: ignore[arg-type]
            images = samples.features(clip)
            texts, truncated = clip.texts([prompt.text for prompt in samples.prompts])
            cosine = np.einsum("pid,pd->pi", images, texts)
            details = {
                "model": Path(self.model).name,
                "weights_sha256": clip.digest,
                "truncated_prompts": truncated,
            }
            scores[name] = PerImage(cosine, samples.prompts, "cosine", True, details=details)
        return scores
