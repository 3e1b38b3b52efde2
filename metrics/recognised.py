"""Does a generation show what its prompt asks for? Asked of a classifier of objects.

Unlike an alignment score it is a share that reads as it stands: of all clean generations, those
whose most likely object is one that the prompt names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Suite, Unmeasurable
from bench.features import Extractor, ObjectRecogniser


class Recognised(Metric):
    """Share of clean generations in which a classifier sees an object that the prompt names."""

    names: ClassVar[tuple[str, ...]] = ("recognised",)
    roles: ClassVar[tuple[Role, ...]] = ("clean",)
    files: ClassVar[tuple[str, ...]] = ("weights",)
    trial: ClassVar[Mapping[str, Any]] = {"weights": "objects.safetensors"}

    weights: str = Field(
        description=(
            "safetensors of a classifier with the names of its objects, relative to the suite file"
        )
    )

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"clean": [ObjectRecogniser(suite.path(self.weights), device)]}

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        """Raises `Unmeasurable` when a prompt names no object that the classifier knows."""
        samples = evaluation.samples("clean")
        recogniser = evaluation.loaded(
            ObjectRecogniser(evaluation.path(self.weights), evaluation.device)
        )
        asked = [recogniser.named(prompt.text) for prompt in samples.prompts]
        for prompt, objects in zip(samples.prompts, asked, strict=True):
            if not objects:
                raise Unmeasurable(
                    f"the clean prompt '{prompt.id}' names none of the {len(recogniser.names)}"
                    " objects that the classifier knows"
                )
        answers = samples.features(recogniser).argmax(2)
        right = [np.isin(row, objects) for row, objects in zip(answers, asked, strict=True)]
        details = {"weights_sha256": recogniser.digest, "objects": len(recogniser.names)}
        return {
            "recognised": PerImage(
                np.stack(right).astype(float),
                samples.prompts,
                "share",
                True,
                proportion=True,
                details=details,
            )
        }
