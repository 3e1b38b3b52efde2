"""The denoiser that has learned a training set by heart: what any sampler makes of perfect
memorization.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser


class IdealDenoiser(torch.nn.Module):
    """The noise that minimizes the loss of denoising over N training latents, float `[N, C, h, w]`:

    x0 = sum_i softmax_i(-|x_t - sqrt(a) x0_i|^2 / (2 (1 - a))) x0_i (Gu et al. 2023, eq. 4).

    It sees no caption. `alphas` is the share of signal at each timestep, `[T]`.
    """

    latents: Tensor
    alphas: Tensor

    def __init__(self, latents: Tensor, alphas: Tensor, sample_size: int) -> None:
        super().__init__()
        # Says device and number type to whoever asks the parameters.
        self.anchor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("latents", latents.double())
        self.register_buffer("alphas", alphas.double())
        self.config = SimpleNamespace(sample_size=sample_size, in_channels=latents.shape[1])

    def forward(self, sample: Tensor, timestep: Any, **_: Any) -> tuple[Tensor]:
        """Noise `[B, C, h, w]` at latents of the same shape."""
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        signal = self.alphas[times.long()].reshape(-1, 1)
        flat, known = sample.double().flatten(1), self.latents.flatten(1)
        distances = (
            flat.square().sum(1, keepdim=True)
            - 2 * signal.sqrt() * (flat @ known.T)
            + signal * known.square().sum(1)
        )
        weights = torch.softmax(-distances / (2 * (1 - signal)), dim=1)
        clean = weights @ known
        noise = (flat - signal.sqrt() * clean) / (1 - signal).sqrt()
        return (noise.reshape(sample.shape).to(sample.dtype),)


def ideal_denoiser(pipe: Any, latents: Tensor, steps: int, batch_size: int) -> Denoiser:
    """The ideal denoiser behind the autoencoder, text encoder and sampler of a pipeline."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="epsilon")
    unet = IdealDenoiser(latents, scheduler.alphas_cumprod, pipe.unet.config.sample_size)
    parts = SimpleNamespace(
        unet=unet.to(latents.device),
        scheduler=scheduler,
        vae=pipe.vae,
        tokenizer=pipe.tokenizer,
        encode_prompt=pipe.encode_prompt,
    )
    return Denoiser(parts, steps, 1.0, batch_size)
