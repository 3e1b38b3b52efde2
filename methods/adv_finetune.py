"""Adversarial fine-tuning against embeddings that bring a picture back (Kowalczuk et al., "Finding
Dori", arXiv 2507.16880).

At every visit of a named picture an adversary searches an embedding under which the model, as it is
by then, gives the real picture back. The model learns to denoise a *surrogate* under that
embedding: a picture of the same caption that is no copy, which the pruned model makes. Beside it
the model goes on denoising regular pictures under clean captions:

    L = L_DM(regular) + weight * L_adv(surrogate, adversarial embedding)

Any fine-tuning forgets something, so two controls belong beside it: `adversary = "none"` (the same
steps on regular pictures alone) and `adversary = "prompt"` (the caption's embedding in place of the
adversary's).

Second-hand are the loss, 5 epochs and what the surrogates are for; the optimizer, its rate, the
batch, the number of embeddings and the beginnings of the search are not stated anywhere and are our
choice. Low-rank updates are reported to fail.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench import (
    Course,
    Denoiser,
    Denoising,
    FitData,
    Method,
    Need,
    State,
    Swept,
    UserError,
    Where,
    evenly,
    fine_tuned,
    made_once,
    swapped,
)
from methods._erasure import (
    Noising,
    generated,
    own_seed,
    parameters_of,
    pictures_apart,
    training_latents,
)
from methods._search import Stream, searched
from methods._tries import refuse_few_tries
from methods.wanda import Wanda

MARGIN = 0.2  # below the suite's threshold: where a picture is no copy to be doubted


class AdvFinetune(Method):
    """Fine-tune on surrogates under embeddings that an adversary searches at every visit
    (adversarial fine-tuning).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = (
        "fit_prompts",
        "training_images",
        "anchors",
        "clean_prompts",
        "copy_judge",
    )
    paper: ClassVar[str] = "Kowalczuk et al. 2025, arXiv:2507.16880"
    in_chunks: ClassVar[bool] = False  # the loss of regular pictures reads one
    neutral: ClassVar[dict[str, Any] | None] = {"epochs": 0}
    swept: ClassVar[Swept | None] = ("epochs", (1, 2, 3, 5))
    trial: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "inner_steps": 2,
        "inner_batch": 2,
        "learning_rate": 0.01,
        "surrogates": 1,
        "tries": 1,
    }

    adversary: Literal["dori", "prompt", "none"] = Field(
        "dori",
        description=(
            "the embedding that surrogates are trained under: one that is searched at every visit,"
            " the caption's own (control), or no surrogates at all (control)"
        ),
    )
    epochs: int = Field(5, ge=0, description="visits of every named picture (authors: 5)")
    weight: float = Field(1.0, ge=0, description="of the surrogates' loss")
    learning_rate: float = Field(
        1e-5, gt=0, description="of AdamW; not stated by the authors (1e-5 is ours for SD)"
    )
    named: int = Field(4, ge=1, description="named pictures a step")
    regular: int = Field(4, ge=1, description="regular pictures a step")
    draws: int = Field(1, ge=1, description="timesteps and noises of a surrogate at a visit")
    regular_pictures: int = Field(
        200, ge=1, description="pictures of as many clean prompts, which the model makes once"
    )
    surrogates: int = Field(4, ge=1, description="of each named picture")
    tries: int = Field(16, ge=1, description="seeds from which surrogates are taken")
    sparsity: float = Field(
        0.1, ge=0, le=1, description="of wanda (paper's variant), which makes the surrogates"
    )
    inner_steps: int = Field(50, ge=0, description="of the adversary's search (attack dori: 50)")
    inner_rate: float = Field(0.1, gt=0, description="its step size (attack dori: 0.1)")
    inner_batch: int = Field(8, ge=1, description="its noises a step (attack dori: 8)")
    seed: int = Field(0, ge=0, description="of everything that is drawn")

    @model_validator(mode="after")
    def _enough_tries(self) -> Self:
        refuse_few_tries(self.tries, self.surrogates, "surrogates")
        return self

    def needed(self) -> tuple[Need, ...]:
        return self.needs if self._acts else ("fit_prompts", "clean_prompts")

    @property
    def _acts(self) -> bool:
        """Whether surrogates are trained on at all."""
        return self.adversary != "none" and self.weight > 0

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The changed parameters by name. A visit takes `2 * inner_steps * inner_batch` evaluations
        for its embedding, and three for each row that is trained on.

        Raises `UserError` where no surrogate can be had that is far enough from its picture.
        """
        prompts = list(data.fit_prompts)
        if not self.epochs or not prompts:
            return {}
        regular = self._regular(denoiser, data)
        loss = (
            self._adversarial(denoiser, data, regular, self._surrogates(denoiser, data))
            if self._acts
            else regular
        )
        steps = self.epochs * -(-len(prompts) // self.named)
        course = Course(steps, self.learning_rate, seed=self.seed, checkpoint_every=10)
        names = parameters_of(denoiser.pipe.unet, "all")
        return fine_tuned(denoiser, data, names, course, loss)

    def _regular(self, denoiser: Denoiser, data: FitData) -> Denoising:
        """The ordinary loss on pictures that the model made of clean prompts."""
        captions = [
            data.clean_prompts[i] for i in evenly(len(data.clean_prompts), self.regular_pictures)
        ]

        def make() -> dict[str, Tensor]:
            seeds = [own_seed(self.seed, "regular", caption) for caption in captions]
            return {"latents": generated(denoiser, captions, seeds)}

        latents = made_once(denoiser, data, "regular", make)["latents"].float().cpu().numpy()
        moments = np.stack([latents, np.zeros_like(latents)], 1)[:, None]  # no deviation
        return Denoising(
            denoiser.pipe,
            moments,
            captions,
            np.arange(len(captions)),
            self.regular,
            self.seed,
            denoiser.device,
        )

    def _surrogates(self, denoiser: Denoiser, data: FitData) -> dict[str, Tensor]:
        """Latents of surrogates `[P, surrogates, C, h, w]` and of the real pictures
        `[P, C, h, w]`.
        """
        if data.judge is None:
            raise ValueError("adv_finetune is fitted without what tells copies")
        prompts, most = list(data.fit_prompts), data.judge.threshold - MARGIN

        def apart(captions: dict[str, str]) -> dict[str, tuple[Tensor, np.ndarray]]:
            return pictures_apart(
                denoiser, data, captions, self.surrogates, most, self.tries, self.seed
            )

        def make() -> dict[str, Tensor]:
            pruning = Wanda(
                sparsity=self.sparsity, prompts=len(prompts), branch="cond", token_norm="none"
            )
            with pruning.attach(denoiser.pipe, pruning.fit(denoiser, data)):
                found = apart({prompt: prompt for prompt in prompts})
            near = [prompt for prompt in prompts if (found[prompt][1] > most).all()]
            found |= apart({prompt: data.anchors.get(prompt, "") for prompt in near})
            data.report("surrogates of clean captions", len(near), len(prompts))
            if lost := [prompt for prompt in prompts if (found[prompt][1] > most).all()]:
                raise UserError(
                    f"neither the pruned model nor a clean caption gives a picture for"
                    f" '{lost[0][:60]}' that is less alike to it than {most:g} within"
                    f" {self.tries} seeds; raise tries or sparsity"
                )
            # A picture with too few of them has the same ones more than once.
            rows = [
                found[prompt][0][
                    np.resize(np.flatnonzero(found[prompt][1] <= most), self.surrogates)
                ]
                for prompt in prompts
            ]
            return {"surrogates": torch.stack(rows), "real": training_latents(denoiser, data)}

        return made_once(denoiser, data, "surrogates", make)

    def _adversarial(
        self, denoiser: Denoiser, data: FitData, regular: Denoising, made: dict[str, Tensor]
    ) -> Any:
        """The loss on regular pictures and on surrogates, as the loop asks for it."""
        prompts, noising = list(data.fit_prompts), Noising(denoiser)
        own = denoiser.encode(prompts).float()
        a_visit = -(-len(prompts) // self.named)

        def loss(model: torch.nn.Module, number: int, random: torch.Generator) -> Tensor:
            whole: Tensor = regular(model, number, random)
            epoch, place = divmod(number, a_visit)
            order = np.random.default_rng([self.seed, 3, epoch]).permutation(len(prompts))
            rows = [int(row) for row in order[place * self.named : (place + 1) * self.named]]
            given = own[rows]
            if self.adversary == "dori":
                given = self.adversarial(
                    model, noising, made["real"][rows], given, [prompts[row] for row in rows], epoch
                )
            many = [row for row in rows for _ in range(self.draws)]
            which = torch.randint(self.surrogates, (len(many),), generator=random)
            clean = made["surrogates"][many, which].float()
            times = noising.times(len(many), random)
            noise = noising.noise_like(clean, random)
            predicted = noising.predicted(
                model,
                noising.noised(clean, times, noise),
                times,
                given.repeat_interleave(self.draws, 0),
            )
            against = torch.nn.functional.mse_loss(predicted, noising.target(clean, times, noise))
            return whole + self.weight * against

        return loss

    def adversarial(
        self,
        unet: torch.nn.Module,
        noising: Noising,
        real: Tensor,
        own: Tensor,
        prompts: list[str],
        visit: int,
    ) -> Tensor:
        """Embeddings `[P, T, D]` that bring real pictures `[P, C, h, w]` back, at one visit. The
        search begins at the caption's embedding and, every other visit, at normal numbers.
        """

        def stream(prompt: str, purpose: str) -> torch.Generator:
            return torch.Generator().manual_seed(own_seed(self.seed, prompt, visit, purpose))

        beginnings = own
        if visit % 2:
            drawn = [
                torch.randn(own.shape[1:], generator=stream(prompt, "init")) for prompt in prompts
            ]
            beginnings = torch.stack(drawn).to(own.device)
        streams: list[Stream] = [
            (stream(prompt, "time"), stream(prompt, "noise")) for prompt in prompts
        ]
        return searched(
            unet,
            noising,
            real,
            beginnings,
            streams,
            self.inner_steps,
            self.inner_rate,
            self.inner_batch,
        )

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Put the trained parameters in; the originals return bit for bit."""
        with swapped(pipe.unet, state):
            yield
