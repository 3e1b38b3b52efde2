"""How far one step moves (Webster 2023, arXiv 2305.08694)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench import Detector, Needs, Observation
from metrics.detectors._batches import in_batches
from metrics.detectors._one_step import one_step


class OnestepWhite(Detector):
    """Mean squared change of the latents in one guided step from the highest noise level to the
    picture (Webster, white box).

    `mean((z - D(z))^2)` over all numbers of the latents, which is `sigma_max^2 mean(e^2)` for the
    guided noise e: a memorized prompt moves far towards its picture at once. The source calls the
    step one of Heun; into level 0, where this step goes, its sampler takes one of Euler, so there
    is no second evaluation. The published code keeps the score of the last seed only; here every
    image has its own, and a prompt their mean.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Webster 2023, arXiv:2305.08694"

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches once, at a noise level where no run evaluates the model."""
        return 2.0, 2.0

    def score(self, seen: Observation) -> np.ndarray:
        """In squared units of the latents, `[P, n]`."""
        found = np.empty(seen.seeds.shape)
        for places, request in in_batches(seen, "onestep_white"):
            _, moved = one_step(seen.denoiser, request)
            for place, value in zip(places, moved.double().square().mean((1, 2, 3)).tolist()):
                found[place] = value
        return found
