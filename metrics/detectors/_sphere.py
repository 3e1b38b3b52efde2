"""Whether predicted noise points away from a picture on the whole sphere around it (Brokman et al.,
SSVM 2025, arXiv 2505.08246).

Around a memorized picture the score leads back to it from every side, so noise as predicted is the
noise that was added. A point on the shell of level a is

    y_j = sqrt(a) x0 + sqrt(1 - a) sqrt(d) e_j

with e_j uniform on the unit sphere of d dimensions, and

    A_p = mean over j of |F(y_j)|^(p - 2) F(y_j) . e_j

for a field F of noise; A_1 is a mean of cosines. By the theorem of Gauss it is the p-Laplacian of
the log density, averaged over the ball, up to sign and a constant. Higher means memorized.

Published code differs in two ways. Its directions are independent; here they come in pairs of
opposite ones, so that a constant field gives exactly 0. In one of its two repositories p = 2 is
computed of normalized fields, which is p = 1 again; here it is the formula.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]  # points `[R, C, h, w]` to noise of the same shape


def directions(count: int, shape: Sequence[int], seed: int) -> Tensor:
    """`count` directions, an even number, float32 `[count, C, h, w]`, each of norm 1 over all of
    its numbers; the second half is the first one turned round.

    They depend on the seed alone, so all pictures are asked about the same ones. The seed goes
    through a hash, or the first direction of seed 0 would be the initial noise of the image with
    seed 0.
    """
    digest = hashlib.sha256(f"directions\0{seed}".encode()).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    drawn = torch.randn((count // 2, *shape), generator=stream)
    unit = drawn / drawn.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
    return torch.cat([unit, -unit])


def convergence(
    field: Field,
    centres: Tensor,
    signal: float,
    around: Tensor,
    batch_size: int,
    p: Literal[1, 2] = 1,
) -> Tensor:
    """A_p of a field of noise around N centres `[N, C, h, w]` on the shell of level `signal`,
    float32 `[N]`.

    `around` is what `directions` gave; the field is asked for `batch_size` points at a time. Where
    it is exactly zero, its cosine is 0.
    """
    around = around.to(centres.device)
    radius = ((1 - signal) * around[0].numel()) ** 0.5
    of = torch.arange(len(centres), device=centres.device).repeat_interleave(len(around))
    along = torch.arange(len(around), device=centres.device).repeat(len(centres))
    fluxes = []
    for start in range(0, len(of), batch_size):
        part = slice(start, start + batch_size)
        outward = around[along[part]]
        points = signal**0.5 * centres[of[part]].float() + radius * outward
        noise = field(points).float()
        flux = (noise * outward).flatten(1).sum(1)
        if p == 1:
            length = noise.flatten(1).norm(dim=1).clamp_min(torch.finfo(noise.dtype).tiny)
            flux = (flux / length).clamp(-1, 1)
        fluxes.append(flux)
    # Opposite directions are added first: what is constant then cancels without rounding.
    pairs = torch.cat(fluxes).reshape(len(centres), 2, -1).sum(1)
    return pairs.mean(1) / 2
