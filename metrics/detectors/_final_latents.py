"""What several detectors need of a run: clean estimates on the way, the finished latents, and the
model's input at the last step.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bench import Moment, Recorder


class FinalLatents(Recorder):
    """The finished picture as latents, float32 `[B, C, h, w]`: the clean estimate of the last step.

    It is not bit for bit what the sampler hands to the autoencoder. Where the scheduler ends at a
    level that still holds some noise (DDIM of Stable Diffusion, `set_alpha_to_one=False`), its last
    latents are `sqrt(a) x0 + sqrt(1 - a) e` at the lowest trained level, with a = 0.9991; the
    estimate x0 itself is what the formulas of the detectors mean.
    """

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        if moment.is_last:
            memory["clean"] = moment.clean

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, C, h, w]`."""
        return memory["clean"]


class CleanEstimates(Recorder):
    """The clean estimate of the guided prediction at some steps, float32 `[B, K, C, h, w]`.

    A step beyond the last one stands for the last.
    """

    steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="indices of steps, the first is 0"
    )

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        for step in self.steps:
            if moment.index == min(step, moment.count - 1):
                memory[str(step)] = moment.clean

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, K, C, h, w]`, in the order of `steps`."""
        return torch.stack([memory[str(step)] for step in self.steps], 1)


class LastInput(Recorder):
    """The model's input at the last step, float32 `[B, C, h, w]`."""

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        if moment.is_last:
            memory["scaled"] = moment.scaled.float()

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, C, h, w]`."""
        return memory["scaled"]
