"""The testbed's denoiser: a text encoder and a UNet in the shape of Stable Diffusion's.

As in Stable Diffusion: epsilon prediction, the scaled-linear noise schedule, captions dropped 10 %
of the time. Unlike it, the text encoder starts from nothing and is trained along, and the loss is
weighted by min-SNR (Hang et al. 2023, eq. 6 for epsilon). Trained in bfloat16 with float32 weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import compute_snr
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bench.testbed.autoencoder import LATENT_CHANNELS
from bench.testbed.captions import MAX_TOKENS
from bench.testbed.plan import TestbedPlan
from bench.testbed.scenes import (
    Canary,
    canary_scenes,
    clean_scene,
    exposure_plan,
    render,
    shown_pictures,
)
from bench.testbed.training import Job, to_unit

CAPTION_DROPOUT = 0.1
TEXT_WIDTH = 128
MIN_SNR_GAMMA = 5.0
# The noise schedule of Stable Diffusion 1.x.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


class TextToNoise(torch.nn.Module):
    """Token ids and noised latents to predicted noise: the two trained parts as one module."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(
        self, noised: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        embeddings = self.text_encoder(input_ids=tokens).last_hidden_state
        return self.unet(noised, timesteps, encoder_hidden_states=embeddings).sample


class CaptionedPictures(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The training stream, with token ids `[MAX_TOKENS]`.

    Position i is a canary picture where the exposure plan says so, else clean picture i.
    """

    def __init__(
        self,
        seed: int,
        side: int,
        tokenizer: CLIPTokenizer,
        canaries: tuple[Canary, ...],
        exposures: np.ndarray,
    ) -> None:
        self.seed, self.side, self.tokenizer, self.exposures = seed, side, tokenizer, exposures
        self.scenes = [scene for scene, _ in shown_pictures(canaries)]
        self.pixels = [render(scene, side) for scene in self.scenes]
        # Dropping is decided apart from the scenes, so that clean picture i stays what it is.
        self.dropped = np.random.default_rng([seed, 7919]).random(len(exposures)) < CAPTION_DROPOUT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = int(self.exposures[index])
        if picture < 0:
            scene = clean_scene(self.seed, index)
            pixels = render(scene, self.side)
        else:
            scene, pixels = self.scenes[picture], self.pixels[picture]
        caption = "" if self.dropped[index] else scene.caption
        return to_unit(pixels), token_ids(self.tokenizer, caption)


def token_ids(tokenizer: CLIPTokenizer, caption: str) -> torch.Tensor:
    encoded = tokenizer(caption, padding="max_length", max_length=MAX_TOKENS, truncation=True)
    return torch.tensor(encoded.input_ids)


def new_denoiser(vocabulary: int, side: int) -> TextToNoise:
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=side // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )
    return TextToNoise(CLIPTextModel(text), unet)


def denoiser_job(plan: TestbedPlan, tokenizer: CLIPTokenizer, autoencoder: AutoencoderKL) -> Job:
    """Train on the first `denoiser_steps * denoiser_batch` pictures of the plan's stream."""
    canaries = canary_scenes(plan)
    exposures = exposure_plan(plan.seed, plan.denoiser_steps * plan.denoiser_batch, canaries)
    torch.manual_seed(plan.seed)
    module = new_denoiser(len(tokenizer), plan.side)
    # Fused attention goes back through bfloat16 on a CPU in a third of the time of a whole step.
    module.unet.set_attn_processor(AttnProcessor())
    schedule = DDPMScheduler(**SCHEDULE)
    scale = autoencoder.config["scaling_factor"]

    def loss(
        module: torch.nn.Module,
        batch: tuple[torch.Tensor, torch.Tensor],
        generator: torch.Generator,
    ) -> torch.Tensor:
        pixels, tokens = batch
        with torch.no_grad():
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            latents = autoencoder.encode(pixels).latent_dist.mean * scale
        latents = latents.contiguous()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        timesteps = torch.randint(
            schedule.config["num_train_timesteps"],
            (len(latents),),
            generator=generator,
            device=latents.device,
        )
        noised = schedule.add_noise(latents, noise, timesteps)
        with torch.autocast(latents.device.type, dtype=torch.bfloat16):
            predicted = module(noised, timesteps, tokens)
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        return (errors * min_snr_weights(schedule, timesteps)).mean()

    stream = CaptionedPictures(plan.seed, plan.side, tokenizer, canaries, exposures)
    return Job(
        "denoiser",
        module,
        stream,
        loss,
        plan.denoiser_steps,
        plan.denoiser_batch,
        learning_rate=1.2e-3,
        seed=plan.seed,
        ema=0.9995,
        memory_format=torch.contiguous_format,
    )


def min_snr_weights(schedule: DDPMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """min(SNR, gamma) / SNR over its mean in the batch: a weight for each of `timesteps`."""
    ratio = compute_snr(schedule, timesteps)
    weights = ratio.clamp(max=MIN_SNR_GAMMA) / ratio
    return weights / weights.mean()


def assemble_pipeline(
    denoiser: TextToNoise, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The parts as an ordinary pipeline with Stable Diffusion's DDIM settings."""
    scheduler = DDIMScheduler(
        **SCHEDULE,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_half(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save as a diffusers folder in fp16 safetensors; in float32 it loads as the same numbers."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        torch.nn.Module.to(part, dtype=torch.float16)
    # Or the folder it was built in would be published.
    pipeline.vae.register_to_config(_name_or_path="")
    pipeline.save_pretrained(folder, safe_serialization=True)


def clean_captions(seed: int, count: int, stream: str = "train") -> list[str]:
    return [clean_scene(seed, index, stream).caption for index in range(count)]
