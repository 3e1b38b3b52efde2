"""As many random neurons a layer as `nemo` finds: the control for its search.

What deactivating random neurons does to copies and to clean prompts, the chosen ones must beat.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field

from bench import Denoiser, Method, State, digest_of
from methods._nemo_layers import Neurons, RowMasks
from methods.nemo import Localisation, Nemo


class RandomNeurons(Nemo, Method):
    """A control: deactivate as many value neurons of every layer as `nemo` would, at random."""

    paper: ClassVar[str] = ""

    draw: int = Field(0, ge=0, description="of the random neurons")

    def localise(
        self, denoiser: Denoiser, masks: RowMasks, prompt: str, state: State
    ) -> Localisation:
        """What `nemo` finds, with the channels of every layer in a random order.

        Costs what `nemo` costs: how many neurons go is known only once it has searched.
        """
        found = super().localise(denoiser, masks, prompt, state)
        sizes = [layer.out_features for layer in masks.layers.values()]
        return replace(found, neurons=self.scattered(found.neurons, sizes))

    def scattered(self, neurons: Neurons, sizes: list[int]) -> Neurons:
        """The neurons with the channels of each layer, so many as `sizes` says, in an order that
        follows from `draw`; one order for all prompts, so that prompts share as many as before.
        """
        seeds = [int(digest_of([self.draw, layer])[:15], 16) for layer in range(len(sizes))]
        orders = [
            torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
            for size, seed in zip(sizes, seeds, strict=True)
        ]
        return frozenset((layer, orders[layer][channel]) for layer, channel in neurons)
