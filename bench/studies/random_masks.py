"""The control of a method that masks weights: as many masked weights in every layer, at random."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, create_model
from torch import Tensor

from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.contracts.method import FitData, Method, State
from bench.diffusion.denoiser import Denoiser

SHUFFLE = 1  # grows with every change of which weights are drawn


class RandomMasks(Method):
    """What `with_random_masks` puts before the class of a method: it fits, and then moves the
    masked weights of every layer to random places of the layer.
    """

    random_masks: int = Field(ge=0, description="seed of the random places")
    shuffle: int = SHUFFLE

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The masks of the method with their weights moved. The places follow from the seed, the
        layer and the prompts, whatever their order.

        Raises `UserError` where what the method learned holds no masks.
        """
        state = super().fit(denoiser, data)
        if not any(_is_mask(value) for value in state.values()):
            raise UserError(
                "random masks need a method that keeps its masks as tensors of truth values; leave"
                " the control out with --no-control"
            )
        prompts = sorted(data.fit_prompts)
        return {
            name: moved(value, [self.random_masks, prompts, name]) if _is_mask(value) else value
            for name, value in state.items()
        }


def with_random_masks(method: Method, seed: int) -> Method:
    """The same method with the same parameters, whose masks hold random weights."""
    own: Any = type(method)
    changed = create_model("RandomMasks", __base__=(RandomMasks, own), __module__=own.__module__)
    return changed(**method.model_dump(), random_masks=seed)


def moved(mask: Tensor, seed: Any) -> Tensor:
    """A mask of the same shape with as many weights, at places that follow from `seed` (any JSON
    value).
    """
    generator = torch.Generator().manual_seed(int(digest_of(seed)[:15], 16))
    count = int(mask.sum())
    flat = torch.zeros(mask.numel(), dtype=torch.bool)
    flat[torch.randperm(mask.numel(), generator=generator)[:count]] = True
    return flat.reshape(mask.shape).to(mask.device)


def _is_mask(value: Tensor) -> bool:
    return value.dtype == torch.bool
