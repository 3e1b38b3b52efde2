"""What the attack finds out, under which threat model, and its source.

Copy this file to `mine.py`; name it in a suite as `[attacks.mine]`, or install it as a plug-in.
"""

from itertools import combinations
from typing import ClassVar

import numpy as np
from pydantic import Field

from bench import Attack, PerImage, PerSet, Shown, Target, Unmeasurable


class Template(Attack):
    """Prompts that give nearly the same picture from different seeds: one line that `bench list`
    shows.
    """

    # api: may only generate; weights: also `with target.weights() as denoiser:`
    threat: ClassVar = "api"
    names: ClassVar = ("repeating_prompts",)  # of the scores it gives
    # its column
    shown: ClassVar = {
        "repeating_prompts": Shown(
            heading="repeating", meaning="share of memorized prompts with two pictures alike"
        )
    }
    version: ClassVar = 1  # raise it when numbers change

    images: int = Field(4, ge=2, description="generations a prompt")
    distance: float = Field(
        0.1,
        ge=0,
        description="root mean squared difference, of 1.0, below which two pictures are the same",
    )

    def run(self, target: Target) -> dict[str, PerImage | PerSet]:
        """Generations come from the store where it has them, and are the ones that metrics see."""
        prompts = target.suite.prompts("memorized")
        if not prompts:
            raise Unmeasurable("the suite has no memorized prompts")
        pictures = (
            np.stack(target.generate(prompts, self.images).pictures()).astype(np.float64) / 255
        )
        by_prompt = pictures.reshape(len(prompts), self.images, -1)
        closest = [
            min(np.sqrt(((a - b) ** 2).mean()) for a, b in combinations(rows, 2))
            for rows in by_prompt
        ]
        table = (np.array(closest)[:, None] < self.distance).astype(float)
        return {
            "repeating_prompts": PerImage(
                table, prompts, unit="share of prompts", higher_is_better=False, proportion=True
            )
        }
