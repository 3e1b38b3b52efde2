"""Towards one of a few known pictures, by a classifier that needs no training ("When Are Concepts
Erased From Diffusion Models?": Lu et al., NeurIPS 2025, arXiv 2505.17013, with a classifier that is
exact).

The attacker holds the edited weights and a set of pictures, those that it asks about and others
alike. Of noisy latents x at the level a, with s^2 = 1 - a, Bayes' rule says which of these pictures
x0_r lies beneath: with equal odds beforehand,

    p_r = softmax(-|x - sqrt(a) x0_r|^2 / (2 s^2 tau)),
    grad log p_r = sqrt(a) / (s^2 tau) (x0_r - sum_q p_q x0_q),

and guidance takes w s grad log p_r off the model's guided noise (Dhariwal and Nichol 2021). That
costs nothing: no row more, no gradient, no training.

With tau = 1 this classifier is sure of itself long before anything can be seen, because latents
have many dimensions: it pushes at full strength or not at all. So tau is chosen such that in the
middle of the schedule half of the controls lead over their nearest rival by more than 1 in log
odds, and half by less; how sure the classifier was is told by `exact_guidance_entropy`.

Weights are told in a unit that means the same for every model and set: at 1 the pull towards a
control is, in the middle of the schedule and before the classifier prefers any picture, as long as
noise itself. A large enough weight brings any picture back from any model, so the share of
memorized pictures alone says nothing: memorized ones and controls are in one set and pulled by the
same rule, and only the excess counts. The weight that the attacker goes by is a setting, not the
best of the grid; a quarter was set before any picture was seen.

The source trains a perceptron on flattened latents and tries 25 scales from 25 to 193 (its code, 24
June 2026); its numbers cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from attacks._levels import Levels, levels_of, scales_of
from bench import (
    Arrays,
    Guide,
    Held,
    Judged,
    Known,
    PictureAttack,
    Scores,
    Shown,
    Stage,
    Step,
    Suite,
    Unmeasurable,
    classifier_free_guidance,
    digest_of,
    path_digest,
    scores_of,
    shown_as,
)

MOMENTS = ("start", "middle", "end")  # of sampling, at which the entropy is told


class ExactGuidance(PictureAttack):
    """Guide the edited weights towards a known picture by the exact classifier of a set of
    pictures.
    """

    item: ClassVar[str] = "exact_guidance"
    names: ClassVar[tuple[str, ...]] = (*scores_of("exact_guidance"), "exact_guidance_entropy")
    shown: ClassVar[Mapping[str, Shown]] = {
        **shown_as(
            "exact_guidance",
            "Guidance",
            "the edited weights are guided towards the picture by an exact classifier",
        ),
        "exact_guidance_entropy": Shown(
            heading="Guidance entropy",
            decimals=3,
            meaning="how unsure the classifier was in the middle of sampling memorized pictures:"
            " entropy, of the largest that it could have",
        ),
    }
    trial: ClassVar[Mapping[str, Any]] = {"targets": 2, "images": 1, "weights": [0, 0.25]}

    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1, 2),
        min_length=2,
        max_length=50,
        description=(
            "how hard the classifier pulls, from 0 on: at 1 as hard as noise is long, in the"
            " middle of the schedule"
        ),
    )
    chosen_weight: float = Field(
        0.25, ge=0, description="the weight that the attacker goes by, one of `weights`"
    )

    @field_validator("weights")
    @classmethod
    def _begins_at_nothing(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if weights[0] != 0 or list(weights) != sorted(set(weights)):
            raise ValueError("they must begin with 0 and ascend")
        return weights

    @model_validator(mode="after")
    def _chooses_one_of_them(self) -> ExactGuidance:
        if self.chosen_weight not in self.weights:
            raise ValueError("chosen_weight must be one of weights")
        return self

    def marks(self) -> tuple[str, ...]:
        return tuple(f"w {weight:g}" for weight in self.weights)

    def stages(self, suite: Suite, targets: Sequence[Known]) -> list[Stage]:
        """One stage, whose set of pictures are all that are attacked."""
        every = tuple(targets)
        settings = self.model_dump(mode="json", include={"images", "weights", "chosen_weight"}) | {
            "references": digest_of(
                [[known.prompt.id, known.memorized, path_digest(known.picture)] for known in every]
            )
        }

        def work(held: Held, targets: Sequence[Known], before: Sequence[Arrays]) -> list[Arrays]:
            return self.generate(held, targets, every)

        at_once = max(1, suite.settings.model.batch_size // self.images)
        return [Stage("generate", "edited", settings, work, at_once=at_once)]

    def generate(
        self, held: Held, targets: Sequence[Known], every: Sequence[Known]
    ) -> list[Arrays]:
        """Pictures under every weight, beside the `entropy` of the classifier, float64
        `[marks, images, 3]`, its `tau` and the `unit` of weights.
        """
        classifier = classifier_of(held, every)
        numbers = [every.index(known) for known in targets for _ in range(self.images)]
        request, scales = held.request(targets, self.images), scales_of(held.denoiser)
        pictures, entropies = [], []
        for weight in self.weights:
            parts, told = [], []
            for part, batch in held.batches(request):
                seen: list[Tensor] = []
                guide = classifier.guide(numbers[part], weight, scales, seen)
                parts.append(held.denoiser.decode(held.sample(batch, guide)))
                told.append(torch.stack([seen[0], seen[len(seen) // 2], seen[-1]], 1).cpu().numpy())
            pictures.append(np.concatenate(parts))
            entropies.append(np.concatenate(told))
        made, told_of = np.stack(pictures), np.stack(entropies)
        rows = [slice(first, first + self.images) for first in range(0, len(numbers), self.images)]
        return [
            {
                "pictures": made[:, part],
                "chosen": np.array(self.weights.index(self.chosen_weight)),
                "entropy": told_of[:, part],
                "tau": np.array(classifier.tau),
                "unit": np.array(classifier.unit),
            }
            for part in rows
        ]

    def further(self, judged: Judged) -> Scores:
        """`entropy`, by moment and of controls in its details."""
        own, others = (
            np.stack([finding.numbers["entropy"][finding.chosen] for finding in found])
            for found in (judged.memorized, judged.control)
        )
        score = judged.score(own[..., 1], "of the largest")
        for name, told in (("memorized", own), ("control", others)):
            means = told.mean((0, 1))
            score.details[name] = {
                moment: round(float(value), 6) for moment, value in zip(MOMENTS, means, strict=True)
            }
        score.details |= {
            name: float(judged.memorized[0].numbers[name]) for name in ("tau", "unit")
        }
        return {"exact_guidance_entropy": score}


@dataclass(frozen=True)
class Classifier:
    """Which of a set of pictures, clean latents `[N, d]`, lies beneath noisy ones."""

    pictures: Tensor
    levels: Levels
    tau: float = 1.0
    unit: float = 1.0  # what a weight of 1 multiplies the gradient with

    def odds(self, latents: Tensor, index: int) -> Tensor:
        """Log odds of each picture before step `index`, up to a constant: `[B, N]`."""
        signal = self.levels.before[index].double()
        flat = latents.double().flatten(1)
        # |x|^2 is the same for all pictures
        alike = signal.sqrt() * (flat @ self.pictures.T)
        return (alike - signal * self.pictures.square().sum(1) / 2) / ((1 - signal) * self.tau)

    def pull(self, latents: Tensor, index: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The gradient of the log probability of one picture for each row, of the latents' shape,
        and the entropy of the classifier, in shares of the largest, `[B]`.
        """
        signal, chances = self.levels.before[index].double(), self.odds(latents, index).softmax(1)
        towards = self.pictures[list(numbers)] - chances @ self.pictures
        gradient = signal.sqrt() / ((1 - signal) * self.tau) * towards
        entropy = torch.special.entr(chances).sum(1) / math.log(max(2, len(self.pictures)))
        return gradient.reshape(latents.shape), entropy

    def guide(
        self, numbers: Sequence[int], weight: float, scales: Tensor, seen: list[Tensor]
    ) -> Guide:
        """Classifier-free guidance, and this classifier's on top; `seen` gets its entropies."""

        def guided(step: Step) -> Tensor:
            noise = classifier_free_guidance(step)
            gradient, entropy = self.pull(step.latents * scales[step.index], step.index, numbers)
            seen.append(entropy)
            deviation = (1 - self.levels.before[step.index]).sqrt()
            return (noise - weight * self.unit * deviation * gradient).to(noise.dtype)

        return guided


