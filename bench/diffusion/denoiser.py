"""The batched denoising loop, with the four doors of a method, and the counter of what it cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.contracts.method import Method, State


@dataclass(frozen=True)
class Request:
    """One batch of B images to sample.

    `latents` `[B, C, h, w]`: unit-variance initial noise; `embeddings` and `null_embeddings` `[B, T, D]`: of the prompts
    and of the empty prompt; `seeds`: of each image's own generator; `attention_mask` `[B, T]`, bool: the tokens that
    cross-attention sees, in both branches (None: all); `first`: both predictions of the first step, epsilon
    `[B, C, h, w]`, where a method has made them already for these latents and embeddings; `facts`: a dict that a method
    may fill with lists of B numbers or truth values, which are kept beside the images.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    embeddings: Tensor
    null_embeddings: Tensor
    guidance_scale: float
    attention_mask: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    facts: dict[str, Sequence[float]] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Request:
        return replace(self, **changes)


@dataclass(frozen=True)
class Step:
    """One step of sampling as `Method.guide` sees it. Predictions are epsilon, `[B, C, h, w]`, whatever the model predicts.

    The model is evaluated when a prediction is first asked for: both branches in one batch, or with `unconditional_only`
    half of it. `memory` is a dict of this batch's own, empty at the first step and handed from step to step.
    """

    index: int
    count: int
    timestep: int
    latents: Tensor
    guidance_scale: float
    request: Request
    memory: dict[str, Any]
    predict: Callable[[bool], tuple[Tensor, Tensor]]  # whether both branches or the unconditional alone

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.predict(True)

    @property
    def unconditional(self) -> Tensor:
        return self._both[0]

    @property
    def conditional(self) -> Tensor:
        return self._both[1]

    def unconditional_only(self) -> Tensor:
        """The unconditional prediction without evaluating the conditional one, unless that is known already."""
        return self._both[0] if "_both" in vars(self) else self.predict(False)[0]

    def guided(self, scale: float | Tensor) -> Tensor:
        """`e_u + scale (e_c - e_u)`, classifier-free guidance (Ho and Salimans 2022); `scale` may be `[B, 1, 1, 1]`."""
        return self.unconditional + scale * (self.conditional - self.unconditional)


