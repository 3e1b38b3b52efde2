"""The interface of methods that mask weights, so that their masks can be analysed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from bench.diffusion.denoiser import Denoiser


Report = Callable[[str, int, int], None]


MaskFunction = Callable[[Sequence[int]], "tuple[Tensor, Tensor]"]


@runtime_checkable
class MaskedMethod(Protocol):
    """What a method that masks weights offers so that `bench analyze masks` works on it, besides
    the doors of `Method`.
    """

    def fitted_on(self, available: int) -> list[int]:
        """Positions of the prompts that `fit` uses out of `available` fit prompts."""

    def mask_functions(
        self, denoiser: Denoiser, prompts: Sequence[str], report: Report
    ) -> dict[str, MaskFunction]:
        """By layer, a function from positions in `prompts` to two bool tensors `[calls, d, m]`: the
        candidates and the masked weights.

        The model is evaluated here, once for each prompt, and never by the functions. `fit` on the
        same prompts must give the union of the masks over calls.
        """
