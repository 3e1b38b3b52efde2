"""The testbed's denoiser: a text encoder and a UNet in the shape of Stable Diffusion's, trained
together.

As in Stable Diffusion: epsilon prediction, the scaled-linear noise schedule, captions dropped 10 %
of the time. Unlike it, the text encoder starts from nothing and is trained along.
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
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bench.testbed.captions import MAX_TOKENS
from bench.testbed.plan import TestbedPlan
from bench.testbed.scenes import Canary, Scene, canary_scenes, clean_scene, exposure_plan, render
from bench.testbed.training import Job, to_unit

CAPTION_DROPOUT = 0.1
TEXT_WIDTH = 128
# The noise schedule of Stable Diffusion 1.x.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


class TextToNoise(torch.nn.Module):
    """Token ids and noised latents to predicted noise: the two trained parts of the pipeline as one
    module.
    """

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(
        self, noised: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        embeddings = self.text_encoder(input_ids=tokens).last_hidden_state
        return self.unet(noised, timesteps, encoder_hidden_states=embeddings).sample


class CaptionedPictures(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The training stream: position i is a canary where the exposure plan says so, else clean
    picture i; with token ids `[MAX_TOKENS]`.
    """

    def __init__(
        self,
        seed: int,
        side: int,
        tokenizer: CLIPTokenizer,
        canaries: tuple[Canary, ...],
        plan: np.ndarray,
    ) -> None:
        self.seed, self.side, self.tokenizer, self.plan = seed, side, tokenizer, plan
        self.scenes: tuple[Scene, ...] = tuple(canary.scene for canary in canaries)
        # Dropping is decided apart from the scenes, so that clean picture i stays what it is.
        self.dropped = np.random.default_rng([seed, 7919]).random(len(plan)) < CAPTION_DROPOUT
        self.pixels = [render(scene, side) for scene in self.scenes]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        canary = int(self.plan[index])
        scene = clean_scene(self.seed, index) if canary < 0 else self.scenes[canary]
        pixels = render(scene, self.side) if canary < 0 else self.pixels[canary]
        return to_unit(pixels), token_ids(
            self.tokenizer, "" if self.dropped[index] else scene.caption
        )


def token_ids(tokenizer: CLIPTokenizer, caption: str) -> torch.Tensor:
    return torch.tensor(
        tokenizer(caption, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
    )


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
        in_channels=16,
        out_channels=16,
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
    seed, batch_size = plan.seed, plan.denoiser_batch
    canaries = canary_scenes(seed, plan.levels)
    torch.manual_seed(seed)
    module = new_denoiser(len(tokenizer), plan.side)
    exposures = exposure_plan(seed, plan.denoiser_schedule * batch_size, canaries)
    schedule = DDPMScheduler(**SCHEDULE)
    scale = autoencoder.config["scaling_factor"]

    def loss(
        module: torch.nn.Module,
        batch: tuple[torch.Tensor, torch.Tensor],
        generator: torch.Generator,
    ) -> torch.Tensor:
        pixels, tokens = batch
        with torch.no_grad():
            latents = (
                autoencoder.encode(
                    pixels.contiguous(memory_format=torch.channels_last)
                ).latent_dist.mean
                * scale
            )
        noise = torch.randn(latents.shape, generator=generator, device=latents.device).contiguous(
            memory_format=torch.channels_last
        )
        timesteps = torch.randint(
            schedule.config["num_train_timesteps"],
            (len(latents),),
            generator=generator,
            device=latents.device,
        )
        predicted = module(schedule.add_noise(latents, noise, timesteps), timesteps, tokens)
        return torch.nn.functional.mse_loss(predicted, noise)

    stream = CaptionedPictures(seed, plan.side, tokenizer, canaries, exposures)
    return Job(
        "denoiser",
        module,
        stream,
        loss,
        plan.denoiser_steps,
        batch_size,
        1.2e-3,
        seed,
        schedule=plan.denoiser_schedule,
    )


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
    """Save as a diffusers folder in fp16 safetensors; diffusers widens the same numbers to float32
    when it loads them.
    """
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        torch.nn.Module.to(part, dtype=torch.float16)
    # or the folder it was built in would be published
    pipeline.vae.register_to_config(_name_or_path="")
    pipeline.save_pretrained(folder, safe_serialization=True)


def clean_captions(seed: int, count: int, stream: str = "train") -> list[str]:
    return [clean_scene(seed, index, stream).caption for index in range(count)]
