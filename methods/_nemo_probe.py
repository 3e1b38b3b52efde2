"""One timestep of the model for fixed noise: the noise changes that NeMo compares, with and without
neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench import Added, Denoiser, UserError
from methods._nemo_layers import Neurons, RowMasks
from methods._nemo_similarity import Kind, pairwise, similarity, unit_range


@dataclass(frozen=True)
class Detection:
    """How memorization is measured. A threshold belongs to one of these and to one model."""

    similarity: Kind
    normalization: Literal["channel", "sample"]
    timestep: Literal["second", "first"]
    seeds: int
    seed: int


class Probe:
    """Noise changes `epsilon - x` of one prompt for S fixed noises x, conditional branch only; its
    masks must be hooked.
    """

    def __init__(self, denoiser: Denoiser, masks: RowMasks, detection: Detection) -> None:
        self.denoiser, self.masks, self.detection = denoiser, masks, detection
        scheduler = denoiser.new_scheduler()
        index = {"first": 0, "second": 1}[detection.timestep]
        if index >= len(scheduler.timesteps):
            raise UserError(
                "method nemo: timestep=second needs at least two sampling steps; use timestep=first"
            )
        self.timestep = scheduler.timesteps[index]
        # One draw for all seeds and no step in between, as in the reference code, which never steps
        # its scheduler.
        shape = denoiser.initial_latents([0]).shape[1:]
        noise = torch.randn(
            (detection.seeds, *shape), generator=torch.Generator().manual_seed(detection.seed)
        )
        noise = noise.to(denoiser.device, denoiser.dtype)
        self.inputs = denoiser.start(noise, index)[0]  # [S, C, h, w]

    def changes(
        self,
        embedding: Tensor,
        seeds: Sequence[int],
        sets: Sequence[Neurons],
        added: Added | None = None,
    ) -> Tensor:
        """Of the given seeds with these neurons at 0, in [0, 1], fp32 `[len(seeds), C, h, w]`;
        embedding is `[1, T, D]`, and `added` what a UNet of Stable Diffusion XL reads beside it.
        """
        # sampling has as many rows, so they fit the device
        parts, limit = [], 2 * self.denoiser.batch_size
        try:
            for start in range(0, len(seeds), limit):
                inputs = self.inputs[list(seeds[start : start + limit])]
                self.masks.set(sets[start : start + limit], 0.0)
                with torch.no_grad():
                    epsilon = self.denoiser.epsilon(
                        inputs,
                        self.timestep,
                        embedding.expand(len(inputs), -1, -1),
                        added=added and added.expand(len(inputs)),
                    )
                parts.append(epsilon.float() - inputs.float())
        finally:
            self.masks.clear()
        return unit_range(torch.cat(parts), self.detection.normalization)

    def whole(self, embedding: Tensor, added: Added | None = None) -> Tensor:
        """Of all seeds with no neuron deactivated, `[S, C, h, w]`."""
        seeds = range(self.detection.seeds)
        return self.changes(embedding, seeds, [frozenset()] * len(seeds), added)

    def alike(self, first: Tensor, second: Tensor) -> Tensor:
        return similarity(first, second, self.detection.similarity)

    def pairs(self, changes: Tensor) -> Tensor:
        """Similarity between seeds, `[S, S]`, 0 on the diagonal."""
        return pairwise(changes, self.detection.similarity)

    def calibrated(
        self, texts: Sequence[tuple[Tensor, Added | None]], over: Literal["pairs", "best"]
    ) -> float:
        """Mean plus one standard deviation of the similarity between seeds, of all pairs or of the
        best of every text, an embedding `[1, T, D]` and what is added to it.
        """
        upper = torch.ones(self.detection.seeds, self.detection.seeds).triu(1).bool()
        pairs = torch.stack([self.pairs(self.whole(*text)).cpu()[upper] for text in texts]).double()
        values = pairs if over == "pairs" else pairs.amax(1)
        return float(values.mean() + values.std())
