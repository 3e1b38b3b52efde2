"""The p-Laplace criterion of a finished picture (Brokman et al., SSVM 2025, arXiv 2505.08246)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench import Added, Detector, Needs, Observation, Recorder
from metrics.detectors._final_latents import FinalLatents
from metrics.detectors._sphere import convergence, directions


class Plaplace(Detector):
    """Mean cosine between the noise added to a finished picture and the noise predicted there
    (Brokman et al.).

    Without the prompt by default: the only detector that asks whether a picture is memorized,
    whatever it was made from. The paper takes t = 10 of 1,000 and 128 directions, the same
    authors' next paper 16. They noise the picture as the autoencoder encodes it; here it is the
    sampler's last clean estimate, which saves decoding and encoding and differs by the
    autoencoder's error.
    """

    needs: ClassVar[Needs] = "picture"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Brokman et al. 2025, arXiv:2505.08246"

    timestep: int = Field(
        500,
        ge=0,
        le=999,
        description=(
            "at which noise is added; the published 10 does not carry over to the embedded model,"
            " where clean pictures score higher there and memorized ones from about 50 on"
        ),
    )
    directions: int = Field(
        16, ge=2, multiple_of=2, description="points around the picture, in opposite pairs"
    )
    conditional: bool = Field(
        False, description="predict with the picture's own prompt instead of the empty one"
    )
    p: Literal[1, 2] = Field(
        1, description="1: mean cosine; 2: mean flux, which depends on the field's size too"
    )
    seed: int = Field(0, ge=0, description="of the directions, the same ones for all pictures")

    def recorders(self) -> Sequence[Recorder]:
        return (FinalLatents(),)

    def rows(self, steps: int) -> tuple[float, float]:
        """One for each direction, in both cases: the picture is there already, that is what this
        detector is for.
        """
        return float(self.directions), float(self.directions)

    def score(self, seen: Observation) -> np.ndarray:
        """A_1 in [-1, 1], `[P, n]`; for p = 2 the negative flux of the score, `-A_2`, in units of
        one over the latents' own.
        """
        finished = seen.trace(FinalLatents())
        denoiser = seen.denoiser
        around = directions(self.directions, finished.shape[2:], self.seed)
        signal = float(denoiser.pipe.scheduler.alphas_cumprod[self.timestep])
        empty, scores = denoiser.null_texts(1), []
        for row, prompt in enumerate(seen.prompts):
            embedding, added = denoiser.texts([prompt.text]) if self.conditional else empty

            def noise(
                points: Tensor, embedding: Tensor = embedding, added: Added | None = added
            ) -> Tensor:
                return denoiser.epsilon(
                    points.to(denoiser.dtype),
                    self.timestep,
                    embedding.expand(len(points), -1, -1),
                    added=added and added.expand(len(points)),
                )

            centres = torch.tensor(finished[row], device=denoiser.device)
            with torch.no_grad():
                found = convergence(noise, centres, signal, around, denoiser.batch_size, self.p)
            # A score is noise divided by the noise's deviation, turned round.
            scores.append(found if self.p == 1 else found / (1 - signal) ** 0.5)
            seen.report("plaplace", row + 1, len(seen.prompts))
        return torch.stack(scores).double().cpu().numpy()
