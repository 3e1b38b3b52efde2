"""The testbed's `AutoencoderKL`: what it looks like, how it is trained, how well it reconstructs.

Its encoder begins as a linear map: the principal components of 4x4 pixel blocks, the best linear
code of that size. From there both halves are trained; beginning from nothing takes several times
as long.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset

from bench.testbed.scenes import clean_scene, render
from bench.testbed.training import Job, to_unit

LATENT_CHANNELS = 24
CHANNELS = (16, 32, 64)
GROUPS = 8
# The noise that the decoder learns to ignore: as much squared error a latent value as this. It
# rises between two shares of the training, because a decoder that cannot use a channel yet lets it
# die.
KL_WEIGHT = 4e-3
KL_START, KL_END = 0.2, 0.6
# The constant channels of the encoder's last layer, against which group normalisation measures.
ANCHOR = 4.0
BASIS_PICTURES = 500


def new_autoencoder(side: int) -> AutoencoderKL:
    """Factor 4, 24 latent channels: with fewer, a perfect copy is not recognised as one by SSCD."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=side,
        mid_block_add_attention=False,
    )


class WeightedPictures(Dataset[tuple[torch.Tensor, float]]):
    """Clean pictures, float32 `[3, side, side]` in [-1, 1], and the KL weight at that position."""

    def __init__(self, seed: int, side: int, count: int) -> None:
        self.seed, self.side, self.count = seed, side, count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        pixels = render(clean_scene(self.seed, index, "autoencoder"), self.side)
        risen = (index / self.count - KL_START) / (KL_END - KL_START)
        return to_unit(pixels), KL_WEIGHT * min(max(risen, 0.0), 1.0)


def autoencoder_job(seed: int, side: int, steps: int, batch_size: int = 16) -> Job:
    torch.manual_seed(seed)
    autoencoder = new_autoencoder(side)
    scenes = (clean_scene(seed, index, "basis") for index in range(BASIS_PICTURES))
    begin_as_linear_basis(autoencoder, torch.stack([to_unit(render(s, side)) for s in scenes]))
    pictures = WeightedPictures(seed, side, steps * batch_size)
    return Job(
        "autoencoder",
        autoencoder,
        pictures,
        _loss,
        steps,
        batch_size,
        learning_rate=2e-3,
        muon_rate=0.02,
        seed=seed,
        weight_decay=1e-4,
    )


def _loss(
    module: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    """Squared error of the decoded sample and the weighted KL divergence a latent value."""
    pixels, weight = batch
    posterior = module.encode(  # type: ignore[operator]
        pixels.contiguous(memory_format=torch.channels_last)
    ).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator, device=pixels.device)
    decoded = module.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
    divergence = posterior.kl() / posterior.mean[0].numel()
    return torch.nn.functional.mse_loss(decoded, pixels) + (weight * divergence).mean()


