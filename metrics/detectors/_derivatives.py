"""Derivatives of predictions with respect to the model's input, in float32 and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import Denoiser, Observation, Request

Places = list[tuple[int, int]]  # of images: the prompt's row and the seed's column

# Rows that a graph is kept for at once, because it takes far more memory than sampling does;
# results do not depend on it.
GRAPH_ROWS = 32


def of_every_image(
    seen: Observation, name: str, value: Callable[[Request, Places], Tensor]
) -> np.ndarray:
    """`value` of batches of images, `[B]` each, put together to float64 `[P, n]`.

    The model computes in float32 meanwhile, and so do the embeddings of the requests: in half
    precision a derivative of a difference is mostly rounding.
    """
    denoiser, values = seen.denoiser, []
    places = list(np.ndindex(*seen.seeds.shape))
    size = max(1, min(denoiser.batch_size, GRAPH_ROWS // 2))  # both branches have a row
    with _in_float32(denoiser):
        for start in range(0, len(places), size):
            part = places[start : start + size]
            request = denoiser.request(
                [seen.prompts[row].text for row, _ in part],
                [int(seen.seeds[place]) for place in part],
            )
            values.append(value(request.in_float32(), part).detach().double().cpu())
            seen.report(name, start + len(part), len(places))
    return torch.cat(values).reshape(seen.seeds.shape).numpy()


def along(function: Callable[[Tensor], Tensor], place: Tensor, direction: Tensor) -> Tensor:
    """The derivative of a function at a place along a direction, J v, of the function's shape.

    By forward differentiation, which costs about one evaluation more and keeps no graph; by
    differentiating a gradient where an operation of the model has no forward derivative.
    """
    # The fused kernels of attention have no forward derivative.
    with sdpa_kernel(SDPBackend.MATH):
        try:
            return torch.func.jvp(function, (place,), (direction,))[1]
        except NotImplementedError:
            with torch.enable_grad():
                return torch.autograd.functional.jvp(function, place, direction)[1]


@contextmanager
def _in_float32(denoiser: Denoiser) -> Iterator[None]:
    """The UNet's weights in float32; the very same numbers as before are there afterwards."""
    unet = denoiser.pipe.unet
    narrow = [
        (tensor, tensor.data)
        for tensor in chain(unet.parameters(), unet.buffers())
        if tensor.dtype in (torch.float16, torch.bfloat16)
    ]
    try:
        for tensor, kept in narrow:
            tensor.data = kept.float()
        yield
    finally:
        for tensor, kept in narrow:
            tensor.data = kept
