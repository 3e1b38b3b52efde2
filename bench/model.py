"""Loading the pipeline that a suite pins, and saying clearly when its files are missing or damaged."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bench.errors import UserError, one_line
from bench.sampler import Denoiser
from bench.suite import Suite

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str | None) -> torch.device:
    """The named device, or the GPU where there is one. Raises `UserError` for a device this machine has not."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used here: {one_line(error).partition('.')[0]}") from error
    return device


def quiet_libraries() -> None:
    """No progress bars and no warnings of diffusers and transformers: one for every batch with a long prompt tells nobody anything."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def load_pipeline(suite: Suite, device: torch.device) -> Any:
    """The suite's `StableDiffusionPipeline` on a device, in eval mode, parameters without gradients, its scheduler the suite's."""
    import diffusers

    settings = suite.settings.model
    folder = suite.path(settings.path)
    quiet_libraries()
    try:
        with warnings.catch_warnings():
            # The keyword's newer name is unknown to older releases of diffusers.
            warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(
                folder, torch_dtype=DTYPES[settings.dtype], local_files_only=True, use_safetensors=True, safety_checker=None, requires_safety_checker=False
            )
    except Exception as error:  # diffusers, transformers and safetensors each raise their own
        raise UserError(f"the model in {folder} cannot be loaded ({one_line(error)[:160]}); a file is missing or damaged, fetch or build it again") from error
    scheduler = getattr(diffusers, settings.scheduler, None)
    if scheduler is None:
        raise UserError(f"suite {suite.name}: diffusers has no scheduler '{settings.scheduler}'")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    size = pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    if size != settings.side:
        raise UserError(f"suite {suite.name} says {settings.side} pixels and its model gives {size}")
    return pipe


def load_denoiser(suite: Suite, device: torch.device) -> Denoiser:
    settings = suite.settings.model
    return Denoiser(load_pipeline(suite, device), settings.steps, settings.guidance_scale, settings.batch_size)
