"""The testbed's `AutoencoderKL`: what it looks like, how it is trained, how well it
reconstructs.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset

from bench.testbed.scenes import clean_scene, render
from bench.testbed.training import Job, to_unit

KL_WEIGHT = 1e-4


def new_autoencoder(side: int) -> AutoencoderKL:
    """Factor 4, sixteen latent channels: with four, copies come out blurred and no descriptor can
    recognise them.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=side,
        mid_block_add_attention=False,
    )


class CleanPictures(Dataset[tuple[torch.Tensor]]):
    """Pictures of one clean stream as float32 `[3, side, side]` in [-1, 1]."""

    def __init__(self, seed: int, stream: str, side: int) -> None:
        self.seed, self.stream, self.side = seed, stream, side

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (to_unit(render(clean_scene(self.seed, index, self.stream), self.side)),)


def autoencoder_job(seed: int, side: int, steps: int, batch_size: int = 16) -> Job:
    torch.manual_seed(seed)
    return Job(
        "autoencoder",
        new_autoencoder(side),
        CleanPictures(seed, "autoencoder", side),
        _loss,
        steps,
        batch_size,
        2e-3,
        seed,
        weight_decay=1e-4,
    )


def _loss(
    module: torch.nn.Module, batch: tuple[torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    (pixels,) = batch
    posterior = module.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist  # type: ignore[operator]
    noise = torch.randn(posterior.mean.shape, generator=generator, device=pixels.device)
    decoded = module.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
    error = decoded - pixels
    return (
        error.square().mean()
        + 0.1 * error.abs().mean()
        + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
    )


def decoder_job(autoencoder: AutoencoderKL, seed: int, steps: int, batch_size: int = 16) -> Job:
    """Train the decoder further on squared error alone, with the encoder and so every latent
    unchanged.
    """
    side = autoencoder.config["sample_size"]
    pictures = CleanPictures(seed + 1, "autoencoder", side)
    return Job(
        "decoder",
        autoencoder.requires_grad_(True),
        pictures,
        _decoder_loss,
        steps,
        batch_size,
        1e-3,
        seed,
        weight_decay=0.0,
    )


def _decoder_loss(
    module: torch.nn.Module, batch: tuple[torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    (pixels,) = batch
    with torch.no_grad():
        latents = module.encode(
            pixels.contiguous(memory_format=torch.channels_last)
        ).latent_dist.mean  # type: ignore[operator]
    return torch.nn.functional.mse_loss(module.decode(latents).sample, pixels)  # type: ignore[operator]


@torch.inference_mode()
def latent_scale(autoencoder: AutoencoderKL, pixels: torch.Tensor) -> float:
    """The factor that gives latents of `pixels` unit standard deviation, as Stable Diffusion's
    0.18215 does.
    """
    return float(1.0 / autoencoder.encode(pixels).latent_dist.mean.std())


@torch.inference_mode()
def reconstruction_psnr(
    autoencoder: AutoencoderKL, pixels: torch.Tensor, batch_size: int = 64
) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, of 8-bit reconstructions.

    `pixels`: float `[n, 3, H, W]` in [-1, 1].
    """
    squares, count = 0.0, 0
    for part in pixels.split(batch_size):
        decoded = autoencoder.decode(autoencoder.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        difference = ((decoded + 1) * 127.5).round() - (part + 1) * 127.5
        squares, count = (
            squares + float(difference.double().square().sum()),
            count + difference.numel(),
        )
    return 10 * math.log10(255.0**2 / (squares / count))
