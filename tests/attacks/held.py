"""Attacks on known pictures without a run: a model in closed form in the attacker's hands, and
pictures for it to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from analytic import CHANNELS, SIDE, Field, analytic
from torch import Tensor

from bench.base.pictures import encode_png
from bench.contracts.held import Held, Holding, Known, Stage
from bench.contracts.metric import OfTables
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.request import classifier_free_guidance
from bench.suite.prompts import Prompt

SPREAD = 3.0  # latents at which a pixel is black or white


class _Autoencoder:
    """Latents `[B, 2, 4, 4]` as the red and green of pictures, to the nearest byte."""

    dtype = torch.float32
    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: Tensor, **_: object) -> tuple[Tensor]:
        return (torch.cat([latents, torch.zeros_like(latents[:, :1])], 1) / SPREAD,)

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        latents = pixels[:, :CHANNELS] * SPREAD
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def parameters(self) -> list[Tensor]:
        return []


def a_model(field: Field, steps: int = 10, guidance: float = 3.0) -> Denoiser:
    """A denoiser in closed form that has pictures too."""
    denoiser = analytic(field, steps, guidance)
    denoiser.pipe.vae = _Autoencoder()
    return denoiser


def alone(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of one generation, those that follow from tables as numbers."""
    return {
        name: score.alone() if isinstance(score, OfTables) else score
        for name, score in scores.items()
    }


def holding(denoiser: Denoiser, what: Holding = "edited", side: int = SIDE) -> Held:
    """The model in an attacker's hands, without the doors of any method."""

    def plain(request, guide, start):
        with torch.no_grad():
            return trajectory(denoiser, request, guide or classifier_free_guidance, start=start)

    return Held(what, denoiser, side, plain)


def known_pictures(folder: Path, count: int = 2, images: int = 2, side: int = SIDE) -> list[Known]:
    """Pictures of noise, with the captions 1, 2, ...: the second half are controls."""
    random = np.random.default_rng(0)
    found = []
    for row in range(count):
        file = folder / f"known-{row}.png"
        file.write_bytes(encode_png(random.integers(0, 256, (side, side, 3), dtype=np.uint8)))
        seeds = tuple(100 * row + image for image in range(images))
        prompt = Prompt(f"p{row}", str(row + 1), "", (file,))
        found.append(Known(prompt, file, row < count / 2, seeds, 0))
    return found


def made(stages: list[Stage], helds: list[Held], targets: list[Known]) -> list[dict]:
    """What the last of these stages gives of each picture, all pictures at once."""
    before: list = [{} for _ in targets]
    for stage, held in zip(stages, helds, strict=True):
        before = stage.work(held, targets, before)
    return before


def one_by_one(stages: list[Stage], helds: list[Held], targets: list[Known]) -> list[dict]:
    """The same with a picture at a time, in batches of one."""
    alone = [_of_one(held) for held in helds]
    return [made(stages, alone, [known])[0] for known in targets]


def _of_one(held: Held) -> Held:
    denoiser = Denoiser.__new__(Denoiser)
    denoiser.__dict__ = {**held.denoiser.__dict__, "batch_size": 1}
    again = holding(denoiser, held.holding, held.side)
    return replace(held, denoiser=denoiser, sample_=again.sample_)


def untouched(denoiser: Denoiser) -> Callable[[], bool]:
    """Asks later whether the weights are what they are now, and have no gradients."""
    before = [value.detach().clone() for value in denoiser.pipe.unet.parameters()]

    def same() -> bool:
        return all(
            torch.equal(old, new) and new.grad is None
            for old, new in zip(before, denoiser.pipe.unet.parameters(), strict=True)
        )

    return same
