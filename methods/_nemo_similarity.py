"""How alike two predicted noise changes are, on latents of any size: what NeMo measures
memorization by.

Structural similarity comes from torchmetrics; here is only what a latent needs around it.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

REFERENCE_SIDE = 44  # three halvings of a smaller latent leave less than one 11 x 11 window
SIGMA, KERNEL = 1.5, 11
# `ms_ssim_batch` takes the range of values from each batch and scale, as the reference code does
# without saying so; the other two know it to be 1.
Kind = Literal["ms_ssim", "ssim", "ms_ssim_batch"]
EXPONENTS = 0.99  # of all scales together: the reference code has three of 0.33


@dataclass(frozen=True)
class Scales:
    """How many scales a latent is compared at, and the Gaussian window of each."""

    count: int
    kernel: int

    @classmethod
    def of(cls, side: int, most: int = 3) -> "Scales":
        """For latents whose shorter side is `side`: 44 or more as in the reference code (three
        scales, 11 x 11, sigma 1.5).

        Smaller ones get two scales from 16 on and one below, and the largest odd window of at most
        11/16 of the coarsest scale, which is the reference's share at 64; sigma shrinks with the
        window. `most=1` is plain SSIM.
        """
        count = min(most, 3 if side >= REFERENCE_SIDE else 2 if side >= 16 else 1)
        if side >= REFERENCE_SIDE:
            return cls(count, KERNEL)
        fitting = int(side / 2 ** (count - 1) * KERNEL / 16)
        return cls(count, min(KERNEL, max(3, fitting - (fitting + 1) % 2)))

    @property
    def sigma(self) -> float:
        return SIGMA * self.kernel / KERNEL


def similarity(first: Tensor, second: Tensor, kind: Kind) -> Tensor:
    """Structural similarity of rows in [0, 1], `[N, C, h, w]` each: `[N]`, 1 for equal rows.

    `ms_ssim` is the reference code's but for the range of values, `ms_ssim_batch` with it: then a
    row's similarity depends on the rows beside it, by up to 0.01. `ssim` is the paper's.
    """
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    scales = Scales.of(min(first.shape[-2:]), 1 if kind == "ssim" else 3)
    window = {
        "sigma": scales.sigma,
        "kernel_size": scales.kernel,
        "data_range": None if kind == "ms_ssim_batch" else 1.0,
        "reduction": "none",
    }
    if kind == "ssim":
        return structural_similarity_index_measure(first, second, **window)
    exponents = (EXPONENTS / scales.count,) * scales.count
    return multiscale_structural_similarity_index_measure(first, second, betas=exponents, **window)


def pairwise(rows: Tensor, kind: Kind) -> Tensor:
    """Similarity of every row with every other, symmetric `[N, N]`; a row with itself is 0, because
    nothing asks for it.
    """
    count = len(rows)
    table = rows.new_zeros(count, count)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    table[left, right] = table[right, left] = similarity(rows[left], rows[right], kind)
    return table


def unit_range(rows: Tensor, over: Literal["channel", "sample"]) -> Tensor:
    """Rows `[N, C, h, w]` stretched to [0, 1], every channel by itself (code) or every row as a
    whole (paper).
    """
    axes = (2, 3) if over == "channel" else (1, 2, 3)
    low, high = rows.amin(axes, keepdim=True), rows.amax(axes, keepdim=True)
    return (rows - low) / (high - low).clamp_min(1e-12)
