"""What the method does to memorization and how, with its source (authors, venue, arXiv number).

Copy this file to `mine.py`; the file's name is the method's name. Keep the doors that the method
uses, delete the others. Every door has a working default, so a method is often one door of a few
lines.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from bench import Denoiser, FitData, Method, Request, State, Step


class Template(Method):
    """Guide less in the first steps: one line that `bench list` shows."""

    # prompt, embedding, noise, guidance, attention, activations or weights
    where: ClassVar = "guidance"
    needs: ClassVar = ()  # "fit_prompts", "clean_prompts", "training_images", "base", ...: of `fit`
    paper: ClassVar = ""  # "Author et al. 2026, arXiv:..."
    version: ClassVar = 1  # raise it when results change
    neutral: ClassVar = {"strength": 0}  # parameters under which nothing changes
    swept: ClassVar = ("strength", (0.1, 0.25, 0.5, 0.75, 1))  # `bench sweep`: from least to most

    strength: float = Field(0.5, ge=0, le=1, description="share of the guidance that is withheld")
    steps: int = Field(5, ge=0, description="first steps that are concerned")

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """Once a suite, timed and cached: learn from `data`, return tensors by name."""
        return {}

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Around sampling: edit `pipe.unet`'s weights or put hooks on it; undo it bit for bit, also
        after an exception.
        """
        try:
            yield
        finally:
            pass

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """Once a batch: `request.replace(prompts=..., embeddings=..., latents=...,
        attention_mask=...)`.
        """
        return request

    def guide(self, step: Step, state: State) -> Tensor:
        """Every step: combine `step.unconditional` and `step.conditional`, epsilon `[B, C, h,
        w]`.
        """
        scale = step.guidance_scale
        return step.guided(
            scale * (1 - self.strength) if step.index < self.steps and self.strength else scale
        )
