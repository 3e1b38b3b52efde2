"""The batch size found by trial: the most images at once that stay below a ceiling of memory.

A trial is what sampling does with so many images: one evaluation of both branches, and decoding. On
a GPU batches grow until one goes over the ceiling or does not fit. On a processor nothing may ever
run out of memory, because the system ends processes then, so two small batches are measured and
larger ones predicted: memory grows by as much for each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch

from bench.base.errors import UserError
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.memory import free_memory, held_memory, peak_within

MOST = 64  # as many as a shard of the store holds; larger batches are hardly faster
SHARE = 0.9  # of the memory that is free, where no ceiling is given
# By so much more than measured each image may take, as a prediction from two batches is not exact.
# A fraction, because 1.1 in floating point is a little more and costs an image where sizes divide.
SPREAD = Fraction(11, 10)
GIB = 2**30


def batch_size_by_trial(
    denoiser: Denoiser, memory_gib: float | None = None, gradients: bool = False, most: int = MOST
) -> int:
    """The largest batch below `memory_gib` (of GPU or process, the model included), or below most
    of what is free; at least 1, at most `most`.

    `gradients`: a trial also goes back through the conditional branch, for methods that optimise
    prompts. Trials are no part of the denoiser's count of evaluations. Raises `UserError` when not
    even one image fits.
    """
    device = denoiser.device
    ceiling = _ceiling(device, memory_gib)

    def peak(size: int) -> float:
        """Bytes that a batch takes at most, infinite when it does not fit."""
        with peak_within(device) as so_far:
            try:
                _trial(denoiser, size, gradients)
            except torch.OutOfMemoryError:
                return float("inf")
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            return so_far()

    counted = denoiser.rows, denoiser.backward_rows
    try:
        size = (
            largest(peak, ceiling, most)
            if device.type == "cuda"
            else predicted(peak, ceiling, most, held_memory(device))
        )
    finally:
        denoiser.rows, denoiser.backward_rows = counted
    if size < 1:
        raise UserError(
            f"one image at a time already takes more than {ceiling / GIB:.1f} GiB; give a higher"
            " --memory, or try --attention sliced or a dtype of 16 bits"
        )
    return size


def largest(peak: Callable[[int], float], ceiling: float, most: int) -> int:
    """The largest size whose peak stays within the ceiling, to an eighth: doubled until one does
    not fit, then halved in between. 0: none fits.
    """
    fits, size = 0, 1
    while size <= most and peak(size) <= ceiling:
        fits, size = size, 2 * size
    too_large = min(size, most + 1)
    while fits and too_large - fits > max(1, fits // 8):
        middle = (fits + too_large) // 2
        if peak(middle) <= ceiling:
            fits = middle
        else:
            too_large = middle
    return fits


def predicted(peak: Callable[[int], float], ceiling: float, most: int, held: float = 0) -> int:
    """The largest size whose predicted peak stays within the ceiling, without trying one that might
    not. 0: none fits.

    `held` is taken before any batch. Sizes are doubled until a batch shows in the peak, which an
    earlier one may hide.
    """
    before, size = peak(1), 1
    if before > ceiling:
        return 0
    # as if all that is above `held` were the batch's
    while 2 * size <= most and 2 * before - held <= ceiling:
        now = peak(2 * size)
        if math.isinf(now):
            return size
        if now > before:
            each = Fraction(now - before) / size * SPREAD
            return max(1, min(most, int(size + Fraction(ceiling - before) / each)))
        size *= 2
    return size


def _ceiling(device: torch.device, memory_gib: float | None) -> float:
    if memory_gib is not None:
        return memory_gib * GIB
    free = free_memory(device)
    if free is None:
        raise UserError("how much memory is free cannot be told here; give --memory, in GiB")
    return held_memory(device) + SHARE * free


def _trial(denoiser: Denoiser, size: int, gradients: bool) -> None:
    request = denoiser.request(["a"] * size, list(range(size)))
    scaled, timestep = denoiser.start(request.latents)
    with torch.no_grad():
        denoiser.branches(scaled, timestep, request)
        denoiser.decode(request.latents * denoiser.pipe.vae.config.scaling_factor)
    if gradients:
        leaf = request.embeddings.detach().clone().requires_grad_()
        with torch.enable_grad():
            noise = denoiser.epsilon(scaled, timestep, leaf, added=request.added)
            total = noise.float().sum()
        torch.autograd.grad(total, leaf)