@torch.no_grad()
def begin_as_linear_basis(autoencoder: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Make the encoder the whitened principal components of the 4x4 blocks of `pixels`.

    `pixels`: float `[n, 3, H, W]` in [-1, 1]. Residual branches of both halves begin at zero. Exact
    up to the last group normalisation: SiLU is passed exactly by pairs (x, -x), because
    silu(x) - silu(-x) = x, and large constant pairs keep the scale of each group nearly fixed.
    """
    for name, module in autoencoder.named_modules():
        if name.endswith("conv2"):
            _clear(module)
    encoder, inputs = autoencoder.encoder, pixels.shape[1]
    blocks = (
        torch.nn.functional.pixel_unshuffle(pixels, 4).permute(0, 2, 3, 1).flatten(0, 2).double()
    )
    values, vectors = torch.linalg.eigh(torch.cov(blocks.T))
    basis = (vectors.flip(1) / values.flip(0).sqrt())[:, :LATENT_CHANNELS].T
    # Channel, row of 2, row of 4, column of 2, column of 4, as two halvings of the side see a
    # block.
    weights = basis.float().unflatten(1, (inputs, 2, 2, 2, 2))

    _clear(encoder.conv_in)
    for channel in range(inputs):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1.0
    first, second = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    _clear(first)
    _clear(second)
    for place in range(4 * inputs):
        channel, row, column = place // 4, place // 2 % 2, place % 2
        first.weight[place, channel, row, column] = 1.0
        second.weight[:LATENT_CHANNELS, place, :2, :2] = weights[:, channel, :, row, :, column]
    second.bias[:LATENT_CHANNELS] = -(basis @ blocks.mean(0)).float()
    widen = encoder.down_blocks[1].resnets[0].conv_shortcut
    _clear(widen)
    for place in range(4 * inputs):
        widen.weight[place, place] = 1.0

    spread, last = encoder.down_blocks[2].resnets[0].conv_shortcut, encoder.conv_out
    _clear(spread)
    _clear(last)
    wide = CHANNELS[2] // GROUPS
    pairs = wide // 2 - 1
    scale = math.sqrt(2 * (ANCHOR**2 + pairs) / wide)
    for component in range(LATENT_CHANNELS):
        group, pair = divmod(component, pairs)
        for sign, place in ((1.0, group * wide + 2 * pair), (-1.0, group * wide + 2 * pair + 1)):
            spread.weight[place, component] = sign
            last.weight[component, place, 1, 1] = sign * scale
    for group in range(GROUPS):
        spread.bias[group * wide + wide - 2] = ANCHOR
        spread.bias[group * wide + wide - 1] = -ANCHOR
    last.bias[LATENT_CHANNELS:] = -4.0  # log variance of the posterior
    _clear(autoencoder.quant_conv)
    for channel in range(2 * LATENT_CHANNELS):
        autoencoder.quant_conv.weight[channel, channel] = 1.0


def _clear(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


@torch.no_grad()
def scale_by_importance(autoencoder: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Multiply each latent channel by the root of its importance, and divide again when decoding.

    Important is what the posterior says precisely: a channel's importance is the inverse of the
    posterior's deviation, because there an error costs that much more. Pictures are coded and
    decoded as before. Channels of equal variance are nearly white noise (neighbouring latents
    correlate by 0.08); scaled so, by 0.31, and coarse channels come out of the noise first, as in
    natural pictures. `pixels`: float `[n, 3, H, W]` in [-1, 1].
    """
    posterior = autoencoder.encode(pixels).latent_dist
    factors = posterior.std.mean((0, 2, 3)).rsqrt()
    inward, outward = autoencoder.quant_conv, autoencoder.post_quant_conv
    inward.weight[:LATENT_CHANNELS] *= factors[:, None, None, None]
    inward.bias[:LATENT_CHANNELS] *= factors
    inward.bias[LATENT_CHANNELS:] += 2 * factors.log()  # log variance of the posterior
    outward.weight /= factors[None, :, None, None]


@torch.inference_mode()
def latent_scale(autoencoder: AutoencoderKL, pixels: torch.Tensor) -> float:
    """What gives latents of `pixels` unit deviation, as Stable Diffusion's 0.18215 does."""
    return float(1.0 / autoencoder.encode(pixels).latent_dist.mean.std())


@torch.inference_mode()
def latent_statistics(autoencoder: AutoencoderKL, pixels: torch.Tensor) -> dict[str, list[float]]:
    """By channel: variance of the posterior means over `pixels`, and the posterior's deviation."""
    posterior = autoencoder.encode(pixels).latent_dist
    return {
        "variance": [round(float(v), 4) for v in posterior.mean.var((0, 2, 3))],
        "posterior_deviation": [round(float(v), 4) for v in posterior.std.mean((0, 2, 3))],
    }


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
        squares += float(difference.double().square().sum())
        count += difference.numel()
    return 10 * math.log10(255.0**2 / (squares / count))
