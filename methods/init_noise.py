"""Initial noise moved out of the attraction of a memorized image (Han et al., NeurIPS 2025, arXiv
2510.08625, batch-wise).
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench import Denoiser, Method, Request, State, Step, Swept, Where


class InitNoise(Method):
    """Move the initial noise down the sharpness of the prompt's pull, then guide a few steps later
    (Han et al., batch-wise).
    """

    where: ClassVar[Where] = "noise"
    version: ClassVar[int] = 2  # 2: of what the model predicts, not of noise
    paper: ClassVar[str] = "Han et al. 2025, arXiv:2510.08625"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"rounds": 0, "transition": 1000}
    swept: ClassVar[Swept | None] = ("gamma", (0.35, 0.7, 1, 1.4, 2))

    rounds: int = Field(2, ge=0, description="moves; 2 for Stable Diffusion 1.4, 4 for 2.0")
    gamma: float = Field(
        0.7,
        ge=0,
        description=(
            "factor of the move, whose length depends on the sharpness, in units of what the model"
            " predicts"
        ),
    )
    radius: float = Field(
        50 / 128,
        gt=0,
        description=(
            "how far ahead the pull is probed, in norms of the noise: 50 for Stable Diffusion 1.4,"
            " whose noise has norm 128; 30 for 2.0"
        ),
    )
    transition: float = Field(
        900, ge=0, le=1000, description="timestep from which guidance is on; 1000 is always"
    )

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """`x <- x - gamma (D(x + d) - D(x))`, `d` of the probing radius along D(x), D conditional
        minus unconditional, of what the model predicts: the published factors for models that
        predict velocity are of that. Four row evaluations a round.
        """
        latents = request.latents
        radius = self.radius * latents[0].numel() ** 0.5
        for _ in range(self.rounds):
            pull = self._pull(denoiser, latents, request)
            ahead = latents + radius * pull / pull.flatten(1).norm(dim=1)[
                :, None, None, None
            ].clamp_min(1e-12)
            latents = latents - self.gamma * (self._pull(denoiser, ahead, request) - pull)
        return request.replace(latents=latents)

    def _pull(self, denoiser: Denoiser, latents: Tensor, request: Request) -> Tensor:
        scaled, timestep = denoiser.start(latents)
        with torch.no_grad():
            unconditional, conditional = denoiser.branches(scaled, timestep, request)
        return denoiser.as_predicted(conditional, scaled, 0) - denoiser.as_predicted(
            unconditional, scaled, 0
        )

    def guide(self, step: Step, state: State) -> Tensor:
        """Unconditional until the transition, as in the reference, which then needs no conditional
        evaluation.
        """
        return (
            step.guided(step.guidance_scale)
            if step.timestep <= self.transition
            else step.unconditional_only()
        )
