"""Cost: time as a ratio to no mitigation, measured in turn on the same machine, and model
evaluations, counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Role, Suite
from bench.features import Extractor


class Walltime(Metric):
    """Seconds and model evaluations per image, time as a ratio to no mitigation, and what fitting
    cost.
    """

    names: ClassVar[tuple[str, ...]] = (
        "fit_seconds",
        "fit_nfe",
        "seconds_per_image",
        "nfe_per_image",
        "time_ratio",
    )
    roles: ClassVar[tuple[Role, ...]] = ("memorized",)
    cost: ClassVar[bool] = True
    version: ClassVar[int] = 2  # 2: timed on prompts spread over the whole list

    rounds: int = Field(
        3, ge=1, description="batches sampled with the method and without it, in turn"
    )
    images: int = Field(8, ge=1, description="images a batch, as far as whole prompts fill it")

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"memorized": []}  # it reads no picture

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        timing = evaluation.time(self.rounds, self.images)
        method, none = np.array(timing.method_seconds), np.array(timing.none_seconds)
        ratios = method / none
        images = timing.images / self.rounds
        details = {"rounds": self.rounds, "images_per_round": images}
        per_image = method / images
        return {
            "fit_seconds": PerSet(evaluation.fit_seconds, 1, "s", False),
            "fit_nfe": PerSet(evaluation.fit_rows, 1, "row evaluations", False),
            "seconds_per_image": PerSet(
                float(np.median(per_image)),
                self.rounds,
                "s",
                False,
                (float(per_image.min()), float(per_image.max())),
                details=details,
            ),
            "nfe_per_image": PerSet(
                timing.method_rows / timing.images, timing.images, "row evaluations", False
            ),
            "time_ratio": PerSet(
                float(np.median(ratios)),
                self.rounds,
                "x none",
                False,
                (float(ratios.min()), float(ratios.max())),
                details=details,
            ),
        }
