"""How differently both predictions would grow ("metric 2" of the anonymous repository
randomnameforicml/icml-2026).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench import Detector, Needs, Observation, Request
from metrics.detectors._derivatives import Places, of_every_image


class ScoreShift(Detector):
    """Squared distance between the gradients of both predictions' squared norms, at the initial
    noise (randomnameforicml 2026).

    `|J_c' e_c - J_u' e_u|^2`, the gradients of `|e_c|^2 / 2` and `|e_u|^2 / 2` with respect to the
    model's input at the first step; as in the published code, predicted noise stands for the
    score. That code sums squares in half precision, takes 64 x 64 latents for granted and one
    noise a prompt; here sums are of float64, sizes the model's own, and of every image.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "randomnameforicml/icml-2026"

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches once, and back through both."""
        return 4.0, 4.0

    def score(self, seen: Observation) -> np.ndarray:
        """`[P, n]`, at least 0."""
        denoiser = seen.denoiser

        def shift(request: Request, places: Places) -> Tensor:
            scaled, timestep = denoiser.start(request.latents)
            embeddings = torch.cat([request.null_embeddings, request.embeddings])
            added = request.both_added
            with torch.enable_grad():
                # Each branch has an input of its own, so one backward pass gives both gradients.
                inputs = torch.cat([scaled, scaled]).requires_grad_()
                noise = denoiser.epsilon(inputs, timestep, embeddings, None, 0, added).float()
                (gradients,) = torch.autograd.grad(noise.square().sum() / 2, inputs)
            unconditional, conditional = gradients.double().flatten(1).chunk(2)
            return (conditional - unconditional).square().sum(1)

        return of_every_image(seen, "score_shift", shift)
