"""Sharpness of what the prompt adds, at the first step (Jeon et al., ICML 2025, arXiv
2412.04140).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench import Detector, Needs, Observation, Request
from metrics.detectors._derivatives import Places, along, of_every_image


class Sharpness(Detector):
    """How fast the difference of both scores changes along itself, at the initial noise (Jeon et
    al.).

    With s = -(conditional - unconditional) / sigma, it is the norm of J s, J the derivative of s
    (a difference of two Hessians of log densities). The paper has the square of the norm and its
    code the norm; that is the same ranking for one image a prompt and another one for the mean of
    several. The published formula of the score of a model that predicts velocity takes velocity
    for a picture; here velocity is converted to noise first. The published code flips labels
    where the area is below one half; nothing is flipped here.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Jeon et al. 2025, arXiv:2412.04140"

    squared: bool = Field(False, description="the square of the norm, as in the paper")

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches twice, the second time with a derivative, which counts as one more."""
        return 6.0, 6.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        denoiser = seen.denoiser

        def sharpness(request: Request, places: Places) -> Tensor:
            scaled, timestep = denoiser.start(request.latents)

            def difference(place: Tensor) -> Tensor:
                unconditional, conditional = denoiser.branches(place, timestep, request, 0)
                return conditional.float() - unconditional.float()

            with torch.no_grad():
                direction = difference(scaled)
            changed = along(difference, scaled, direction)
            # Both minus signs of the two scores cancel, and both leave a division by sigma.
            length = changed.double().flatten(1).norm(dim=1) / float(1 - denoiser.alphas[0])
            return length.square() if self.squared else length

        return of_every_image(seen, "sharpness", sharpness)
