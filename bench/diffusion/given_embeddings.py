"""A denoiser whose prompts are embeddings that are given, for code that takes only prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser


class GivenEmbeddings(Denoiser):
    """The same model as `denoiser`; `names` are prompts whose embeddings are the rows of
    `embeddings` `[P, T, D]`, and any other prompt is encoded as ever.

    `method.mask_functions(given, given.names, report)` gives the masks of embeddings. The original
    counts the evaluations.
    """

    def __init__(self, denoiser: Denoiser, embeddings: Tensor) -> None:
        # The original's pipeline and settings; its counting hooks stay on the model as they are.
        self.__dict__.update(denoiser.__dict__)
        self.names = [f"\0embedding {row}" for row in range(len(embeddings))]
        self._given = dict(zip(self.names, embeddings, strict=True))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, T, D]`: those given, and the text encoder's of other prompts."""
        others = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._given]
        known = dict(self._given)
        if others:
            known |= dict(zip(others, super().encode(others), strict=True))
        return torch.stack([known[prompt].to(self.device) for prompt in prompts])
