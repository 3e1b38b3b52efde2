"""Fine-tuning named captions to mean what clean ones mean (Ablating Concepts: Kumari et al., ICCV
2023, arXiv 2303.13516, for memorized pictures).

Pictures are made of an anchor, a clean caption of the same objects, and kept where they are no
copies. On their noised latents the model learns to answer the named caption as it answers the
anchor (whose answer takes no gradient), and to go on denoising the anchor:

    |e(x_t, c) - sg e(x_t, c_anchor)|^2 + r |e - e(x_t, c_anchor)|^2

The public code (nupurkmr9/concept-ablation, commit c11fb1bd) takes ten paraphrases of the caption
by a language model for anchors and 1,000 pictures in all; ours are one clean caption, and some
pictures of it.
"""

from collections.abc import Iterator, Mapping
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
from methods._erasure import Noising, Part, parameters_of, pictures_apart
from methods._tries import refuse_few_tries


class ConceptAblation(Method):
    """Fine-tune named captions to be answered as clean captions of the same objects (Concept
    Ablation).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("fit_prompts", "training_images", "anchors", "copy_judge")
    paper: ClassVar[str] = "Kumari et al. 2023, arXiv:2303.13516"
    neutral: ClassVar[dict[str, Any] | None] = {"steps": 0}
    swept: ClassVar[Swept | None] = ("steps", (50, 100, 200, 400))
    trial: ClassVar[Mapping[str, Any]] = {
        "steps": 3,
        "learning_rate": 0.01,
        "pictures": 2,
        "tries": 2,
    }

    part: Part = Field(
        "all",
        description=(
            "what is trained: all weights (the code for memorized pictures), cross-attention"
            " (cross), what it reads of the caption (strict), or everything else (other)"
        ),
    )
    steps: int = Field(400, ge=0, description="of the optimizer (code: 400)")
    learning_rate: float = Field(
        2e-6, gt=0, description="of AdamW (code: 5e-7 times the batch of 4, on one device)"
    )
    batch: int = Field(4, ge=1, description="pictures a step (code: 4)")
    regularisation: float = Field(
        0.2, ge=0, description="weight r of denoising the anchor (code: 0.2)"
    )
    pictures: int = Field(10, ge=1, description="of each anchor (code: 1,000 in all)")
    tries: int = Field(20, ge=1, description="seeds of each anchor from which they are taken")
    most: float = Field(
        0.5,
        gt=-1,
        le=1,
        description=(
            "largest similarity to the training picture of a picture that is taken (code: 0.5, by"
            " SSCD); where too few are so far, the least alike are taken"
        ),
    )
    seed: int = Field(0, ge=0, description="of pictures, noise and timesteps")

    @model_validator(mode="after")
    def _enough_tries(self) -> Self:
        refuse_few_tries(self.tries, self.pictures, "pictures")
        return self

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The changed parameters by name. A step takes two forward rows and two backward ones for
        each picture of its batch, a backward row counted twice.
        """
        if not self.steps:
            return {}
        prompts = list(data.fit_prompts)
        anchors = {prompt: data.anchors.get(prompt, "") for prompt in prompts}

        def make() -> dict[str, Tensor]:
            found = pictures_apart(
                denoiser, data, anchors, self.pictures, self.most, self.tries, self.seed
            )
            return {"latents": torch.stack([found[prompt][0] for prompt in prompts])}

        latents = made_once(denoiser, data, "anchors", make)["latents"]
        own = denoiser.encode(prompts).float()
        towards = denoiser.encode([anchors[prompt] for prompt in prompts]).float()
        noising = Noising(denoiser)

        def loss(model: torch.nn.Module, number: int, random: torch.Generator) -> Tensor:
            which = torch.randint(len(prompts), (self.batch,), generator=random)
            picture = torch.randint(latents.shape[1], (self.batch,), generator=random)
            clean = latents[which, picture]
            times = noising.times(self.batch, random)
            noise = noising.noise_like(clean, random)
            noised = noising.noised(clean, times, noise)
            predicted, anchored = noising.predicted(
                model,
                noised.repeat(2, 1, 1, 1),
                times.repeat(2),
                torch.cat([own[which], towards[which]]),
            ).chunk(2)
            mse = torch.nn.functional.mse_loss
            ablated = mse(predicted, anchored.detach())
            if not self.regularisation:
                return ablated
            kept = mse(anchored, noising.target(clean, times, noise))
            return ablated + self.regularisation * kept

        course = Course(
            self.steps,
            self.learning_rate,
            largest_gradient=0.0,
            seed=self.seed,
            checkpoint_every=50,
        )
        names = parameters_of(denoiser.pipe.unet, self.part)
        return fine_tuned(denoiser, data, names, course, loss)

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Put the trained parameters in; the originals return bit for bit."""
        with swapped(pipe.unet, state):
            yield
