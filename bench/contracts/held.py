"""What an attacker who knows a picture works with: the pictures, the model that it holds, and the
stages of its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.base.digests import seed_of
from bench.base.errors import UserError
from bench.base.pictures import centred_square, read_image

if TYPE_CHECKING:
    from pathlib import Path

    from bench.diffusion.denoiser import Denoiser
    from bench.diffusion.request import Request, Step
    from bench.suite.prompts import Prompt

# base: the model without the mitigation; edited: with its weights as the method left them, and
# nothing else of the method; served: behind all doors of the method
Holding = Literal["base", "edited", "served"]
Arrays = Mapping[str, np.ndarray]  # what a stage found out about one picture, by name
Guide = Callable[["Step"], Tensor]


@dataclass(frozen=True)
class Known:
    """A picture that the attacker knows, with its caption: one that the model memorized, or a
    control that it was never trained on.

    `seeds` are those of the caption's images, `images` of them in this generation. `root` tells
    the random streams of one suite from those of another.
    """

    prompt: Prompt
    picture: Path
    memorized: bool
    seeds: tuple[int, ...]
    root: int

    def random(self, *purpose: object) -> torch.Generator:
        """A generator on the CPU for one purpose ("noise", "bank", ...). It depends on nothing
        but the suite's seed, the caption's id and text, and the purpose: not on what else is
        attacked.
        """
        words = [self.root, self.prompt.id, self.prompt.text, *purpose]
        return torch.Generator().manual_seed(seed_of(*words))

    def pixels(self, side: int) -> np.ndarray:
        """The centre of the picture at the model's size, uint8 `[side, side, 3]`."""
        return centred_square(read_image(self.picture), side)


@dataclass(frozen=True)
class Held:
    """A model in the attacker's hands.

    Gradients reach what is fed to it; its weights take no part in them, and must not be changed.
    Of a model that is only `served`, the denoiser tells how it is fed (timesteps, captions as
    embeddings), and pictures come from `sample`.
    """

    holding: Holding
    denoiser: Denoiser
    side: int
    sample_: Callable[[Request, Guide | None, int], Tensor]

    def sample(self, request: Request, guide: Guide | None = None, start: int = 0) -> Tensor:
        """Final latents `[B, C, h, w]` of a request, by the suite's sampler and without gradients.

        `guide` replaces classifier-free guidance; a served model has the method's and refuses one.
        `start` as for `trajectory`.
        """
        return self.sample_(request, guide, start)

    def request(self, targets: Sequence[Known], images: int) -> Request:
        """The first `images` images of each caption as the suite asks for them, row by row."""
        prompts = [known.prompt.text for known in targets for _ in range(images)]
        seeds = [seed for known in targets for seed in known.seeds[:images]]
        return self.denoiser.request(prompts, seeds)

    def handing_in(self, request: Request, embeddings: Tensor) -> Request:
        """The request with embeddings `[B, T, D]` in place of those of its prompts, for which
        methods that read the prompts find these embeddings too.

        Raises `UserError` for embeddings of another shape than the prompts have, such as those of
        one text where the model reads prompts in chunks.
        """
        from bench.diffusion.request import HandedIn

        if embeddings.shape[1:] != request.embeddings.shape[1:]:
            handed, read = (
                "x".join(map(str, rows.shape[1:])) for rows in (embeddings, request.embeddings)
            )
            raise UserError(
                f"an attack hands in embeddings of {handed} numbers, and the model reads prompts as"
                f" {read}: the attack does not work with this model's [model] chunks"
            )
        given, made = embeddings.to(request.embeddings), dict[tuple[str, bytes], HandedIn]()
        prompts = []
        for prompt, row in zip(request.prompts, given, strict=True):
            # Equal embeddings of a caption are one, which a method need not look into twice.
            key = (str(prompt), row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            prompts.append(made.setdefault(key, HandedIn(str(prompt), row)))
        return request.replace(prompts=tuple(prompts), embeddings=given)

    def drawn(self, request: Request, guide: Guide | None = None, start: int = 0) -> np.ndarray:
        """The pictures of a request, uint8 `[B, H, W, 3]`, batch by batch; `guide` sees each batch
        as a request of its own, so it may use nothing that has a row for every image.
        """
        return np.concatenate(
            [
                self.denoiser.decode(self.sample(batch, guide, start))
                for _, batch in self.batches(request)
            ]
        )

    def batches(self, request: Request) -> Iterator[tuple[slice, Request]]:
        """A request in parts of the suite's batch size: which rows, and the request of them."""
        size = self.denoiser.batch_size
        for first in range(0, len(request.prompts), size):
            part = slice(first, first + size)
            yield part, request.rows(part)

    def latents(self, targets: Sequence[Known]) -> Tensor:
        """The known pictures as clean latents `[P, C, h, w]`."""
        return self.denoiser.encoded(np.stack([known.pixels(self.side) for known in targets]))


@dataclass(frozen=True)
class Stage:
    """One part of an attack's work on its pictures, whose result is kept by picture.

    name       of the stage, the same for attacks that share it
    holding    the model that it works on; for the ceiling it is always the base model
    settings   whatever else decides its result, as JSON can hold it
    work       called with the model, some pictures, and what the stages before found about each;
               gives arrays for each picture. Rows must not depend on each other.
    seeded     whether it uses the caption's seeds, so that another generation finds something else
    at_once    pictures that one call gets
    seen       what of a generation, uint8 `[H, W, 3]`, the copy descriptor gets; all of it for
               None. What decides it belongs into `settings`

    The last stage of an attack gives `pictures`, uint8 `[marks, images, H, W, 3]`: what came out
    after each of its efforts, the first of which is no effort at all; and `chosen`, int `[]`: the
    mark that the attacker would go by, which must not be told from the pictures' likeness to the
    known one (the last mark where it is not given).
    """

    name: str
    holding: Holding
    settings: Mapping[str, Any]
    work: Callable[[Held, Sequence[Known], Sequence[Arrays]], Sequence[Arrays]]
    seeded: bool = True
    at_once: int = 1
    seen: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Finding:
    """What came of one known picture.

    `features` float32 `[marks, images, d]`: the descriptor of every generation. `chosen`: the mark
    that the attacker goes by. `shown`: some generations of that mark, as PNG files. `numbers`: the
    other arrays of the last stage. `made_by`: what made them, as far as it may decide them.
    """

    known: Known
    features: np.ndarray
    chosen: int
    shown: tuple[bytes, ...] = ()
    numbers: Arrays = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)
