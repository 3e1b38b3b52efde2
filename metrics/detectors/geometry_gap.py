"""Curvature of the gap between both predictions, in the middle of generation (Brokman et al.,
NeurReps 2025, after arXiv 2505.08246).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench import Added, Detector, Needs, Observation, Recorder
from metrics.detectors._final_latents import CleanEstimates
from metrics.detectors._sphere import convergence, directions


class GeometryGap(Detector):
    """Mean cosine between added noise and conditional minus unconditional prediction, around the
    clean estimates of some steps (Brokman et al.).

    What the prompt adds points at one picture from all sides where that picture is memorized. The
    published code hands the number of the step over as timestep, so that its early steps are
    evaluated at almost no noise; here the timestep is the step's own. It also decodes and encodes
    every clean estimate, which is left out here.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Brokman et al. 2025 (NeurReps), after arXiv:2505.08246"

    at: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (1, 3, 6),
        min_length=1,
        description=(
            "steps whose clean estimates are centres, the first is 0; one beyond the last step is"
            " the last"
        ),
    )
    directions: int = Field(
        16, ge=2, multiple_of=2, description="points around each centre, in opposite pairs"
    )
    seed: int = Field(0, ge=0, description="of the directions, the same ones for all pictures")

    def recorders(self) -> Sequence[Recorder]:
        return (CleanEstimates(steps=self.at),)

    def rows(self, steps: int) -> tuple[float, float]:
        """Two for each direction and centre; alone also both branches of every step up to the last
        centre.
        """
        asked = 2.0 * self.directions * len(self.at)
        return 2.0 * (min(max(self.at), steps - 1) + 1) + asked, asked

    def score(self, seen: Observation) -> np.ndarray:
        """A_1 of the gap, the mean over the steps, in [-1, 1], `[P, n]`."""
        estimates = seen.trace(CleanEstimates(steps=self.at))
        denoiser = seen.denoiser
        around = directions(self.directions, estimates.shape[3:], self.seed)
        places = [min(step, len(denoiser.timesteps) - 1) for step in self.at]
        (empty, null), scores = denoiser.null_texts(1), []
        for row, prompt in enumerate(seen.prompts):
            (embedding, added), found = denoiser.texts([prompt.text]), []
            for column, index in enumerate(places):

                def gap(
                    points: Tensor,
                    index: int = index,
                    own: Tensor = embedding,
                    added: Added | None = added,
                ) -> Tensor:
                    both = torch.cat([part.expand(len(points), -1, -1) for part in (empty, own)])
                    beside = (
                        null
                        and added
                        and null.expand(len(points)).and_then(added.expand(len(points)))
                    )
                    unconditional, conditional = denoiser.epsilon(
                        torch.cat([points, points]).to(denoiser.dtype),
                        denoiser.timesteps[index],
                        both,
                        None,
                        index,
                        beside,
                    ).chunk(2)
                    return conditional.float() - unconditional.float()

                centres = torch.tensor(estimates[row, :, column], device=denoiser.device)
                signal = float(denoiser.alphas[index])
                with torch.no_grad():
                    found.append(convergence(gap, centres, signal, around, denoiser.batch_size))
            scores.append(torch.stack(found).mean(0))
            seen.report("geometry_gap", row + 1, len(seen.prompts))
        return torch.stack(scores).double().cpu().numpy()
