"""The picture that one step of the sampler gives (Webster 2023, arXiv 2305.08694).

The published code asks the sampler of Heun in k-diffusion for one step. Karras' schedule of one
step is the two levels sigma_max and 0, and into 0 that sampler takes a step of Euler: at 0 the
model cannot be evaluated. So the step is a single evaluation of both branches, and it ends at the
denoised picture, `D(z) = z - sigma_max e` with e the guided noise at `z = sigma_max n`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import Denoiser, Request, Unmeasurable

# Below this share of signal, dividing by it leaves nothing but rounding.
SMALLEST_SIGNAL = 1e-8


def one_step(denoiser: Denoiser, request: Request) -> tuple[Tensor, Tensor]:
    """The picture D(z) and its distance from the start, `D(z) - z`, as latents in units of the
    picture, float32 `[B, C, h, w]` both. Costs two rows for each image.

    sigma_max is that of the training's last level (14.6 for Stable Diffusion, timestep 999), not of
    the suite's first timestep, and the model's input is `z / sqrt(sigma_max^2 + 1)`, as in the
    source. Guidance is the suite's (7.5 in the source). Raises `Unmeasurable` for a model that is
    trained on pure noise, whose sigma_max is infinite.
    """
    levels = denoiser.pipe.scheduler.alphas_cumprod
    signal = float(levels[-1])
    if signal < SMALLEST_SIGNAL:
        raise Unmeasurable(
            "the model is trained on pure noise too, where one step has no finite length"
        )
    sigma = ((1 - signal) / signal) ** 0.5
    noise = request.latents.float()
    scaled = ((1 - signal) ** 0.5 * noise).to(denoiser.dtype)
    with torch.no_grad():
        unconditional, conditional = denoiser.branches(scaled, len(levels) - 1, request)
    added = conditional.float() - unconditional.float()
    moved = -sigma * (unconditional.float() + request.guidance_scale * added)
    return sigma * noise + moved, moved
