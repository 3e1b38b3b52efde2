"""A pipeline as a function that counts its evaluations, and the denoising loop over it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.diffusion.families import family_of_pipeline
from bench.diffusion.request import Added, HandedIn, Request, Step
from bench.diffusion.text import encoded, most_tokens

# Below this share of signal a picture cannot be told from noise in float32.
SMALLEST_SIGNAL = 1e-8


def autoencoder_factor(pipe: Any) -> int:
    """Pixels a side for each latent."""
    return int(2 ** (len(pipe.vae.config.block_out_channels) - 1))


def check_size(pipe: Any, size: tuple[int, int]) -> None:
    """Raises `UserError` for a height and a width in pixels that a pipeline cannot make."""
    factor = autoencoder_factor(pipe)
    if any(side % factor for side in size):
        raise UserError(
            f"pictures of {size[0]} x {size[1]} pixels (height x width) cannot be made: both must"
            f" be multiples of {factor}, by which the model's autoencoder enlarges"
        )


class Denoiser:
    """A diffusers text-to-image pipeline as a function of latents, timestep and embeddings.

    Every evaluation is counted: `rows` counts rows that went through the UNet, `backward_rows` rows
    that a gradient went back through, twice where it went to weights too (which costs a product
    of matrices more in every layer). Hooks on the UNet itself count, so that a method which calls
    the UNet directly is counted too. Pictures have the `size` (height, width) in pixels, by default
    the model's own; both are multiples of the autoencoder's factor. A model of Stable Diffusion XL
    is told the sizes of the picture, `time_ids`, six numbers as `Added` has them; by default a
    whole picture of the size that is made. Raises `UserError` for a model that predicts neither
    epsilon nor v, and for a size that is no multiple of the factor.
    """

    def __init__(
        self,
        pipe: Any,
        steps: int,
        guidance_scale: float,
        batch_size: int = 8,
        time_ids: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.pipe = pipe
        if size:
            check_size(pipe, size)
        self._size = size
        self.family = family_of_pipeline(pipe)
        self._time_ids = time_ids
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
            raise UserError(
                f"the model predicts '{predicts}'; epsilon and v_prediction are supported"
            )
        self._predicts_v = predicts == "v_prediction"
        self.timesteps, self.alphas = self._levels()

    def _levels(self) -> tuple[Tensor, Tensor]:
        """The timestep of each step, and how much of its input is signal, `[steps]` in [0, 1]: the
        scheduler's own, by which it turns v into a picture.

        Schedulers with noise levels (sigmas) have them between whole timesteps too.
        """
        scheduler = self.new_scheduler()
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is None:
            places = scheduler.timesteps.long().cpu()
            alphas = scheduler.alphas_cumprod.cpu()[places]
        else:
            alphas = 1 / (1 + sigmas[: len(scheduler.timesteps)].cpu().double().square())
        if float(alphas.min()) < SMALLEST_SIGNAL:
            raise UserError(
                "the model's noise schedule ends in pure noise (rescale_betas_zero_snr) and"
                f" timestep_spacing '{scheduler.config.get('timestep_spacing')}' begins there,"
                " where noise says nothing of the picture; use the spacing 'leading'"
            )
        return scheduler.timesteps, alphas.to(self.device)

    def close(self) -> None:
        """Take the counting hooks off the UNet again."""
        for hook in self._hooks:
            hook.remove()

    def _count(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.rows += int(sample.shape[0])

    def _count_backward(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        predicted = output[0]
        if predicted.requires_grad:
            to_weights = any(value.requires_grad for value in module.parameters())

            def passed(gradient: Tensor) -> None:
                self.backward_rows += int(gradient.shape[0]) * (2 if to_weights else 1)

            predicted.register_hook(passed)

    @property
    def evaluations(self) -> int:
        """Cost so far in row evaluations; a backward pass through a row counts as one more, or as
        two more where weights get gradients.
        """
        return self.rows + self.backward_rows

    @property
    def device(self) -> torch.device:
        """Where the UNet's weights lie."""
        return next(self.pipe.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the UNet's weights."""
        return next(self.pipe.unet.parameters()).dtype

    def new_scheduler(self) -> Any:
        """A fresh scheduler with its timesteps set. It expects what the model predicts
        (`as_predicted`).

        Schedulers of the multistep kind carry state, so none is shared.
        """
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(self.steps, device=self.device)
        return scheduler

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, T, D]`, each different prompt encoded once; of one that is handed
        in, the embedding that it came with.
        """
        return self.texts(prompts)[0]

    def added(self, prompts: Sequence[str]) -> Added | None:
        """What a UNet of Stable Diffusion XL reads beside the tokens of prompts; None for Stable
        Diffusion 1 and 2. A prompt that is handed in has that of its caption.
        """
        return None if self.family == "sd" else self.texts(prompts)[1]

    def texts(self, prompts: Sequence[str]) -> tuple[Tensor, Added | None]:
        """What `encode` and `added` give, each different prompt encoded once for both."""
        xl = self.family == "sdxl"
        unique = [
            text
            for text in dict.fromkeys(str(p) if xl else p for p in prompts)
            if not isinstance(text, HandedIn)
        ]
        rows: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        if unique:
            embeddings, whole = encoded(self.pipe, unique, self.device)
            rows = dict(zip(unique, embeddings, strict=True))
            pooled = {} if whole is None else dict(zip(unique, whole, strict=True))
        given = [p.embedding if isinstance(p, HandedIn) else rows[p] for p in prompts]
        added = (
            Added(torch.stack([pooled[str(p)] for p in prompts]), self.time_ids(len(prompts)))
            if xl
            else None
        )
        return torch.stack(given), added

    def time_ids(self, count: int) -> Tensor:
        """The sizes that a UNet of Stable Diffusion XL is told, `[count, 6]`, the same for every
        image.
        """
        sizes = self._time_ids
        if sizes is None:
            height, width = (side * autoencoder_factor(self.pipe) for side in self._latent_sides())
            sizes = (height, width, 0, 0, height, width)
        return torch.tensor([sizes] * count, device=self.device, dtype=self.dtype)

    @property
    def most_tokens(self) -> int:
        """How many tokens of a prompt are read at most, with those of its beginning and end."""
        return most_tokens(self.pipe.tokenizer)

    def lengths(self, prompts: Sequence[str]) -> Tensor:
        """Tokens of each prompt, int64 `[B]` on the CPU: with those of its beginning and end, and
        without padding; cut to what is read. Where that is one chunk, the end is at `length - 1`.
        """
        tokenizer = self.pipe.tokenizer
        found = tokenizer(list(prompts), truncation=True, max_length=self.most_tokens).input_ids
        return torch.tensor([len(ids) for ids in found])

    def null_embeddings(self, count: int) -> Tensor:
        """The empty prompt's embedding, `[count, T, D]`.

        Not kept: a method may have edited the text encoder meanwhile.
        """
        return self.null_texts(count)[0]

    def null_texts(self, count: int) -> tuple[Tensor, Added | None]:
        """The empty prompt as sampling guides away from it, as `texts` gives it of a prompt.

        Zeros for models of Stable Diffusion XL that were trained so
        (`force_zeros_for_empty_prompt`), which is not what their text encoders make of "".
        """
        embeddings, added = self.texts([""])
        if added is not None and self.pipe.config.get("force_zeros_for_empty_prompt", True):
            embeddings = torch.zeros_like(embeddings)
            added = Added(torch.zeros_like(added.pooled), added.time_ids)
        return embeddings.expand(count, -1, -1), added and added.expand(count)

    def initial_latents(self, seeds: Sequence[int]) -> Tensor:
        """Noise `[B, C, h, w]`, each row from its own CPU generator in fp32, so a row does not
        depend on its batch or device.
        """
        shape = (self.pipe.unet.config.in_channels, *self._latent_sides())
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device, self.dtype)

    def _latent_sides(self) -> tuple[int, int]:
        """Height and width of latents."""
        if self._size:
            factor = autoencoder_factor(self.pipe)
            return self._size[0] // factor, self._size[1] // factor
        size = self.pipe.unet.config.sample_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return height, width

    def request(self, prompts: Sequence[str], seeds: Sequence[int]) -> Request:
        """A batch as the protocol asks for it, before any method touches it."""
        if len(prompts) != len(seeds) or not prompts:
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds: one seed for each of at least one"
                " prompt"
            )
        null, null_added = self.null_texts(len(prompts))
        embeddings, added = self.texts(prompts)
        return Request(
            tuple(prompts),
            tuple(seeds),
            self.initial_latents(seeds),
            embeddings,
            null,
            self.guidance_scale,
            pooled=added.pooled if added else None,
            null_pooled=null_added.pooled if null_added else None,
            time_ids=added.time_ids if added else None,
        )

    def epsilon(
        self,
        latents: Tensor,
        timestep: Tensor | int,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        index: int | None = None,
        added: Added | None = None,
    ) -> Tensor:
        """Predicted noise `[B, C, h, w]` for scaled latents; v-predictions are converted (epsilon =
        sqrt(a) v + sqrt(1-a) x) in float32 at least, and stay so: half precision would lose up to
        a fifth of the small differences between them that methods go by.

        a is that of step `index`; without it, that of the first step with this timestep, or of the
        training's noise schedule where no step has it. `added` is what a UNet of Stable Diffusion
        XL reads beside the tokens, and must be given there.
        """
        more: dict[str, Any] = {}
        if self.family == "sdxl":
            if added is None:
                raise UserError(
                    "a model of Stable Diffusion XL reads a pooled text beside the tokens, and"
                    " whoever asked it gave none (`added`)"
                )
            more = {"added_cond_kwargs": {"text_embeds": added.pooled, "time_ids": added.time_ids}}
        predicted = self.pipe.unet(
            latents,
            timestep,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=attention_mask,
            return_dict=False,
            **more,
        )[0]
        if self._predicts_v:
            alpha = self._alpha(timestep) if index is None else self.alphas[index]
            wide = torch.promote_types(predicted.dtype, torch.float32)
            return alpha.sqrt() * predicted.to(wide) + (1 - alpha).sqrt() * latents.to(wide)
        return predicted

    def as_predicted(self, epsilon: Tensor, scaled: Tensor, index: int) -> Tensor:
        """Noise at step `index` as what the model predicts and its scheduler expects, for the
        scaled latents it belongs to, `[B, C, h, w]` both; of these latents' type.
        """
        if not self._predicts_v:
            return epsilon
        alpha, wide = self.alphas[index], torch.promote_types(epsilon.dtype, torch.float32)
        velocity = (epsilon.to(wide) - (1 - alpha).sqrt() * scaled.to(wide)) / alpha.sqrt()
        return velocity.to(scaled.dtype)

    def _alpha(self, timestep: Tensor | int) -> Tensor:
        same = (self.timesteps == timestep).nonzero()
        if len(same):
            return self.alphas[int(same[0])]
        return self.pipe.scheduler.alphas_cumprod[round(float(timestep))].to(self.device)

    def branches(
        self, scaled: Tensor, timestep: Tensor | int, request: Request, index: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional prediction at scaled latents `[B, C, h, w]`, from
        one batch of 2B rows in this order; `index` as for `epsilon`.
        """
        embeddings = torch.cat([request.null_embeddings, request.embeddings])
        mask = None if request.attention_mask is None else torch.cat([request.attention_mask] * 2)
        unconditional, conditional = self.epsilon(
            torch.cat([scaled, scaled]), timestep, embeddings, mask, index, request.both_added
        ).chunk(2)
        return unconditional, conditional

    def start(self, latents: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
        """Initial noise `[B, C, h, w]` as the model wants it at the first step (or at step `index`,
        undenoised), and that timestep.
        """
        scheduler = self.new_scheduler()
        timestep = scheduler.timesteps[index]
        if index:
            # Pure noise of a later level, scaled as the model's input there: of unit variance.
            return latents.clone(), timestep
        return scheduler.scale_model_input(latents * scheduler.init_noise_sigma, timestep), timestep

    def encoded(self, pictures: np.ndarray) -> Tensor:
        """Pictures, uint8 `[B, H, W, 3]` of the model's size, as clean latents `[B, C, h, w]`: the
        mode of what the autoencoder gives, scaled as the UNet sees it.
        """
        vae = self.pipe.vae
        pixels = torch.tensor(pictures, dtype=torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            coded = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        if self.family == "sd":
            return coded * vae.config.scaling_factor
        mean, deviation = self._latent_statistics(coded)
        scaled: Tensor = (coded - mean) / deviation * vae.config.scaling_factor
        return scaled.to(self.dtype)

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and deviation of each channel of the autoencoder's latents, `[1, C, 1, 1]`, which
        some models of Stable Diffusion XL state; 0 and 1 for the others.
        """
        config = self.pipe.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return 0.0, 1.0
        shape = (1, -1, 1, 1)
        return like.new_tensor(mean).reshape(shape), like.new_tensor(deviation).reshape(shape)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Final latents to pictures, uint8 `[B, H, W, 3]`, rounded as diffusers rounds."""
        vae = self.pipe.vae
        if self.family == "sd":
            coded = latents / vae.config.scaling_factor
        else:  # whose autoencoder may be in float32 where the UNet is not
            mean, deviation = self._latent_statistics(latents.to(vae.dtype))
            coded = latents.to(vae.dtype) * deviation / vae.config.scaling_factor + mean
        with torch.no_grad():
            pixels = vae.decode(coded, return_dict=False)[0]
        if not bool(torch.isfinite(pixels).all()):
            raise UserError(
                "decoding gave NaN or infinity for an image; an autoencoder in float16 may"
                " overflow, try dtype float32"
            )
        unit = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (unit * 255).round().astype(np.uint8)


def trajectory(
    denoiser: Denoiser,
    request: Request,
    guide: Callable[[Step], Tensor],
    calls: int | None = None,
    watch: Callable[[Step, Tensor, Tensor], None] | None = None,
    start: int = 0,
) -> Tensor:
    """The denoising loop over the first `calls` timesteps (all by default), as
    `StableDiffusionPipeline` and `StableDiffusionXLPipeline` run it.

    `watch` is called after each step's guidance with the step, the model's input and the guided
    noise, `[B, C, h, w]` both. With `start`, the loop begins at that step, whose noisy latents (and
    not noise of unit variance) the request then holds.
    """
    scheduler = denoiser.new_scheduler()
    latents = request.latents if start else request.latents * scheduler.init_noise_sigma
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    timesteps, memory = scheduler.timesteps[:calls], dict[str, Any]()
    for index, timestep in list(enumerate(timesteps))[start:]:
        scaled = scheduler.scale_model_input(latents, timestep)

        def predict(
            both: bool, index: int = index, timestep: Tensor = timestep, scaled: Tensor = scaled
        ) -> tuple[Tensor, Tensor]:
            if index == 0 and request.first is not None:
                return request.first
            if both:
                return denoiser.branches(scaled, timestep, request, index)
            alone = denoiser.epsilon(
                scaled,
                timestep,
                request.null_embeddings,
                request.attention_mask,
                index,
                request.null_added,
            )
            return alone, alone

        step = Step(
            index,
            len(timesteps),
            int(timestep),
            latents,
            request.guidance_scale,
            request,
            memory,
            predict,
        )
        guided = guide(step)
        if watch:
            watch(step, scaled, guided)
        predicted = denoiser.as_predicted(guided, scaled, index)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents
