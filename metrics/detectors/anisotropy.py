"""Anisotropy of what the prompt adds, from pure noise alone (Asthana and Belagiannis, ICLR 2026,
arXiv 2601.20642).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bench import Detector, Needs, Observation, Recorder
from metrics.detectors._batches import in_batches
from metrics.detectors._recorders import DifferenceNorms

LATE = 3  # the step of the cosine, counted from the end


class Anisotropy(Detector):
    """Norm of conditional minus unconditional noise at the first timestep, plus its cosine with the
    unconditional noise at a late one, on the same pure noise (Asthana and Belagiannis).

    `w_norm |d(first)| + w_cosine cos(d, e_u)(third from last)`. No picture is sampled: the late
    timestep sees noise that it never sees in a run. The published code takes the cosine over the
    channels of each latent pixel and averages it; for Stable Diffusion 2 it converts velocity with
    a wrong formula, where here all predictions are noise. Its weights were fitted on the prompts
    that it is tested on. On the embedded model the cosine points the other way; it is not turned
    round.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Asthana and Belagiannis 2026, arXiv:2601.20642"

    w_norm: float = Field(
        2.0, description="weight of the norm; published: 1 for SD 1 and for SD 2, 2 elsewhere"
    )
    w_cosine: float = Field(
        1.0, description="weight of the cosine; published: 2 for SD 1, 0.1 for SD 2, 1 elsewhere"
    )
    cosine: Literal["channel", "global"] = Field(
        "channel",
        description="over the channels of each latent pixel, then averaged (code), or over all",
    )

    def recorders(self) -> Sequence[Recorder]:
        """The first step of a run is at pure noise too, so its norm is there already."""
        return (DifferenceNorms(),)

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches at two timesteps, of which a run gives the first."""
        return 4.0, 2.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`."""
        norms = seen.trace(DifferenceNorms())[..., 0].astype(np.float64)
        return self.w_norm * norms + self.w_cosine * self._cosines(seen)

    def _cosines(self, seen: Observation) -> np.ndarray:
        """Of the late timestep, in [-1, 1], `[P, n]`."""
        denoiser = seen.denoiser
        late = max(len(denoiser.timesteps) - LATE, 0)
        found = np.empty(seen.seeds.shape)
        for places, request in in_batches(seen, "anisotropy"):
            with torch.no_grad():
                scaled, timestep = denoiser.start(request.latents, late)
                unconditional, conditional = denoiser.branches(scaled, timestep, request, late)
            cosines = self._cosine(
                conditional.double() - unconditional.double(), unconditional.double()
            )
            for place, value in zip(places, cosines.tolist()):
                found[place] = value
        return found

    def _cosine(self, difference: Tensor, unconditional: Tensor) -> Tensor:
        """`[B]` of two `[B, C, h, w]`; that of a zero vector is 0."""
        if self.cosine == "channel":
            return cosine_similarity(difference, unconditional, dim=1).mean((1, 2))
        return cosine_similarity(difference.flatten(1), unconditional.flatten(1), dim=1)
