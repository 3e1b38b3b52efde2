"""The batched denoising loop, with the four doors of a method, and the counter of what it cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.method import Method, State


@dataclass(frozen=True)
class Request:
    """One batch of B images to sample.

    `latents` `[B, C, h, w]`: unit-variance initial noise; `embeddings` and `null_embeddings` `[B, T, D]`: of the prompts
    and of the empty prompt; `seeds`: of each image's own generator.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    embeddings: Tensor
    null_embeddings: Tensor
    guidance_scale: float

    def replace(self, **changes: Any) -> Request:
        return replace(self, **changes)


@dataclass(frozen=True)
class Step:
    """One step of sampling as `Method.guide` sees it. Predictions are epsilon, `[B, C, h, w]`, whatever the model predicts."""

    index: int
    count: int
    timestep: int
    latents: Tensor
    unconditional: Tensor
    conditional: Tensor
    guidance_scale: float
    request: Request


class Denoiser:
    """A diffusers text-to-image pipeline as a function of (latents, timestep, embeddings), with every evaluation counted.

    `rows` counts single-row UNet evaluations from a hook on the UNet itself, so a method that calls the UNet directly is
    counted too.
    """

    def __init__(self, pipe: Any, steps: int, guidance_scale: float, batch_size: int = 8) -> None:
        self.pipe = pipe
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.batch_size = batch_size
        self.rows = 0
        self._hook = pipe.unet.register_forward_pre_hook(self._count, with_kwargs=True)
        predicts = pipe.scheduler.config.prediction_type
        if predicts not in ("epsilon", "v_prediction"):
            raise UserError(f"the model predicts '{predicts}'; epsilon and v_prediction are supported")
        self._predicts_v = predicts == "v_prediction"
        self._alphas = pipe.scheduler.alphas_cumprod.to(self.device)

    def close(self) -> None:
        """Take the counting hook off the UNet again."""
        self._hook.remove()

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.rows += int(sample.shape[0])

    @property
    def device(self) -> torch.device:
        return next(self.pipe.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.pipe.unet.parameters()).dtype

    def new_scheduler(self) -> Any:
        """A fresh scheduler with its timesteps set, expecting epsilon. Schedulers of the multistep kind carry state, so none is shared."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.register_to_config(prediction_type="epsilon")
        scheduler.set_timesteps(self.steps, device=self.device)
        return scheduler

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, T, D]`, each different prompt encoded once."""
        unique = list(dict.fromkeys(prompts))
        with torch.no_grad():
            embeddings, _ = self.pipe.encode_prompt(unique, self.device, 1, False)
        return embeddings[[unique.index(prompt) for prompt in prompts]]

    def null_embeddings(self, count: int) -> Tensor:
        """The empty prompt's embedding, `[count, T, D]`. Not kept: a method may have edited the text encoder meanwhile."""
        return self.encode([""]).expand(count, -1, -1)

    def initial_latents(self, seeds: Sequence[int]) -> Tensor:
        """Noise `[B, C, h, w]`, each row from its own CPU generator in fp32, so a row does not depend on its batch or device."""
        unet = self.pipe.unet.config
        size = unet.sample_size if isinstance(unet.sample_size, (list, tuple)) else (unet.sample_size, unet.sample_size)
        rows = [torch.randn((unet.in_channels, *size), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device, self.dtype)

    def request(self, prompts: Sequence[str], seeds: Sequence[int]) -> Request:
        """A batch as the protocol asks for it, before any method touches it."""
        if len(prompts) != len(seeds) or not prompts:
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: one seed for each of at least one prompt")
        null = self.null_embeddings(len(prompts))
        return Request(tuple(prompts), tuple(seeds), self.initial_latents(seeds), self.encode(prompts), null, self.guidance_scale)

    def epsilon(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """Predicted noise `[B, C, h, w]` for scaled latents; v-predictions are converted (epsilon = sqrt(a) v + sqrt(1-a) x)."""
        predicted = self.pipe.unet(latents, timestep, encoder_hidden_states=embeddings, return_dict=False)[0]
        if self._predicts_v:
            alpha = self._alphas[int(timestep)]
            predicted = alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents
        return predicted

    def decode(self, latents: Tensor) -> np.ndarray:
        """Final latents to pictures, uint8 `[B, H, W, 3]`, rounded as diffusers rounds."""
        with torch.no_grad():
            pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        if not bool(torch.isfinite(pixels).all()):
            raise UserError("decoding gave NaN or infinity for an image; an autoencoder in float16 may overflow, try dtype float32")
        unit = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (unit * 255).round().astype(np.uint8)


def sample(denoiser: Denoiser, request: Request, method: Method, state: State) -> Tensor:
    """Draw one batch with a method that is attached already: final latents `[B, C, h, w]`.

    Raises `UserError` when a door returns something of the wrong shape or dtype, or a latent that is not finite.
    """
    adjusted = method.adjust(denoiser, request, state)
    _check_request(method, request, adjusted)
    if adjusted.prompts != request.prompts and adjusted.embeddings is request.embeddings:
        adjusted = adjusted.replace(embeddings=denoiser.encode(adjusted.prompts))
    with torch.no_grad():
        latents = trajectory(denoiser, adjusted, lambda step: _guided(method, step, state))
    bad = (~torch.isfinite(latents)).flatten(1).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise UserError(f"method {_name(method)}: the image of prompt '{adjusted.prompts[row]}' (seed {adjusted.seeds[row]}) holds NaN or infinity")
    return latents


def trajectory(denoiser: Denoiser, request: Request, guide: Callable[[Step], Tensor], calls: int | None = None) -> Tensor:
    """The denoising loop over the first `calls` timesteps (all by default), as `StableDiffusionPipeline` runs it."""
    scheduler = denoiser.new_scheduler()
    latents = request.latents * scheduler.init_noise_sigma
    embeddings = torch.cat([request.null_embeddings, request.embeddings])
    timesteps = scheduler.timesteps[:calls]
    for index, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        unconditional, conditional = denoiser.epsilon(scaled, timestep, embeddings).chunk(2)
        step = Step(index, len(timesteps), int(timestep), latents, unconditional, conditional, request.guidance_scale, request)
        latents = scheduler.step(guide(step), timestep, latents, return_dict=False)[0]
    return latents


def classifier_free_guidance(step: Step) -> Tensor:
    """`e_u + g (e_c - e_u)` (Ho and Salimans 2022), what a step does when no method says otherwise."""
    return step.unconditional + step.guidance_scale * (step.conditional - step.unconditional)


def _name(method: Method) -> str:
    return type(method).__module__.rpartition(".")[2]


def _guided(method: Method, step: Step, state: State) -> Tensor:
    guided = method.guide(step, state)
    if not isinstance(guided, Tensor) or guided.shape != step.latents.shape or guided.dtype != step.latents.dtype:
        raise UserError(f"method {_name(method)}: guide must return a {_shape(step.latents)}, not {_shape(guided)}")
    return guided


def _check_request(method: Method, asked: Request, given: Any) -> None:
    if not isinstance(given, Request):
        raise UserError(f"method {_name(method)}: adjust must return a Request, not {type(given).__name__}")
    for part in ("latents", "embeddings", "null_embeddings"):
        before, after = getattr(asked, part), getattr(given, part)
        if not isinstance(after, Tensor) or after.shape[0] != before.shape[0] or after.shape[2:] != before.shape[2:] or after.dtype != before.dtype:
            raise UserError(f"method {_name(method)}: adjust changed {part} from {_shape(before)} to {_shape(after)}")


def _shape(value: Any) -> str:
    return f"{value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
