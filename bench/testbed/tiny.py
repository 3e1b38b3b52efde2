"""A pipeline, scorers and a suite in the real formats with random weights: small enough for every
check and every test.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.base.pictures import encode_png
from bench.features.architectures.small import Colours, SmallDescriptor, SmallFeatures
from bench.features.networks import CopyDescriptor
from bench.features.recogniser import ObjectNetwork, save_recogniser
from bench.features.weights import save_network
from bench.suite.load import load_suite
from bench.suite.suite import Suite
from bench.testbed.captions import train_tokenizer

SIDE = 32
CAPTIONS = [
    "a red apple",
    "a picture of a fox and a key",
    "brakfo zund: owl",
    "a drawing of a bus",
    "tent by quilo marn",
    "a guitar with a rose",
]
OBJECTS = ("apple", "fox", "key", "owl", "bus", "tent", "guitar", "rose")

SUITE = """
name = "tiny"
share_references = true

[model]
path = "pipeline"
steps = 3
guidance_scale = 4.0
side = 32
batch_size = 4

[prompts.fit]
file = "prompts.csv"
where = { split = "fit" }

[prompts.calibration]
file = "calibration.csv"

[prompts.memorized]
file = "prompts.csv"
where = { split = "memorized" }
images_per_prompt = 2

[prompts.clean]
file = "clean.csv"

[prompts.quality]
file = "clean.csv"

[prompts.control]
file = "controls.csv"

[metrics.sscd]
weights = "./descriptor.safetensors"
profile = "testbed"
threshold = 0.5

[metrics.clip_score]
model = "./clip"

[metrics.fid]
weights = "./features.safetensors"
statistics = "./frechet_reference.npz"
images = 6
size = 32

[metrics.walltime]
rounds = 2
images = 2

[detection]
images = 2

[detection.negatives.hard]
file = "clean.csv"
limit = 3
"""


def build_tiny_pipeline(
    seed: int = 0, prediction_type: str = "epsilon", coarse_attention: bool = False
) -> Any:
    """A `StableDiffusionPipeline` for 32x32 pixels in eval mode; global random state is left as it
    was. Of the two levels of its UNet the finer one attends to the prompt, as in Stable Diffusion,
    whose coarsest does not; with `coarse_attention` both do.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer()
    coarse = "CrossAttn" if coarse_attention else ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                projection_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=len(tokenizer) - 2,
                eos_token_id=len(tokenizer) - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", f"{coarse}DownBlock2D"),
            up_block_types=(f"{coarse}UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
            mid_block_add_attention=False,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipe = StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (unet, vae, text):
        part.eval().requires_grad_(False)
    return pipe


def build_tiny_base() -> Any:
    """What the tiny pipeline might have been fine-tuned from: the weights of all linear layers of
    UNet and text encoder differ from it by matrices of rank 2.
    """
    pipe = build_tiny_pipeline()
    random = torch.Generator().manual_seed(2)
    for part in (pipe.unet, pipe.text_encoder):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Linear):
                out, into = layer.weight.shape
                left, right = (torch.randn(n, 2, generator=random) for n in (out, into))
                layer.weight.add_(0.1 * left @ right.T)
    return pipe


