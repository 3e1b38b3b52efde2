"""Denoisers in closed form, behind the real `Denoiser`: what a detector must give can be worked
out.

The model is any field `noise(scaled, signal, conditions)`: latents `[B, C, h, w]`, the share of
signal a of each row `[B]`, and a number for each row that its caption stands for (0 for the empty
one). Captions are numbers in text.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from bench.diffusion.denoiser import Denoiser

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
CHANNELS, SIDE = 2, 4
DIMENSIONS = CHANNELS * SIDE * SIDE


class _Unet(nn.Module):
    def __init__(self, field: Field, alphas: Tensor) -> None:
        super().__init__()
        self.field = field
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # says device and type
        self.register_buffer("alphas", alphas)
        self.config = SimpleNamespace(sample_size=SIDE, in_channels=CHANNELS)

    def forward(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor]:
        times = torch.as_tensor(timestep).reshape(-1).expand(len(sample)).long()
        signal = self.alphas[times].to(sample.dtype)
        return (self.field(sample, signal, encoder_hidden_states[:, 0, 0]),)


def analytic(field: Field, steps: int = 10, guidance: float = 3.0) -> Denoiser:
    """A denoiser of the linear schedule of Stable Diffusion with 1,000 timesteps."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    unet = _Unet(field, scheduler.alphas_cumprod)

    def encode_prompt(prompts: list[str], *_: Any) -> tuple[Tensor, None]:
        numbers = [float(prompt or 0) for prompt in prompts]
        return torch.tensor(numbers).reshape(-1, 1, 1).expand(-1, 3, 4).clone(), None

    pipe = SimpleNamespace(
        unet=unet, scheduler=scheduler, encode_prompt=encode_prompt, vae=None, tokenizer=None
    )
    return Denoiser(pipe, steps, guidance)


def shaped(values: Tensor) -> Tensor:
    """One number a row as `[B, 1, 1, 1]`."""
    return values.reshape(-1, 1, 1, 1)


def gaussian(variance: float = 1.0) -> Field:
    """Pictures drawn from N(0, c I), whatever the caption: e = sqrt(1-a) x / (a c + 1 - a)."""

    def noise(scaled: Tensor, signal: Tensor, _: Tensor) -> Tensor:
        a = shaped(signal)
        return (1 - a).sqrt() * scaled / (a * variance + 1 - a)

    return noise


def point(place: Tensor) -> Field:
    """One memorized picture `[C, h, w]` for captions other than 0, N(0, I) for the empty one."""

    def noise(scaled: Tensor, signal: Tensor, conditions: Tensor) -> Tensor:
        a = shaped(signal)
        known = (scaled - a.sqrt() * place) / (1 - a).sqrt()
        return torch.where(shaped(conditions) != 0, known, (1 - a).sqrt() * scaled)

    return noise


def linear(unconditional: Tensor, conditional: Tensor) -> Field:
    """e = A x over flattened latents: `[d, d]` each, by caption."""

    def noise(scaled: Tensor, signal: Tensor, conditions: Tensor) -> Tensor:
        flat = scaled.flatten(1)
        without, given = (
            (flat @ matrix.to(flat).T).reshape(scaled.shape)
            for matrix in (unconditional, conditional)
        )
        return torch.where(shaped(conditions) != 0, given, without)

    return noise


def constant(unconditional: Tensor, conditional: Tensor) -> Field:
    """The same noise `[C, h, w]` everywhere, by caption."""

    def noise(scaled: Tensor, signal: Tensor, conditions: Tensor) -> Tensor:
        return torch.where(shaped(conditions) != 0, conditional, unconditional).to(scaled)

    return noise
