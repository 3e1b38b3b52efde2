"""Unlearning of training pictures by importance sampling (SISS: Alberti et al., ICLR 2025, arXiv
2503.01034).

One noised latent m serves to keep and to delete: it is drawn from a mixture of a noised picture to
keep, x, and a noised training picture to delete, z, and the losses of both are weighted by how
likely m is under each. With r = q(m|z) / q(m|x) and the mixture's share l of z,

    w_x = 1 / ((1 - l) + l r),    w_z = 1 / ((1 - l) / r + l),

and the model descends w_x |e_x - e(m)|^2 - s w_z |e_z - e(m)|^2, where e_x and e_z are the noises
that lead from x and from z to m. At every step s gives the second gradient one length.

log r = (|m - sqrt(a) x|^2 - |m - sqrt(a) z|^2) / (2 (1 - a)) grows with the number of latents, so
that the weights are 0 or 2 except near pure noise. The public code (claserken/SISS, commit
af2a29c) trains Stable Diffusion at the last timestep alone. Pictures to keep are those that the
model makes of a clean caption of the same objects; both losses are under the named caption.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench import (
    Course,
    Denoiser,
    FitData,
    Method,
    Need,
    State,
    Swept,
    Where,
    fine_tuned,
    made_once,
    swapped,
)
from methods._erasure import Noising, Part, parameters_of, pictures_apart, training_latents
from methods._tries import refuse_few_tries


class Siss(Method):
    """Unlearn the pictures of named captions by importance-sampled losses of a picture to keep and
    one to delete (SISS).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("fit_prompts", "training_images", "anchors", "copy_judge")
    paper: ClassVar[str] = "Alberti et al. 2025, arXiv:2503.01034"
    neutral: ClassVar[dict[str, Any] | None] = {"steps": 0}
    swept: ClassVar[Swept | None] = ("steps", (9, 17, 35, 70))
    trial: ClassVar[Mapping[str, Any]] = {
        "steps": 2,
        "learning_rate": 0.01,
        "accumulate": 2,
        "pictures": 2,
        "tries": 2,
    }

    part: Part = Field("all", description="what is trained: all weights (code), or a part of them")
    steps: int = Field(35, ge=0, description="of the optimizer (code: 35)")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW (code: 1e-5)")
    batch: int = Field(1, ge=1, description="captions a batch")
    accumulate: int = Field(16, ge=1, description="batches a step (code: 16)")
    mixture: float = Field(0.5, gt=0, lt=1, description="share l of the pictures to delete")
    deletion: float = Field(
        750.0,
        ge=0,
        description=(
            "length that the deleting gradient is scaled to, of a loss that is summed over the"
            " latents (code: 750, then all of it is shortened to 1)"
        ),
    )
    earliest: int = Field(
        999,
        ge=0,
        description="least timestep that is drawn; the code draws the last one alone, 999",
    )
    pictures: int = Field(8, ge=1, description="to keep, of each caption")
    tries: int = Field(16, ge=1, description="seeds of each caption from which they are taken")
    most: float = Field(
        0.5,
        gt=-1,
        le=1,
        description=(
            "largest similarity to the training picture of a picture to keep; where too few are so"
            " far, the least alike are taken"
        ),
    )
    seed: int = Field(0, ge=0, description="of pictures, noise and timesteps")

    @model_validator(mode="after")
    def _enough_tries(self) -> Self:
        refuse_few_tries(self.tries, self.pictures, "pictures")
        return self

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The changed parameters by name. A row of a step takes one forward evaluation and two
        backward ones, a backward one counted twice.
        """
        if not self.steps:
            return {}
        prompts = list(data.fit_prompts)
        anchors = {prompt: data.anchors.get(prompt, "") for prompt in prompts}

        def make() -> dict[str, Tensor]:
            found = pictures_apart(
                denoiser, data, anchors, self.pictures, self.most, self.tries, self.seed
            )
            return {
                "keep": torch.stack([found[prompt][0] for prompt in prompts]),
                "delete": training_latents(denoiser, data),
            }

        made = made_once(denoiser, data, "pictures", make)
        own, noising = denoiser.encode(prompts).float(), Noising(denoiser)
        earliest = min(self.earliest, len(noising.levels) - 1)

        def loss(
            model: torch.nn.Module, number: int, random: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            which = torch.randint(len(prompts), (self.batch,), generator=random)
            picture = torch.randint(self.pictures, (self.batch,), generator=random)
            keep, delete = made["keep"][which, picture].float(), made["delete"][which].float()
            times = torch.randint(
                earliest, len(noising.levels), (self.batch,), generator=random
            ).to(denoiser.device)
            deletes = torch.rand(self.batch, generator=random) < self.mixture
            origin = torch.where(deletes.to(keep.device)[:, None, None, None], delete, keep)
            mixed = noising.noised(origin, times, noising.noise_like(keep, random))
            level = noising.level(times)
            from_keep, from_delete = (
                (mixed - level.sqrt() * one) / (1 - level).sqrt() for one in (keep, delete)
            )
            weights = importance(from_keep, from_delete, self.mixture)
            predicted = noising.predicted(model, mixed, times, own[which])
            noise = noising.as_noise(predicted, mixed, times)
            kept, deleted = (
                (weight * (target - noise).square().flatten(1).sum(1)).mean()
                for weight, target in zip(weights, (from_keep, from_delete), strict=True)
            )
            return kept, deleted

        course = Course(
            self.steps,
            self.learning_rate,
            accumulate=self.accumulate,
            seed=self.seed,
            checkpoint_every=10,
        )
        names = parameters_of(denoiser.pipe.unet, self.part)
        return fine_tuned(denoiser, data, names, course, loss, self.mix)

    def mix(self, gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The keeping gradient less the deleting one at its length."""
        keep, delete = gradients
        length = torch.stack([one.square().sum() for one in delete]).sum().sqrt()
        scale = self.deletion / length if length > 0 else torch.zeros_like(length)
        return [kept - scale * deleted for kept, deleted in zip(keep, delete, strict=True)]

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Put the trained parameters in; the originals return bit for bit."""
        with swapped(pipe.unet, state):
            yield


def importance(from_keep: Tensor, from_delete: Tensor, mixture: float) -> tuple[Tensor, Tensor]:
    """Weights w_x and w_z `[B]` of noised latents, from the noises that lead to them from the
    picture to keep and from the one to delete, `[B, ...]` both.

    By way of the logarithm of r, which may be thousands: w_x is sigmoid(-(log r + logit l)) / (1 -
    l), and w_z is sigmoid(log r + logit l) / l.
    """
    squares = [noise.double().square().flatten(1).sum(1) for noise in (from_keep, from_delete)]
    ratio = (squares[0] - squares[1]) / 2
    shifted = ratio + torch.tensor(mixture, dtype=torch.float64).logit().to(ratio.device)
    return (
        (torch.sigmoid(-shifted) / (1 - mixture)).float(),
        (torch.sigmoid(shifted) / mixture).float(),
    )
