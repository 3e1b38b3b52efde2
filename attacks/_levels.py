"""The noise levels that a sampler walks through, for attackers who walk them in their own way.

Latents here are always of unit scale, sqrt(a) x0 + sqrt(1 - a) noise, whatever scale the scheduler
gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import Denoiser, Request


@dataclass(frozen=True)
class Levels:
    """The share of signal a of latents before each step and after it, float32 `[S]` both."""

    before: Tensor
    after: Tensor


def levels_of(denoiser: Denoiser) -> Levels:
    """The levels of the suite's sampler."""
    scheduler, before = denoiser.pipe.scheduler, denoiser.alphas.float()
    if hasattr(scheduler, "sigmas"):
        last = 1 / (1 + float(denoiser.new_scheduler().sigmas[-1]) ** 2)
    else:
        last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return Levels(before, torch.cat([before[1:], before.new_tensor([last])]))


def guided(denoiser: Denoiser, latents: Tensor, index: int, request: Request) -> Tensor:
    """The noise of step `index` under classifier-free guidance, float32 `[B, C, h, w]`."""
    without, given = denoiser.branches(
        latents.to(denoiser.dtype), denoiser.timesteps[index], request, index
    )
    return (without + request.guidance_scale * (given - without)).float()


def clean(latents: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """The picture x0 that latents of this level hold, if this is their noise."""
    return (latents - (1 - signal).sqrt() * noise) / signal.sqrt()


def walked(
    denoiser: Denoiser, request: Request, go_on: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Final latents `[B, C, h, w]` of a request whose steps an attacker makes: `go_on` gets the
    number of a step, the latents before it and their guided noise, and gives those after it, all of
    them float32.
    """
    with torch.no_grad():
        latents = denoiser.start(request.latents)[0].float()
        for index in range(len(denoiser.timesteps)):
            latents = go_on(index, latents, guided(denoiser, latents, index, request))
    return latents.to(denoiser.dtype)


def scales_of(denoiser: Denoiser) -> Tensor:
    """What the scheduler's latents are multiplied with before each step, to be of unit scale:
    float32 `[S]`.
    """
    found = []
    for index in range(len(denoiser.timesteps)):
        scheduler = denoiser.new_scheduler()  # some remember the step that they were asked for
        one = torch.ones((), device=denoiser.device)
        found.append(float(scheduler.scale_model_input(one, scheduler.timesteps[index])))
    return torch.tensor(found, device=denoiser.device)