class Denoiser:
    """A diffusers text-to-image pipeline as a function of (latents, timestep, embeddings), with every evaluation counted.

    `rows` counts single-row UNet evaluations and `backward_rows` the rows that a gradient went back through, from hooks on
    the UNet itself, so a method that calls the UNet directly is counted too.
    """

    def __init__(self, pipe: Any, steps: int, guidance_scale: float, batch_size: int = 8) -> None:
        self.pipe = pipe
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.batch_size = batch_size
        self.rows = 0
        self.backward_rows = 0
        self._hooks = [
            pipe.unet.register_forward_pre_hook(self._count, with_kwargs=True),
            pipe.unet.register_forward_hook(self._count_backward),
        ]
        predicts = pipe.scheduler.config.prediction_type
        if predicts not in ("epsilon", "v_prediction"):
            raise UserError(f"the model predicts '{predicts}'; epsilon and v_prediction are supported")
        self._predicts_v = predicts == "v_prediction"
        self._alphas = pipe.scheduler.alphas_cumprod.to(self.device)

    def close(self) -> None:
        """Take the counting hooks off the UNet again."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.rows += int(sample.shape[0])

    def _count_backward(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        predicted = output[0]
        if predicted.requires_grad:

            def passed(gradient: Tensor) -> None:
                self.backward_rows += int(gradient.shape[0])

            predicted.register_hook(passed)

    @property
    def evaluations(self) -> int:
        """Cost so far in row evaluations; a backward pass through a row, without gradients of weights, counts as one more."""
        return self.rows + self.backward_rows

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

    def epsilon(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Predicted noise `[B, C, h, w]` for scaled latents; v-predictions are converted (epsilon = sqrt(a) v + sqrt(1-a) x)."""
        predicted = self.pipe.unet(latents, timestep, encoder_hidden_states=embeddings, encoder_attention_mask=attention_mask, return_dict=False)[0]
        if self._predicts_v:
            alpha = self._alphas[int(timestep)]
            predicted = alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents
        return predicted

    def branches(self, scaled: Tensor, timestep: Tensor | int, request: Request) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional prediction at scaled latents `[B, C, h, w]`, from one batch of 2B rows in this order."""
        embeddings = torch.cat([request.null_embeddings, request.embeddings])
        mask = None if request.attention_mask is None else torch.cat([request.attention_mask] * 2)
        unconditional, conditional = self.epsilon(torch.cat([scaled, scaled]), timestep, embeddings, mask).chunk(2)
        return unconditional, conditional

    def start(self, latents: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
        """Initial noise `[B, C, h, w]` as the model wants it at the first step (or at step `index`, undenoised), and that timestep."""
        scheduler = self.new_scheduler()
        timestep = scheduler.timesteps[index]
        return scheduler.scale_model_input(latents * scheduler.init_noise_sigma, timestep), timestep

    def decode(self, latents: Tensor) -> np.ndarray:
        """Final latents to pictures, uint8 `[B, H, W, 3]`, rounded as diffusers rounds."""
        with torch.no_grad():
            pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        if not bool(torch.isfinite(pixels).all()):
            raise UserError("decoding gave NaN or infinity for an image; an autoencoder in float16 may overflow, try dtype float32")
        unit = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (unit * 255).round().astype(np.uint8)


def sample(denoiser: Denoiser, request: Request, method: Method, state: State) -> Tensor:
    """Draw one batch with a method that is attached already: final latents `[B, C, h, w]`; `request.facts` holds what it reported.

    Raises `UserError` when a door returns something of the wrong shape or dtype, or a latent that is not finite.
    """
    adjusted = method.adjust(denoiser, request, state)
    _check_request(method, request, adjusted)
    if adjusted.prompts != request.prompts and adjusted.embeddings is request.embeddings:
        adjusted = adjusted.replace(embeddings=denoiser.encode(adjusted.prompts))
    with torch.no_grad():
        latents = trajectory(denoiser, adjusted, lambda step: _guided(method, step, state))
    _check_facts(method, request)
    bad = (~torch.isfinite(latents)).flatten(1).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise UserError(f"method {_name(method)}: the image of prompt '{adjusted.prompts[row]}' (seed {adjusted.seeds[row]}) holds NaN or infinity")
    return latents


def trajectory(denoiser: Denoiser, request: Request, guide: Callable[[Step], Tensor], calls: int | None = None) -> Tensor:
    """The denoising loop over the first `calls` timesteps (all by default), as `StableDiffusionPipeline` runs it."""
    scheduler = denoiser.new_scheduler()
    latents = request.latents * scheduler.init_noise_sigma
    timesteps, memory = scheduler.timesteps[:calls], dict[str, Any]()
    for index, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)

        def predict(both: bool, index: int = index, timestep: Tensor = timestep, scaled: Tensor = scaled) -> tuple[Tensor, Tensor]:
            if index == 0 and request.first is not None:
                return request.first
            if both:
                return denoiser.branches(scaled, timestep, request)
            alone = denoiser.epsilon(scaled, timestep, request.null_embeddings, request.attention_mask)
            return alone, alone

        step = Step(index, len(timesteps), int(timestep), latents, request.guidance_scale, request, memory, predict)
        latents = scheduler.step(guide(step), timestep, latents, return_dict=False)[0]
    return latents


def classifier_free_guidance(step: Step) -> Tensor:
    """What a step does when no method says otherwise."""
    return step.guided(step.guidance_scale)


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
        alike = isinstance(after, Tensor) and after.dtype == before.dtype and after.ndim == before.ndim
        free = 1 if part != "latents" else None  # the number of tokens may change, if it does so for both embeddings
        if not alike or any(after.shape[axis] != before.shape[axis] for axis in range(before.ndim) if axis != free):
            raise UserError(f"method {_name(method)}: adjust changed {part} from {_shape(before)} to {_shape(after)}")
        if not bool(torch.isfinite(after).all()):
            raise UserError(f"method {_name(method)}: adjust put NaN or infinity into {part}")
    if given.embeddings.shape != given.null_embeddings.shape:
        raise UserError(f"method {_name(method)}: embeddings are {_shape(given.embeddings)} and null_embeddings {_shape(given.null_embeddings)}")
    mask, wanted = given.attention_mask, tuple(given.embeddings.shape[:2])
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == wanted and bool(mask.any(1).all())):
        raise UserError(f"method {_name(method)}: attention_mask must be bool of shape {wanted} with a token in every row, not {_shape(mask)}")
    if given.first is not None:
        parts = given.first if isinstance(given.first, tuple) else ()
        if len(parts) != 2 or not all(_shape(part) == _shape(given.latents) and bool(torch.isfinite(part).all()) for part in parts):
            raise UserError(f"method {_name(method)}: first must be two finite predictions, each a {_shape(given.latents)}")


def _check_facts(method: Method, request: Request) -> None:
    for name, values in request.facts.items():
        sized = isinstance(values, (list, tuple)) and len(values) == len(request.prompts)
        if not sized or not all(isinstance(value, (bool, int, float)) and math.isfinite(value) for value in values):
            raise UserError(
                f"method {_name(method)}: facts['{name}'] must be a list of a finite number or truth value for each of {len(request.prompts)} images"
            )


def _shape(value: Any) -> str:
    return f"{value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
