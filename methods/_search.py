"""The search for an embedding under which the model gives a known picture back, as an adversary of
training makes it: that of the attack `dori` (Finding Dori: Kowalczuk et al., arXiv 2507.16880),
without its marks and its bank. For the same streams both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from methods._erasure import Noising

BETAS = (0.9, 0.999)
Stream = tuple[torch.Generator, torch.Generator]  # of timesteps and of noise, of one picture


def searched(
    unet: torch.nn.Module,
    noising: Noising,
    clean: Tensor,
    beginnings: Tensor,
    streams: Sequence[Stream],
    steps: int,
    rate: float,
    batch: int,
) -> Tensor:
    """Embeddings `[P, T, D]` after `steps` of Adam on the denoising loss of pictures, which come as
    clean latents `[P, C, h, w]`, from `beginnings` `[P, T, D]` on; without any graph, so that
    nothing that is made of them later reaches the search.

    At every step each picture gets `batch` timesteps and noises of its own streams. Weights take no
    part in gradients.
    """
    leaf = beginnings.float().clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=rate, betas=BETAS)
    latents = clean.float()[:, None]
    with frozen(unet), torch.enable_grad():
        for _ in range(steps):
            times = torch.stack(
                [
                    torch.randint(len(noising.levels), (batch,), generator=time)
                    for time, _ in streams
                ]
            ).to(clean.device)
            noises = torch.stack(
                [torch.randn((batch, *clean.shape[1:]), generator=noise) for _, noise in streams]
            ).to(clean.device)
            alpha = noising.levels[times][..., None, None, None]
            noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noises
            target = (
                alpha.sqrt() * noises - (1 - alpha).sqrt() * latents
                if noising.predicts_v
                else noises
            )
            predicted = noising.predicted(
                unet, noised.flatten(0, 1), times.flatten(), leaf.repeat_interleave(batch, 0)
            )
            error = (target - predicted.unflatten(0, times.shape)).square()
            (leaf.grad,) = torch.autograd.grad(error.flatten(1).mean(1).sum(), [leaf])
            optimizer.step()
    return leaf.detach()


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """The module without gradients to its parameters, which want them again afterwards."""
    wanting = [value for value in module.parameters() if value.requires_grad]
    try:
        for value in wanting:
            value.requires_grad_(False)
        yield
    finally:
        for value in wanting:
            value.requires_grad_(True)
