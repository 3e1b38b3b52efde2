"""Noise and denoise, again and again, until generations fall into what the model knows by heart
(cyclic denoising, 2026).

The attacker feeds the served model, and needs neither the picture nor the weights for it: it takes
a generation, adds noise up to a middle level, has the model denoise it from there, and begins
again. Each cycle moves the picture towards where the model pulls; a memorized picture pulls more
than others.

Known of the work are its abstract, and at second hand a level of 0.1 to 0.9 of the schedule and 10
to 60 cycles; it denoises with fresh noise at each step, while here the suite's sampler does what it
does for every image. All doors of the method are there in every cycle; what a method does to the
initial noise meets the noisy latents instead.

Two other ends of such a walk are counted: attractors that hold no known picture, which are
generations that became near-duplicates of one another (`cyclic_attractors`), and pictures of one
colour (`cyclic_constant`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from attacks._levels import levels_of, scales_of
from bench import (
    Arrays,
    Denoiser,
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
    Threat,
    UserError,
    scores_of,
    shown_as,
)

CONSTANT = 4.0  # of 255: pictures whose values deviate by less from their colour's mean


class Cyclic(PictureAttack):
    """Add noise to generations and let the served model denoise them again, in cycles."""

    threat: ClassVar[Threat] = "inputs"
    item: ClassVar[str] = "cyclic"
    names: ClassVar[tuple[str, ...]] = (
        *scores_of("cyclic"),
        "cyclic_attractors",
        "cyclic_constant",
    )
    of_sets: ClassVar[tuple[str, ...]] = ("cyclic_attractors",)
    shown: ClassVar[Mapping[str, Shown]] = shown_as(
        "cyclic", "Cyclic", "the served model's generations are noised and denoised in cycles"
    )
    trial: ClassVar[Mapping[str, Any]] = {"targets": 2, "images": 1, "cycles": [0, 1]}

    cycles: tuple[int, ...] = Field(
        (0, 1, 2, 4, 8),
        min_length=2,
        max_length=100,
        description="cycles after which pictures are looked at, from 0 on; the last counts",
    )
    gamma: float = Field(
        0.5,
        gt=0,
        lt=1,
        description=(
            "how far into noise each cycle goes, of all training timesteps; the nearest step of the"
            " sampler's is taken, never its first"
        ),
    )

    @field_validator("cycles")
    @classmethod
    def _begins_at_nothing(cls, cycles: tuple[int, ...]) -> tuple[int, ...]:
        if cycles[0] != 0 or list(cycles) != sorted(set(cycles)):
            raise ValueError("they must begin with 0 and ascend")
        return cycles

    def fits(self, suite: Suite) -> None:
        """Raises `UserError` for samplers that cannot begin in the middle."""
        super().fits(suite)
        model = suite.settings.model
        # LMS takes too short a first step from the middle: it counts steps that were never made.
        if model.steps < 2 or model.scheduler in ("PNDMScheduler", "LMSDiscreteScheduler"):
            raise UserError(
                "attack cyclic begins in the middle of sampling, which takes two steps at least and"
                f" another scheduler than {model.scheduler}"
            )

    def marks(self) -> tuple[str, ...]:
        return tuple(f"{cycles} cycles" for cycles in self.cycles)

    def effort(self, suite: Suite) -> int:
        steps = suite.settings.model.steps
        return self.images * 2 * (steps + self.cycles[-1] * math.ceil(self.gamma * steps))

    def stages(self, suite: Suite, targets: Sequence[Known]) -> list[Stage]:
        settings = self.model_dump(mode="json", include={"images", "cycles", "gamma"})
        at_once = max(1, suite.settings.model.batch_size // self.images)
        return [Stage("generate", "served", settings, self.generate, at_once=at_once)]

    def generate(
        self, held: Held, targets: Sequence[Known], before: Sequence[Arrays]
    ) -> list[Arrays]:
        """The pictures after each number of cycles, and which of them are `constant`,
        `[marks, images]`.
        """
        draws = [
            known.random("cyclic", seed) for known in targets for seed in known.seeds[: self.images]
        ]
        request = held.request(targets, self.images)
        pictures = np.concatenate(
            [self.walked(held, batch, draws[part]) for part, batch in held.batches(request)], 1
        )
        constant = pictures.astype(float).std((2, 3)).max(2) < CONSTANT
        rows = [slice(first, first + self.images) for first in range(0, len(draws), self.images)]
        return [{"pictures": pictures[:, part], "constant": constant[:, part]} for part in rows]

    def walked(self, held: Held, request: Request, draws: Sequence[torch.Generator]) -> np.ndarray:
        """The pictures of one batch after each number of cycles, uint8 `[marks, B, H, W, 3]`."""
        index = place_of(held.denoiser, self.gamma)
        signal = levels_of(held.denoiser).before[index]
        scale, size = scales_of(held.denoiser)[index], request.latents.shape[1:]
        latents, found = held.sample(request), list[np.ndarray]()
        for cycle in range(self.cycles[-1] + 1):
            if cycle:
                noise = torch.stack([torch.randn(size, generator=draw) for draw in draws])
                noisy = signal.sqrt() * latents.float() + (1 - signal).sqrt() * noise.to(scale)
                begun = request.replace(latents=(noisy / scale).to(request.latents), facts={})
                latents = held.sample(begun, start=index)
            if cycle in self.cycles:
                found.append(held.denoiser.decode(latents))
        return np.stack(found)

    def further(self, judged: Judged) -> Scores:
        """`attractors`: groups of generations of memorized captions that became near-duplicates of
        one another, those before all cycles and those of several captions in its details;
        `constant`: the share of generations that became a single colour, of controls in its
        details.
        """
        before, after, across = self._attractors(judged)
        own, others = (
            judged.chosen(
                found, np.stack([finding.numbers["constant"] for finding in found])
            ).astype(float)
            for found in (judged.memorized, judged.control)
        )
        constant = judged.score(own)
        control = {"control": round(float(others.mean()), 6)}
        return {
            "cyclic_attractors": PerSet(
                float(after),
                own.size,
                "groups",
                None,
                prompts=len(own),
                details=judged.details | {"plain": before, "of_several_captions": across},
            ),
            "cyclic_constant": replace(constant, details=constant.details | control),
        }

    def _attractors(self, judged: Judged) -> tuple[int, int, int]:
        """Groups of near-duplicates before all cycles and after them, and how many of the latter
        hold generations of several captions.
        """
        captions = np.repeat(np.arange(len(judged.memorized)), self.images)
        features = np.stack([finding.features for finding in judged.memorized], 1)
        before, after = (
            near_duplicates(features[mark].reshape(len(captions), -1), judged.threshold)
            for mark in (0, -1)
        )
        return len(before), len(after), sum(len(set(captions[group])) > 1 for group in after)


def place_of(denoiser: Denoiser, gamma: float) -> int:
    """The step of the sampler whose timestep is nearest to this share of the training's, but never
    the first, where the sampler expects noise alone.
    """
    wanted = round(gamma * (len(denoiser.pipe.scheduler.alphas_cumprod) - 1))
    distance: Tensor = (denoiser.timesteps.float() - wanted).abs()
    return max(1, int(distance.argmin()))


def near_duplicates(features: np.ndarray, threshold: float) -> list[list[int]]:
    """Groups of two and more rows that hang together by cosines above a threshold."""
    alike, left, groups = features @ features.T > threshold, set(range(len(features))), []
    while left:
        group, waiting = set[int](), {min(left)}
        while waiting:
            row = waiting.pop()
            group.add(row)
            waiting |= {int(other) for other in np.flatnonzero(alike[row])} - group
        left -= group
        if len(group) > 1:
            groups.append(sorted(group))
    return groups