def classifier_of(held: Held, every: Sequence[Known]) -> Classifier:
    """The classifier of these pictures, as sure of itself as controls allow in mid-schedule."""
    pictures = held.latents(every).double().flatten(1)
    sharp, middle = Classifier(pictures, levels_of(held.denoiser)), held.denoiser.steps // 2
    controls = [number for number, known in enumerate(every) if not known.memorized]
    size = held.denoiser.initial_latents([0]).shape[1:]
    drawn = [
        torch.randn(size, generator=every[number].random("exact_guidance", "tau"))
        for number in controls
    ]
    signal = sharp.levels.before[middle].double()
    noise = torch.stack(drawn).flatten(1).to(pictures)
    odds = sharp.odds(signal.sqrt() * pictures[controls] + (1 - signal).sqrt() * noise, middle)
    own = torch.tensor(controls, device=odds.device)[:, None]
    rivals = odds.scatter(1, own, -math.inf).amax(1)
    lead = float((odds.gather(1, own)[:, 0] - rivals).median())
    if not lead > 0:
        raise Unmeasurable("controls cannot be told from other pictures in mid-schedule")
    away = float((pictures[controls] - pictures.mean(0)).norm(dim=1).median())
    pulled = float(signal.sqrt() / (1 - signal).sqrt()) / lead * away
    return Classifier(pictures, sharp.levels, lead, math.sqrt(pictures.shape[1]) / pulled)