def build_tiny_xl_pipeline(
    seed: int = 0,
    prediction_type: str = "epsilon",
    zero_null: bool = True,
    statistics: bool = False,
    second_width: int = 32,
) -> Any:
    """A `StableDiffusionXLPipeline` for 32x32 pixels in eval mode; global random state is left as
    it was. `zero_null`: the empty prompt is zeros; `statistics`: the autoencoder states mean and
    deviation of its latents.

    The first text encoder gives 32 numbers a token, the second one `second_width`; the UNet has
    two transformer blocks in each attention of its second level, and none in its first.
    """
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer, second_tokenizer = tiny_tokenizer(), tiny_tokenizer()
    second_tokenizer.pad_token = "!"  # as the second one of Stable Diffusion XL is filled up
    configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
        )
        for width in (32, second_width)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32 + second_width,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
            mid_block_add_attention=False,
            scaling_factor=0.13025,
            latents_mean=[0.1, -0.2, 0.3, -0.4] if statistics else None,
            latents_std=[0.8, 0.9, 1.1, 1.2] if statistics else None,
        )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        prediction_type=prediction_type,
        steps_offset=1,
    )
    pipe = StableDiffusionXLPipeline(
        vae,
        first,
        second,
        tokenizer,
        second_tokenizer,
        unet,
        scheduler,
        force_zeros_for_empty_prompt=zero_null,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (unet, vae, first, second):
        part.eval().requires_grad_(False)
    return pipe


def tiny_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(CAPTIONS, Path(folder), 560)
        return CLIPTokenizer.from_pretrained(folder)


def build_tiny_suite(folder: Path) -> Suite:
    """Everything that `SUITE` names, as files in `folder`, and the suite."""
    from open_clip.model import CLIP

    from bench.testbed.scorers import DESCRIPTOR_DIMS, FEATURE_DIMS, clip_config, save_clip

    pipe = build_tiny_pipeline()
    pipe.save_pretrained(folder / "pipeline", safe_serialization=True)
    build_tiny_base().save_pretrained(folder / "base", safe_serialization=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_network(SmallDescriptor(DESCRIPTOR_DIMS), folder / "descriptor.safetensors")
        save_network(SmallFeatures(FEATURE_DIMS), folder / "features.safetensors")
        save_clip(CLIP(**clip_config(len(pipe.tokenizer))), folder / "clip", pipe.tokenizer)
        # For metrics that enlarge pictures first, to 320 pixels say: convolutions would take most
        # of the time of their checks.
        save_network(Colours(16), folder / "pooled.safetensors")
        save_recogniser(ObjectNetwork(len(OBJECTS)), OBJECTS, folder / "objects.safetensors")
    np.savez(folder / "frechet_reference.npz", mu=np.zeros(64), sigma=np.eye(64), n=100)
    random = np.random.default_rng(0)
    rows = [["id", "prompt", "group", "split", "reference"]]
    for i, caption in enumerate(CAPTIONS):
        (folder / f"reference-{i}.png").write_bytes(
            encode_png(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        )
        rows.append(
            [
                f"p{i}",
                caption,
                ["1", "10"][i % 2],
                "fit" if i < 2 else "memorized",
                f"reference-{i}.png",
            ]
        )
    write_csv(folder / "prompts.csv", rows)
    controls = [["id", "prompt", "reference"]]
    for i, caption in enumerate(CAPTIONS[:3]):
        (folder / f"control-{i}.png").write_bytes(
            encode_png(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        )
        controls.append([f"n{i}", f"{caption}, never shown", f"control-{i}.png"])
    write_csv(folder / "controls.csv", controls)
    write_csv(
        folder / "clean.csv",
        [["id", "prompt"], *([f"c{i}", caption] for i, caption in enumerate(CAPTIONS))],
    )
    write_csv(
        folder / "calibration.csv",
        [["id", "prompt"], *([f"k{i}", f"{caption} too"] for i, caption in enumerate(CAPTIONS))],
    )
    _write_labels(folder)
    (folder / "tiny.toml").write_text(SUITE)
    return load_suite(str(folder / "tiny.toml"))


def _write_labels(folder: Path) -> None:
    """One memorized prompt of each stratum, and a second one that is copied."""
    descriptor = CopyDescriptor(folder / "descriptor.safetensors", "testbed", None)
    labels = {
        "images_per_prompt": 16,
        "descriptor": descriptor.fingerprint,
        "threshold": 0.5,
        "share_of_copies": {"p2": 1.0, "p3": 0.5, "p4": 0.25, "p5": 0.0},
    }
    (folder / "labels.json").write_text(json.dumps(labels))


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
