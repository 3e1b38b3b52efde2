"""What the model does with embeddings: how far its predictions differ, and its activations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.base.progress import Report, silent
from bench.contracts.held import Held
from bench.diffusion.denoiser import Denoiser
from bench.studies.locality.distances import Spread
from bench.studies.locality.populations import Population

BANK = 40  # timesteps and noises around the picture
VALUES, HIDDEN = "value projections", "feed-forward"


def functional_distance(
    held: Held, population: Population, embeddings: np.ndarray, report: Report = silent
) -> float:
    """The root mean square by which one value of the predicted noise differs between two of these
    embeddings `[R, T, D]`, over noised versions of the population's picture.
    """
    denoiser, known = held.denoiser, population.around
    levels = denoiser.pipe.scheduler.alphas_cumprod
    clean = held.latents([known]).float().cpu()[0]
    times = torch.randint(len(levels), (BANK,), generator=known.random("locality", "bank", "time"))
    noises = torch.randn((BANK, *clean.shape), generator=known.random("locality", "bank", "noise"))
    given = population.tensor(denoiser, embeddings)
    squares = []
    for number, (time, noise) in enumerate(zip(times, noises, strict=True)):
        level = levels[time].cpu().float()
        noised = (level.sqrt() * clean + (1 - level).sqrt() * noise).to(given)
        apart = Spread()
        for rows in given.split(2 * denoiser.batch_size):
            with torch.no_grad():
                predicted = denoiser.epsilon(
                    noised.expand(len(rows), *noised.shape), time.to(denoiser.device), rows
                )
            for row in predicted.float().cpu().numpy():
                apart.add(row)
        squares.append(apart.distance**2 / noised.numel())
        report(f"predict {population.name}", number + 1, BANK)
    return math.sqrt(sum(squares) / BANK)


def activation_spreads(denoiser: Denoiser, population: Population) -> dict[str, dict[str, Spread]]:
    """By view and layer, the spread of activations over the members, each at the first timestep and
    its own initial noise, conditional branch alone.

    The views are those of two methods: what the value projections of cross-attention give, `[T,
    width]`, where NeMo looks for neurons, and what the last layers of feed-forwards get, `[h w,
    width]`, which Wanda weighs.
    """
    layers = watched_layers(denoiser.pipe.unet)
    found = {view: {name: Spread() for name in layers[view]} for view in layers}
    members, size = population.members, denoiser.batch_size
    given = population.tensor(denoiser)
    for first in range(0, len(members), size):
        part = members[first : first + size]
        noise = denoiser.initial_latents([member.noise for member in part])
        inputs, timestep = denoiser.start(noise)
        with _watched(layers) as seen, torch.no_grad():
            denoiser.epsilon(inputs, timestep, given[first : first + size])
        for by_layer in found.values():
            for name, spread in by_layer.items():
                if name not in seen:
                    raise UserError(
                        f"layer {name} took no part in a prediction; the UNet bypasses its modules"
                    )
                for row in seen[name].float().cpu().numpy():
                    spread.add(row)
    return found


def watched_layers(unet: torch.nn.Module) -> dict[str, dict[str, torch.nn.Module]]:
    """The layers of both views by module name, in the order of execution."""
    modules = dict(unet.named_modules())
    places = ("down_blocks.", "mid_block.", "up_blocks.")
    ordered = [name for place in places for name in modules if name.startswith(place)]
    values = {name: modules[name] for name in ordered if name.endswith(".attn2.to_v")}
    hidden = {name: modules[name] for name in ordered if name.endswith(".ff.net.2")}
    if not values or not hidden:
        raise UserError(
            "the model has no cross-attention with plain value projections (`attn2.to_v`) or no"
            " feed-forward layers (`ff.net.2`) to look at"
        )
    return {VALUES: values, HIDDEN: hidden}


@contextmanager
def _watched(layers: dict[str, dict[str, torch.nn.Module]]) -> Iterator[dict[str, Tensor]]:
    """What the layers give (values) or get (hidden) in a block, by name."""
    seen: dict[str, Tensor] = {}

    def gives(name: str) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = output.detach()

        return hook

    def gets(name: str) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0].detach()

        return hook

    handles = [
        *(module.register_forward_hook(gives(name)) for name, module in layers[VALUES].items()),
        *(module.register_forward_pre_hook(gets(name)) for name, module in layers[HIDDEN].items()),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
