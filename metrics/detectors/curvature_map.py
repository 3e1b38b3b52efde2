"""Where the prompt makes the density of pictures more curved (Kim and Lee, ICML 2026, arXiv
2605.26756).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench import Detector, Needs, Observation, Recorder, Request
from metrics.detectors._derivatives import Places, of_every_image
from metrics.detectors._final_latents import LastInput


class CurvatureMap(Detector):
    """Mean over pixels of how much more curved the prompt makes the log density at the last step
    (Kim and Lee).

    The map is the positive part of minus the diagonal of the derivative of s, summed over
    channels, with s = -(conditional - unconditional): without the division by sigma, as in the
    published code, which makes no difference to the order at one step. The diagonal is estimated
    by Hutchinson's probes of random signs v, as the mean of v * (J' v). The published use is to
    localise, and its masks take the best of 101 thresholds on the tested pictures; only the mean
    of the map is taken over here.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Kim and Lee 2026, arXiv:2605.26756"

    probes: int = Field(16, ge=1, description="random signs that the diagonal is estimated from")

    def recorders(self) -> Sequence[Recorder]:
        return (LastInput(),)

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches once and back through both for each probe; alone also the sampling."""
        asked = 2.0 + 2.0 * self.probes
        return 2.0 * steps + asked, asked

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        inputs = seen.trace(LastInput())
        denoiser = seen.denoiser
        last = len(denoiser.timesteps) - 1

        def curvature(request: Request, places: Places) -> Tensor:
            scaled = torch.tensor(
                np.stack([inputs[place] for place in places]), device=denoiser.device
            )
            signs = torch.stack([self._signs(seen, *place, scaled.shape[1:]) for place in places])
            signs, diagonal = signs.to(scaled), torch.zeros_like(scaled)
            with torch.enable_grad():
                scaled.requires_grad_()
                unconditional, conditional = denoiser.branches(
                    scaled, denoiser.timesteps[last], request, last
                )
                difference = conditional.float() - unconditional.float()
                for probe in range(self.probes):
                    v, more = signs[:, probe], probe < self.probes - 1
                    (back,) = torch.autograd.grad((difference * v).sum(), scaled, retain_graph=more)
                    # Twice turned round: s is minus the difference, the map minus its derivative.
                    diagonal += v * back
            return (diagonal.sum(1) / self.probes).clamp_min(0).mean((1, 2))

        return of_every_image(seen, "curvature_map", curvature)

    def _signs(self, seen: Observation, row: int, column: int, shape: Sequence[int]) -> Tensor:
        """-1 and 1, `[probes, C, h, w]`, of the image's own stream of random numbers."""
        stream = seen.generator(row, column, "curvature_map")
        return 2 * torch.randint(0, 2, (self.probes, *shape), generator=stream) - 1
