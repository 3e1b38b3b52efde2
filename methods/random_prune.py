"""As many random weights as `wanda` takes, row by row: the control for pruning.

What pruning random weights does to copies and to clean prompts, pruning chosen ones must beat.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench import Denoiser, FitData, MaskFunction, Method, Report, State, digest_of
from methods.wanda import Wanda


class RandomPrune(Wanda, Method):
    """A control: zero as many weights of every row as `wanda` would, in random columns."""

    paper: ClassVar[str] = ""

    draw: int = Field(0, ge=0, description="of the random columns")

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The masks of `wanda` with the columns of every row in a random order, bool `[d, m]`.

        Costs what `wanda` costs: how many weights go is known only once it has chosen.
        """
        masks = super().fit(denoiser, data)
        return {name: self.scattered(name, mask) for name, mask in masks.items()}

    def mask_functions(
        self, denoiser: Denoiser, prompts: Sequence[str], report: Report
    ) -> dict[str, MaskFunction]:
        """What `bench analyze masks` asks for. One order of columns for all calls, so the union of
        scattered masks is the scattered union.
        """

        def scattered(name: str, function: MaskFunction) -> MaskFunction:
            def masks(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
                candidates, masked = function(chosen)
                return self.scattered(name, candidates), self.scattered(name, masked)

            return masks

        chosen = super().mask_functions(denoiser, prompts, report)
        return {name: scattered(name, function) for name, function in chosen.items()}

    def scattered(self, layer: str, mask: Tensor) -> Tensor:
        """A mask `[..., d, m]` with the columns of each row in an order that follows from `draw`
        and the layer's name.
        """
        generator = torch.Generator().manual_seed(int(digest_of([self.draw, layer])[:15], 16))
        order = torch.rand(mask.shape[-2:], generator=generator).argsort(1).to(mask.device)
        return mask.gather(-1, order.expand_as(mask))
