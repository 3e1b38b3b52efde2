"""The edited model finishes what the base model began ("When Are Concepts Erased From Diffusion
Models?": Lu et al., NeurIPS 2025, arXiv 2505.17013).

The attacker holds the edited weights and those of the public model that they came from. The public
model denoises the first k steps, the edited one the rest: what was only cut off from its beginning
is finished, what is gone is not.

The noise that the base model predicts, guided, is kept for these steps and handed to the suite's
sampler again, which then goes on with the edited model. So the beginning is the base model's own to
the last bit under every scheduler, those with a memory of earlier steps too: k = 0 is the edited
model, and k of all steps the base model.

The source takes the base model for the first three steps, and its evaluation never reads the
pictures of this probe (its code, 24 June 2026); so there is no published number to compare with.
How much a beginning decides by itself is told by `completion_null`: the same beginning, after which
the base model goes on without any prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from bench import (
    Arrays,
    Guide,
    Held,
    Judged,
    Known,
    PictureAttack,
    Request,
    Scores,
    Shown,
    Stage,
    Step,
    Suite,
    Target,
    UserError,
    classifier_free_guidance,
    scores_of,
    shown_as,
    trajectory,
)


class Completion(PictureAttack):
    """Let the edited weights finish what the base model began with the caption of a known
    picture.
    """

    item: ClassVar[str] = "completion"
    names: ClassVar[tuple[str, ...]] = (*scores_of("completion"), "completion_null")
    shown: ClassVar[Mapping[str, Shown]] = {
        **shown_as("completion", "Completion", "the base model begins, the edited weights finish"),
        "completion_null": Shown(
            heading="Completion null",
            decimals=3,
            meaning="share of copies of memorized pictures where the base model begins with the"
            " caption and goes on without any prompt: what the beginning decides alone",
        ),
    }
    trial: ClassVar[Mapping[str, Any]] = {"targets": 2, "images": 1}

    prefixes: tuple[int, ...] = Field(
        (),
        max_length=50,
        description=(
            "steps that the base model makes first, from 0 on; the last counts. Without it 0, 1,"
            " 2, 3, a tenth and a fifth of the suite's steps"
        ),
    )

    @field_validator("prefixes")
    @classmethod
    def _begins_at_nothing(cls, prefixes: tuple[int, ...]) -> tuple[int, ...]:
        if prefixes and (prefixes[0] != 0 or list(prefixes) != sorted(set(prefixes))):
            raise ValueError("it must begin with 0 and ascend")
        if len(prefixes) == 1:
            raise ValueError("it needs a number of steps beyond 0")
        return prefixes

    def fits(self, suite: Suite) -> None:
        """Raises `UserError` where the sampler has fewer steps than the longest beginning."""
        super().fits(suite)
        steps = suite.settings.model.steps
        if self.prefixes and self.prefixes[-1] > steps:
            raise UserError(
                f"attack completion begins with {self.prefixes[-1]} steps of the base model, and"
                f" suite {suite.name} has {steps}"
            )

    def find(self, target: Target, part: int = 0, of: int = 1) -> Judged:
        """As every attack on known pictures, with the beginnings that fit the suite's steps."""
        if self.prefixes:
            return super().find(target, part, of)
        return self._resolved(target.suite).find(target, part, of)

    def effort(self, suite: Suite) -> int:
        if not self.prefixes:
            return self._resolved(suite).effort(suite)
        steps = suite.settings.model.steps
        rest = sum(steps - prefix for prefix in self.prefixes)
        return 2 * self.images * (self.prefixes[-1] + rest)

    def _resolved(self, suite: Suite) -> Completion:
        prefixes = beginnings(suite.settings.model.steps)
        return self.model_copy(update={"prefixes": prefixes})

    def marks(self) -> tuple[str, ...]:
        return tuple(f"{steps} base steps" for steps in self.prefixes)

    def stages(self, suite: Suite, targets: Sequence[Known]) -> list[Stage]:
        return [self.beginning(suite), self.finishing(suite)]

    def beginning(self, suite: Suite) -> Stage:
        """The guided noise of the base model's first steps."""
        settings = {"images": self.images, "steps": self.prefixes[-1]}
        return Stage("prefix", "base", settings, self.begin, at_once=self._at_once(suite))

    def finishing(self, suite: Suite) -> Stage:
        """The edited model goes on from each of the beginnings."""

        def work(held: Held, targets: Sequence[Known], before: Sequence[Arrays]) -> list[Arrays]:
            return self.finish(held, targets, before, classifier_free_guidance)

        return Stage("generate", "edited", self._settings(), work, at_once=self._at_once(suite))

    def forgetting(self, suite: Suite) -> Stage:
        """The base model goes on from each of the beginnings without a prompt."""

        def work(held: Held, targets: Sequence[Known], before: Sequence[Arrays]) -> list[Arrays]:
            return self.finish(held, targets, before, Step.unconditional_only)

        return Stage("null", "base", self._settings(), work, at_once=self._at_once(suite))

    def _settings(self) -> dict[str, Any]:
        return {"images": self.images, "prefixes": list(self.prefixes)}

    def _at_once(self, suite: Suite) -> int:
        return max(1, suite.settings.model.batch_size // self.images)

    def begin(self, held: Held, targets: Sequence[Known], before: Sequence[Arrays]) -> list[Arrays]:
        """`noise` of each image and step, float32 `[images, steps, C, h, w]`."""
        found: list[Tensor] = []
        for _, batch in held.batches(held.request(targets, self.images)):
            seen: list[Tensor] = []

            def keep(step: Step, scaled: Tensor, guided: Tensor, seen: list[Tensor] = seen) -> None:
                seen.append(guided.float().cpu())

            with torch.no_grad():
                trajectory(held.denoiser, batch, classifier_free_guidance, self.prefixes[-1], keep)
            found.append(torch.stack(seen, 1))
        rows = torch.cat(found).unflatten(0, (len(targets), self.images))
        return [{"noise": noise.numpy()} for noise in rows]

    def finish(
        self, held: Held, targets: Sequence[Known], before: Sequence[Arrays], after: Guide
    ) -> list[Arrays]:
        """The pictures of every beginning, guided by `after` from its end on."""
        noise = torch.from_numpy(np.concatenate([arrays["noise"] for arrays in before]))
        request = held.request(targets, self.images)
        marks = np.stack(
            [
                self._finished(held, request, noise.to(request.latents.device), steps, after)
                for steps in self.prefixes
            ]
        )
        return [
            {"pictures": rows}
            for rows in marks.reshape(
                len(self.prefixes), len(targets), self.images, *marks.shape[2:]
            ).swapaxes(0, 1)
        ]

    def _finished(
        self, held: Held, request: Request, noise: Tensor, steps: int, after: Guide
    ) -> np.ndarray:
        of_model = held.denoiser.pipe.scheduler.config.prediction_type == "epsilon"

        def replaying(rows: Tensor) -> Guide:
            def guide(step: Step) -> Tensor:
                if step.index >= steps:
                    return after(step)
                kept = rows[:, step.index]
                # noise that was converted from velocities is of float32, as it was kept
                return kept.to(step.latents.dtype) if of_model else kept

            return guide

        return np.concatenate(
            [
                held.denoiser.decode(held.sample(batch, replaying(noise[part])))
                for part, batch in held.batches(request)
            ]
        )

    def further(self, judged: Judged) -> Scores:
        """`null`: what the longest beginning decides alone, with its curve in the details."""
        suite = judged.target.suite
        known = [finding.known for finding in judged.memorized]
        alone = judged.target.find([self.beginning(suite), self.forgetting(suite)], known)
        copies = judged.copies(alone)
        score = judged.score(copies[:, -1])
        score.details["curve"] = [round(float(share), 6) for share in copies.mean((0, 2))]
        return {"completion_null": score}


def beginnings(steps: int) -> tuple[int, ...]:
    """The first steps that a sampler of so many is tried with."""
    wanted = {0, 1, 2, 3, round(steps / 10), round(steps / 5)}
    return tuple(sorted(k for k in wanted if k <= steps))
