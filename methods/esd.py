"""Erasing by fine-tuning away from the caption (Erased Stable Diffusion: Gandikota et al., ICCV
2023, arXiv 2303.07345).

The model learns to answer a named caption c as the frozen model answers with guidance turned round:

    e(x_t, c)  ->  e0(x_t, c') - eta (e0(x_t, c) - e0(x_t))

on latents that the frozen model makes of the caption itself, stopped at a random step. c' is the
caption (the public code, rohitgandikota/erasing, commit 25613d27) or its anchor, a clean caption of
the same objects. The code's eta of 2 is the paper's of 1: (1 - eta) e_c + eta e_u is
e_u - (eta - 1) (e_c - e_u).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
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
    swapped,
    trajectory,
)
from methods._erasure import Noising, Part, own_seed, parameters_of

PARTS: dict[str, Part] = {"x": "cross", "u": "other", "strict": "strict", "full": "all"}


class Esd(Method):
    """Fine-tune away from named captions by negative guidance of the frozen model (Erased Stable
    Diffusion).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("fit_prompts", "anchors")
    paper: ClassVar[str] = "Gandikota et al. 2023, arXiv:2303.07345"
    neutral: ClassVar[dict[str, Any] | None] = {"iterations": 0}
    swept: ClassVar[Swept | None] = ("iterations", (25, 50, 100, 200))
    trial: ClassVar[Mapping[str, Any]] = {"iterations": 2, "learning_rate": 0.01}

    part: Literal["x", "u", "strict", "full"] = Field(
        "x",
        description=(
            "what is trained: cross-attention (x), everything else (u), what cross-attention reads"
            " of the caption (strict), or all (full)"
        ),
    )
    eta: float = Field(
        2.0, description="strength; 2 in the code is 1 in the paper, 0 changes nothing"
    )
    towards: Literal["own", "anchor"] = Field(
        "own", description="c': the caption itself (code), or a clean caption of the same objects"
    )
    iterations: int = Field(200, ge=0, description="of each named caption (code: 200)")
    batch: int = Field(1, ge=1, description="captions a step (code: 1)")
    learning_rate: float = Field(5e-5, gt=0, description="of Adam (code: 5e-5)")
    guidance: float = Field(
        3.0, ge=0, description="of the runs that the latents come from (code: 3)"
    )
    seed: int = Field(0, ge=0, description="of steps, latents and the order of captions")

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The changed parameters by name. An iteration takes as many evaluations as the run up to
        its step, three of the frozen model and three of the one in training, for each caption.
        """
        prompts = list(data.fit_prompts)
        steps = -(-self.iterations * len(prompts) // self.batch)
        if not steps:
            return {}
        unet, noising = denoiser.pipe.unet, Noising(denoiser)
        names = parameters_of(unet, PARTS[self.part])
        before = {
            name: value.detach().clone()
            for name, value in unet.named_parameters()
            if name in set(names)
        }
        own = denoiser.encode(prompts).float()
        anchors = denoiser.encode([data.anchors.get(prompt, "") for prompt in prompts]).float()
        timesteps = denoiser.timesteps

        def loss(model: torch.nn.Module, number: int, random: torch.Generator) -> Tensor:
            place = int(torch.randint(len(timesteps), (), generator=random))
            first = number * self.batch
            rows = [(first + row) % len(prompts) for row in range(self.batch)]
            seeds = [own_seed(self.seed, "esd", number, row) for row in range(self.batch)]
            with swapped(unet, before), torch.no_grad():
                scaled = self.latents(denoiser, own[rows], seeds, place)
                times = timesteps[place].expand(self.batch)
                empty = denoiser.null_embeddings(self.batch).float()
                asked = [own[rows], empty, *([anchors[rows]] if self.towards == "anchor" else [])]
                given = [noising.predicted(unet, scaled, times, embeddings) for embeddings in asked]
                target = self.target(*given)
            predicted = noising.predicted(model, scaled, times, own[rows])
            return torch.nn.functional.mse_loss(predicted, target)

        course = Course(
            steps, self.learning_rate, weight_decay=0.0, largest_gradient=0.0, seed=self.seed
        )
        return fine_tuned(denoiser, data, names, course, loss)

    def target(self, own: Tensor, empty: Tensor, towards: Tensor | None = None) -> Tensor:
        """What the model shall predict for the caption, from predictions of the frozen one. It is
        the same combination of noise and of velocity, since its weights add up to 1.
        """
        return (own if towards is None else towards) - self.eta * (own - empty)

    def latents(
        self, denoiser: Denoiser, embeddings: Tensor, seeds: list[int], place: int
    ) -> Tensor:
        """Latents of captions on their way at step `place`, as the model takes them."""
        count = len(seeds)
        request = denoiser.request([""] * count, seeds).replace(
            embeddings=embeddings,
            null_embeddings=denoiser.null_embeddings(count).float(),
            guidance_scale=self.guidance,
        )
        if not place:
            return denoiser.start(request.latents)[0]
        latents = trajectory(
            denoiser, request, lambda step: step.guided(step.guidance_scale), calls=place
        )
        scheduler = denoiser.new_scheduler()
        scaled: Tensor = scheduler.scale_model_input(latents, scheduler.timesteps[place])
        return scaled

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Put the trained parameters in; the originals return bit for bit."""
        with swapped(pipe.unet, state):
            yield
