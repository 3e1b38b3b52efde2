"""Predictions that a method asks for itself: their norms, and those of other texts in the middle of
sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from bench import Added, Denoiser, Request, Step


@dataclass(frozen=True, kw_only=True)
class Evaluating(Request):
    """A request that knows the model it is for: a step does not, and a method keeps nothing from
    one batch to the next.
    """

    denoiser: Denoiser


Kind = TypeVar("Kind", bound=Evaluating)


def carrying(kind: type[Kind], request: Request, **more: object) -> Kind:
    """A request with the same content and more: `kind` is a dataclass derived from `Evaluating`."""
    parts = {part.name: getattr(request, part.name) for part in fields(Request)}
    return kind(**(parts | more))


def predicted(
    step: Step, rows: list[int], embeddings: Tensor, added: Added | None = None
) -> Tensor:
    """The model's prediction for some images of a step, epsilon `[len(rows), C, h, w]`, with
    embeddings `[len(rows), T, D]`, and what a UNet of Stable Diffusion XL reads beside them, in
    place of the request's. One row evaluation an image.
    """
    request = step.request
    assert isinstance(request, Evaluating)
    scheduler = request.denoiser.new_scheduler()
    timestep = scheduler.timesteps[step.index]
    scaled = scheduler.scale_model_input(step.latents, timestep)
    mask = None if request.attention_mask is None else request.attention_mask[rows]
    return request.denoiser.epsilon(scaled[rows], timestep, embeddings, mask, step.index, added)


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: the sum of squares of a picture is beyond half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def norms(images: Tensor) -> Tensor:
    """The norm of each image of `[B, C, h, w]`, float32 at least, `[B]`."""
    return wide(images).flatten(1).norm(dim=1)
