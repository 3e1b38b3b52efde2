"""Cost: time as a ratio to no mitigation, measured in turn on the same machine, and model
evaluations, counted over all images of the run.

Clean and memorized prompts stand apart: a method that acts on what it takes for memorized costs
more there, and a service serves clean ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench import (
    IMAGES_PER_PROMPT,
    ROUNDS,
    Evaluation,
    Metric,
    PerImage,
    PerSet,
    Role,
    Suite,
    Unmeasurable,
)
from bench.features import Extractor

MEASURED: tuple[tuple[str, Role], ...] = (("_clean", "clean"), ("", "memorized"))


class Walltime(Metric):
    """Seconds and model evaluations per image, time as a ratio to no mitigation, and what fitting
    cost.
    """

    names: ClassVar[tuple[str, ...]] = (
        "fit_seconds",
        "fit_nfe",
        *(
            f"{name}{ending}"
            for ending, _ in MEASURED
            for name in ("seconds_per_image", "nfe_per_image", "time_ratio")
        ),
    )
    roles: ClassVar[tuple[Role, ...]] = ("memorized", "clean")
    cost: ClassVar[bool] = True
    # 2: timed on prompts spread over the whole list; 3: evaluations of all images, times on clean
    # prompts too, their ratio as sum over sum
    version: ClassVar[int] = 3

    rounds: int = Field(
        3, ge=1, le=ROUNDS, description="batches sampled with the method and without it, in turn"
    )
    images: int = Field(
        8, ge=1, le=IMAGES_PER_PROMPT, description="images a batch, as far as whole prompts fill it"
    )

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {role: [] for role in self.roles}  # it reads no picture

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet | Unmeasurable]:
        scores: dict[str, PerImage | PerSet | Unmeasurable] = {
            "fit_seconds": PerSet(evaluation.fit_seconds, 1, "s", False),
            "fit_nfe": PerSet(evaluation.fit_rows, 1, "row evaluations", False),
        }
        for ending, role in MEASURED:
            try:
                found = self._of_role(evaluation, role)
            except Unmeasurable as why:
                found = dict.fromkeys(("seconds_per_image", "nfe_per_image", "time_ratio"), why)
            scores |= {f"{name}{ending}": score for name, score in found.items()}
        return scores

    def _of_role(self, evaluation: Evaluation, role: Role) -> dict[str, Any]:
        samples = evaluation.samples(role)
        timing = evaluation.time(role, self.rounds, self.images)
        method, none = np.array(timing.method_seconds), np.array(timing.none_seconds)
        ratios, images = method / none, timing.images / self.rounds
        details = {"rounds": self.rounds, "images_per_round": images}
        spent, per_image = samples.evaluations(), method / images
        return {
            "seconds_per_image": PerSet(
                float(per_image.mean()),
                self.rounds,
                "s",
                False,
                (float(per_image.min()), float(per_image.max())),
                details=details,
            ),
            "nfe_per_image": (
                PerImage(spent, samples.prompts, "row evaluations", False)
                if np.isfinite(spent).all()
                else Unmeasurable("not every image says how many evaluations it took")
            ),
            "time_ratio": PerSet(
                float(method.sum() / none.sum()),
                self.rounds,
                "x none",
                False,
                (float(ratios.min()), float(ratios.max())),
                details=details,
            ),
        }
