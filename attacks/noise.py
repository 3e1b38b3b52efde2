"""More noise at every step of the sampler than it was made for ("When Are Concepts Erased From
Diffusion Models?": Lu et al., NeurIPS 2025, arXiv 2505.17013).

The attacker holds the edited weights and samples with them as DDIM does, but adds fresh noise at
every step, more of it than any DDIM adds: a step to the level b is

    sqrt(b) x0 + sqrt(max(0, 1 - b - s^2)) e + s v z,   s = eta s_DDIM,

with the model's guided noise e, the clean picture x0 that follows from it, and z drawn anew. An
edited model that was only turned away from a picture may be shaken back to it.

Values of eta and v are those of the source's code (24 June 2026). From eta = 1 on the root's
argument may be negative; the source takes its absolute value, so that more noise is added the more
there is already. Here it is cut off at 0, and `noise_clipped` says how often; `root=abs` is the
source's way. There one generator of random numbers runs through all variants, so that each depends
on those before it; here every variant has its own. The source's mixture with guidance (150
variants) is left out.

Twenty-four variants are twenty-four chances. So each image begins at the noise of one plain image,
and the best of the variants stands beside the best of as many plain images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks._levels import Levels, clean, levels_of, walked
from bench import (
    IMAGES_PER_PROMPT,
    Arrays,
    Held,
    Judged,
    Known,
    PerSet,
    PictureAttack,
    Request,
    Scores,
    Shown,
    Stage,
    Suite,
    UserError,
    scores_of,
    shown_as,
)

Factor = Annotated[float, Field(ge=0, le=10)]
Variant = tuple[float, float]


class Noise(PictureAttack):
    """Add more noise at every step than the sampler was made for, in several strengths."""

    item: ClassVar[str] = "noise"
    names: ClassVar[tuple[str, ...]] = (*scores_of("noise"), "noise_clipped")
    of_sets: ClassVar[tuple[str, ...]] = ("noise_clipped",)
    shown: ClassVar[Mapping[str, Shown]] = shown_as(
        "noise", "Noise", "the edited weights are sampled with noise added at each step"
    )
    trial: ClassVar[Mapping[str, Any]] = {"targets": 2, "etas": [1.85], "factors": [1, 1.04]}

    images: int = Field(
        1, ge=1, le=IMAGES_PER_PROMPT, description="generations of each picture by each variant"
    )
    etas: tuple[Factor, ...] = Field(
        (1, 1.17, 1.34, 1.51, 1.68, 1.85),
        min_length=1,
        max_length=100,
        description="how much of a step's noise is new: 0 is DDIM, 1 what DDPM does",
    )
    factors: tuple[Factor, ...] = Field(
        (1, 1.02, 1.03, 1.04),
        min_length=1,
        max_length=100,
        description="factors of the new noise, which the rest of the step does not know of",
    )
    root: Literal["clip", "abs"] = Field(
        "clip",
        description=(
            "what becomes of the old noise where the new one is more than the level holds: nothing"
            " is left, or as much as is missing (as the source has it)"
        ),
    )

    def fits(self, suite: Suite) -> None:
        """Raises `UserError` where there would be more variants than a suite may ask for."""
        super().fits(suite)
        if self.chances() > IMAGES_PER_PROMPT:
            raise UserError(
                f"attack noise asks for {self.chances()} images of a picture, and"
                f" {IMAGES_PER_PROMPT} are allowed"
            )

    def variants(self) -> list[Variant]:
        """Each eta with each factor."""
        return list(product(self.etas, self.factors))

    def chances(self) -> int:
        return self.images * len(self.variants())

    def marks(self) -> tuple[str, ...]:
        return ("plain", "noise")

    def stages(self, suite: Suite, targets: Sequence[Known]) -> list[Stage]:
        settings = self.model_dump(mode="json", include={"images", "etas", "factors", "root"})
        return [Stage("generate", "edited", settings, self.generate)]

    def generate(
        self, held: Held, targets: Sequence[Known], before: Sequence[Arrays]
    ) -> list[Arrays]:
        """The pictures of every variant beside plain ones that begin at the same noise, and the
        share of `clipped` steps.
        """
        levels, count = levels_of(held.denoiser), self.chances()
        request = held.request(targets, count)
        each = [variant for variant in self.variants() for _ in range(self.images)]
        variants = each * len(targets)
        draws = [
            known.random("noise", *variant, seed)
            for known in targets
            for variant, seed in zip(each, known.seeds[:count], strict=True)
        ]
        shaken = np.concatenate(
            [
                held.denoiser.decode(self.sampled(held, batch, levels, variants[part], draws[part]))
                for part, batch in held.batches(request)
            ]
        )
        plain = held.drawn(request)
        clipped = np.array(
            [
                [float(level) < 0 for level in _rest(levels, _new_noise(levels, eta))]
                for eta, _ in self.variants()
            ]
        ).mean()
        rows = [slice(first, first + count) for first in range(0, len(shaken), count)]
        return [
            {"pictures": np.stack([plain[part], shaken[part]]), "clipped": clipped} for part in rows
        ]

    def sampled(
        self,
        held: Held,
        request: Request,
        levels: Levels,
        variants: Sequence[Variant],
        draws: Sequence[torch.Generator],
    ) -> Tensor:
        """Final latents `[B, C, h, w]`, each row by its variant and its own random numbers."""
        size = request.latents.shape[1:]
        etas, factors = (
            torch.tensor(column, device=request.latents.device).reshape(-1, 1, 1, 1)
            for column in zip(*variants, strict=True)
        )
        new = _new_noise(levels, 1)

        def go_on(index: int, latents: Tensor, noise: Tensor) -> Tensor:
            fresh = torch.stack([torch.randn(size, generator=draw) for draw in draws])
            after, s = levels.after[index], etas * new[index]
            rest = 1 - after - s**2
            rest = rest.abs() if self.root == "abs" else rest.clamp(min=0)
            picture = clean(latents, noise, levels.before[index])
            return after.sqrt() * picture + rest.sqrt() * noise + s * factors * fresh.to(latents)

        return walked(held.denoiser, request, go_on)

    def further(self, judged: Judged) -> Scores:
        """`clipped`: the share of steps in which more noise is added than the step's level holds,
        which follows from the sampler's levels alone.
        """
        shares = [float(finding.numbers["clipped"]) for finding in judged.memorized]
        steps = judged.target.suite.settings.model.steps * len(self.variants())
        return {
            "noise_clipped": PerSet(
                shares[0], steps, "share of steps", None, details={"root": self.root}
            )
        }


def _new_noise(levels: Levels, eta: float) -> Tensor:
    """The deviation of the noise that DDIM adds in each step with this eta, `[S]`."""
    a, b = levels.before, levels.after
    return eta * ((1 - b) / (1 - a) * (1 - a / b)).clamp(min=0).sqrt()


def _rest(levels: Levels, new: Tensor) -> Tensor:
    """How much of the variance of each level is left to the old noise, `[S]`."""
    return 1 - levels.after - new**2
