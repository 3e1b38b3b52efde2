"""What methods that remove named pictures share: the noised latents and losses of the model, its
parameters by part, and pictures that are no copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench import (
    Denoiser,
    FitData,
    centred_square,
    classifier_free_guidance,
    read_image,
    trajectory,
)

Part = Literal["cross", "other", "strict", "all"]


def parameters_of(unet: torch.nn.Module, part: Part) -> tuple[str, ...]:
    """Names of the UNet's parameters: those of cross-attention (`cross`), of everything else
    (`other`), the weights by which cross-attention reads the prompt alone (`strict`), or all.
    """
    names = [name for name, _ in unet.named_parameters()]
    reads = (".attn2.to_k.weight", ".attn2.to_v.weight")
    return tuple(
        name
        for name in names
        if part == "all"
        or (part == "cross" and ".attn2." in name)
        or (part == "other" and ".attn2." not in name)
        or (part == "strict" and name.endswith(reads))
    )


def own_seed(*about: object) -> int:
    """A seed for pictures that a method makes for itself, 0 to 2^63 - 1, from what they are for."""
    digest = hashlib.sha256("\0".join(map(str, ("method", *about))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generated(denoiser: Denoiser, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Final latents `[n, C, h, w]` of the model as it stands, by the suite's sampler."""
    parts = []
    for first in range(0, len(captions), denoiser.batch_size):
        rows = slice(first, first + denoiser.batch_size)
        with torch.no_grad():
            request = denoiser.request(captions[rows], seeds[rows])
            parts.append(trajectory(denoiser, request, classifier_free_guidance))
    return torch.cat(parts)


def training_latents(denoiser: Denoiser, data: FitData) -> Tensor:
    """The first training picture of every fit prompt as clean latents `[P, C, h, w]`."""
    side = denoiser.decode(denoiser.initial_latents([0])).shape[1]
    pictures = [
        centred_square(read_image(data.training_images[prompt][0]), side)
        for prompt in data.fit_prompts
    ]
    return torch.cat([denoiser.encoded(picture[None]) for picture in pictures])


def pictures_apart(
    denoiser: Denoiser,
    data: FitData,
    captions: dict[str, str],
    count: int,
    most: float,
    tries: int,
    seed: int,
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Pictures that the model makes of a caption for each fit prompt, latents `[count, C, h, w]`,
    with their similarity to that prompt's training pictures `[count]`: the first ones whose
    similarity is at most `most`; where `tries` seeds do not give as many, the least alike of the
    others after them.
    """
    if data.judge is None:
        raise ValueError("the method tells copies and does not declare the need copy_judge")
    latents: dict[str, list[Tensor]] = {prompt: [] for prompt in captions}
    alike: dict[str, list[float]] = {prompt: [] for prompt in captions}
    for first in range(0, tries, count):
        lacking = [p for p in captions if sum(value <= most for value in alike[p]) < count]
        numbers = range(first, min(first + count, tries))
        asked = [(prompt, number) for prompt in lacking for number in numbers]
        if not asked:
            break
        data.report("pictures that are no copies", first, tries)
        found = generated(
            denoiser,
            [captions[prompt] for prompt, _ in asked],
            [own_seed(seed, prompt, captions[prompt], number) for prompt, number in asked],
        )
        for place, prompt in enumerate(lacking):
            rows = found[place * len(numbers) : (place + 1) * len(numbers)]
            pictures = list(denoiser.decode(rows))
            latents[prompt] += list(rows)
            alike[prompt] += data.judge.similarity(pictures, data.training_images[prompt]).tolist()
    data.report("pictures that are no copies", tries, tries)
    chosen = {}
    for prompt in captions:
        near = [max(value, most) for value in alike[prompt]]  # those apart in their own order
        order = np.argsort(near, kind="stable")[:count]
        chosen[prompt] = (
            torch.stack([latents[prompt][row] for row in order]),
            np.array([alike[prompt][row] for row in order]),
        )
    return chosen


class Noising:
    """Noised latents, and what the model predicts of them in its own target or as noise; float32
    whatever the model's number type.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        scheduler = denoiser.pipe.scheduler
        self.device = denoiser.device
        self.levels = scheduler.alphas_cumprod.to(denoiser.device, torch.float32)
        self.predicts_v = scheduler.config.prediction_type == "v_prediction"

    def level(self, times: Tensor) -> Tensor:
        """The share of signal at timesteps `[B]`, `[B, 1, 1, 1]`."""
        return self.levels[times][:, None, None, None]

    def times(self, count: int, random: torch.Generator) -> Tensor:
        """Timesteps of the training's noise schedule, int64 `[count]`."""
        return torch.randint(len(self.levels), (count,), generator=random).to(self.device)

    def noise_like(self, latents: Tensor, random: torch.Generator) -> Tensor:
        """Normal noise of the shape of the latents, drawn on the CPU."""
        return torch.randn(latents.shape, generator=random).to(self.device)

    def noised(self, latents: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """sqrt(a) x + sqrt(1 - a) e."""
        level = self.level(times)
        return level.sqrt() * latents.float() + (1 - level).sqrt() * noise

    def target(self, latents: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """What the model ought to predict."""
        if not self.predicts_v:
            return noise
        level = self.level(times)
        return level.sqrt() * noise - (1 - level).sqrt() * latents.float()

    def predicted(
        self, unet: torch.nn.Module, noised: Tensor, times: Tensor, embeddings: Tensor
    ) -> Tensor:
        """What the model predicts in its own target, `[B, C, h, w]`."""
        dtype = next(unet.parameters()).dtype
        found: Tensor = unet(
            noised.to(dtype), times, encoder_hidden_states=embeddings.to(dtype), return_dict=False
        )[0]
        return found.float()

    def as_noise(self, predicted: Tensor, noised: Tensor, times: Tensor) -> Tensor:
        """A prediction as noise."""
        if not self.predicts_v:
            return predicted
        level = self.level(times)
        return level.sqrt() * predicted + (1 - level).sqrt() * noised
