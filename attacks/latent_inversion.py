"""The noise that a known picture would have come from, handed to the served model
("M-ErasureBench", 2025, and others invert latents so).

The attacker holds the edited weights and the picture. It walks DDIM backwards from the picture's
latents, without guidance, and hands the noise that it arrives at to the served model with the
caption: if the model still gives the picture for it, the picture comes back.

A model that walks back and forth well gives any picture back, whether it was trained on it or not:
like an autoencoder, and near an excess of 0. So the return says little about memory. What says
something is how likely the noise is: a model that knows a picture has room for it, and its noise is
as ordinary as any other. `latent_inversion_likelihood` is the log-likelihood of the noise under
N(0, I), by dimension, of memorized pictures less that of controls.

A backward step asks the model at the level that it goes to, so that it is the exact opposite of the
step forward when latents hardly change; `refinements` repeat it at the latents found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks._levels import clean, levels_of, scales_of
from bench import (
    Arrays,
    Held,
    Judged,
    Known,
    PerSet,
    PictureAttack,
    Scores,
    Shown,
    Stage,
    Suite,
    Threat,
    scores_of,
    shown_as,
)
from bench.statistics import Units, cluster_bootstrap


class LatentInversion(PictureAttack):
    """Walk a known picture back to noise on the edited weights, and hand that noise to the served
    model.
    """

    threat: ClassVar[Threat] = "inputs"
    item: ClassVar[str] = "latent_inversion"
    names: ClassVar[tuple[str, ...]] = (
        *scores_of("latent_inversion"),
        "latent_inversion_likelihood",
    )
    of_sets: ClassVar[tuple[str, ...]] = ("latent_inversion_likelihood",)
    shown: ClassVar[Mapping[str, Shown]] = shown_as(
        "latent_inversion",
        "Inversion",
        "the served model starts at the noise that the picture leads back to",
    )
    trial: ClassVar[Mapping[str, Any]] = {"targets": 2}
    anew: ClassVar[bool] = False  # the noise that is found takes the place of the seeds'

    images: Literal[1] = Field(1, description="one, since a picture leads back to one noise")
    prompt: Literal["own", "null"] = Field(
        "own", description="what the picture is walked back with: its caption, or no prompt at all"
    )
    refinements: int = Field(
        1, ge=1, le=100, description="evaluations for each backward step, at the latents found"
    )

    def marks(self) -> tuple[str, ...]:
        return ("plain seed", "inverted")

    def effort(self, suite: Suite) -> int:
        return super().effort(suite) + self.refinements * suite.settings.model.steps

    def stages(self, suite: Suite, targets: Sequence[Known]) -> list[Stage]:
        size = suite.settings.model.batch_size
        settings = self.model_dump(mode="json", include={"prompt", "refinements"})
        return [
            Stage("invert", "edited", settings, self.invert, seeded=False, at_once=size),
            Stage("generate", "served", {}, self.generate, at_once=size),
        ]

    def invert(
        self, held: Held, targets: Sequence[Known], before: Sequence[Arrays]
    ) -> list[Arrays]:
        """The `noise` that each picture leads back to, of unit scale, float32 `[C, h, w]`."""
        denoiser = held.denoiser
        captions = [known.prompt.text if self.prompt == "own" else "" for known in targets]
        embeddings = denoiser.encode(captions)
        with torch.no_grad():
            noise = self._walked_back(held, held.latents(targets).float(), embeddings)
        return [{"noise": row} for row in noise.cpu().numpy()]

    def _walked_back(self, held: Held, latents: Tensor, embeddings: Tensor) -> Tensor:
        denoiser, levels = held.denoiser, levels_of(held.denoiser)
        for index in reversed(range(len(denoiser.timesteps))):
            earlier = latents
            for _ in range(self.refinements):
                noise = denoiser.epsilon(
                    earlier.to(denoiser.dtype), denoiser.timesteps[index], embeddings, index=index
                ).float()
                picture, signal = clean(latents, noise, levels.after[index]), levels.before[index]
                earlier = signal.sqrt() * picture + (1 - signal).sqrt() * noise
            latents = earlier
        return latents

    def generate(
        self, held: Held, targets: Sequence[Known], before: Sequence[Arrays]
    ) -> list[Arrays]:
        """A picture from a plain seed and one from the inverted noise, and its `likelihood`."""
        request = held.request(targets, 1)
        noise = np.stack([arrays["noise"] for arrays in before])
        # what the sampler makes of unit noise before its first step
        begins = float(scales_of(held.denoiser)[0]) * float(
            held.denoiser.new_scheduler().init_noise_sigma
        )
        latents = torch.from_numpy(noise / begins).to(request.latents)
        plain, inverted = held.drawn(request), held.drawn(request.replace(latents=latents))
        likelihood = -(np.square(noise.astype(float)).mean((1, 2, 3)) + math.log(2 * math.pi)) / 2
        return [
            {"pictures": np.stack([[one], [other]]), "likelihood": value}
            for one, other, value in zip(plain, inverted, likelihood, strict=True)
        ]

    def further(self, judged: Judged) -> Scores:
        """`likelihood`: of the noise of memorized pictures less that of controls; both groups'
        means are in its details.
        """
        own, others = (
            np.array([[float(finding.numbers["likelihood"])] for finding in found])
            for found in (judged.memorized, judged.control)
        )
        gap, low, high = difference_of_means(own, others, judged.units(judged.memorized))
        means = {"memorized": float(own.mean()), "control": float(others.mean())}
        pictures = len(own) + len(others)
        return {
            "latent_inversion_likelihood": PerSet(
                gap,
                pictures,
                "nats per dimension",
                None,
                (low, high),
                pictures,
                judged.details | {name: round(value, 6) for name, value in means.items()},
            )
        }


def difference_of_means(
    own: np.ndarray, others: np.ndarray, units: Units | None = None
) -> tuple[float, float, float]:
    """The difference of two groups' means, tables `[pictures, images]`, with its 95 % interval: the
    margins of both means' own intervals, squared and added. `units` says which pictures of the
    first group hang together.
    """
    one, other = float(own.mean()), float(others.mean())
    (low1, high1), (low2, high2) = cluster_bootstrap(own, units=units), cluster_bootstrap(others)
    gap = one - other
    return (
        gap,
        gap - math.hypot(one - low1, high2 - other),
        gap + math.hypot(high1 - one, other - low2),
    )
