"""Keep of a fine-tuned model's update what lies along the weights that it was added to: our
reconstruction after Base-Anchored Filtering (arXiv 2605.10439), whose score and threshold were not
found.

Known of the source are its abstract and reviews: the update of each layer is taken apart into
channels by singular values, channels that lie along the principal subspace of the base weight are
kept and others suppressed, and no data and no training is needed. The idea is that what a model
learns in general bends directions that the base has already, while single pictures are written
where it has none. How channels are scored, how large the subspace is, where the threshold lies, in
which layers, and whether channels are dropped or weakened is not known.

Ours: the score of a channel is the share of both its vectors that lies in the base weight's
principal subspaces, over what chance gives (`methods/_channels.py`); the subspaces hold the share
`rho` of the squared singular values; the share `q` of all channels of the model with the lowest
scores is dropped, whole. Linear layers and 1x1 convolutions of the UNet and the text encoder are
filtered, and what else was fine-tuned stays.

A model with less of its update copies less in any case. So the controls belong to the method: as
many channels at random, the whole update weakened to the same norm, and the reverse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import (
    Denoiser,
    FitData,
    Method,
    Need,
    Report,
    State,
    Swept,
    UserError,
    Where,
    swapped,
    write_lora,
)
from methods._channels import (
    Channels,
    Layer,
    alignments,
    changed_layers,
    channels_of,
    other_changes,
)


class Baf(Method):
    """Drop those channels of a fine-tuning update that lie least along the base model's weights
    (our reconstruction after Base-Anchored Filtering).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("base",)
    paper: ClassVar[str] = "our reconstruction after arXiv:2605.10439"
    neutral: ClassVar[dict[str, Any] | None] = {"q": 0}
    swept: ClassVar[Swept | None] = ("q", (0.1, 0.25, 0.5, 0.75))

    q: float = Field(0.25, ge=0, le=1, description="share of the update's channels that is dropped")
    rho: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="share of the base weight's squared singular values in its principal subspace",
    )
    control: Literal["none", "random", "weight", "reverse"] = Field(
        "none",
        description=(
            "none: drop the least aligned; random: as many at random; weight: weaken the whole"
            " update to the norm that would be left; reverse: drop the most aligned"
        ),
    )
    seed: int = Field(0, ge=0, description="of the random control")

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The weights that change, by part and parameter, without any evaluation of a model."""
        if not self.q:
            return {}
        assert data.base is not None  # it is in `needs`
        found: State = {}
        for layer, channels, factors in self.filtered(denoiser, data.base, data.report):
            if bool((factors == 1).all()):
                continue
            weight = layer.base.double()
            weight = weight + channels.product(factors).reshape(weight.shape)
            found[f"{layer.name}.weight"] = weight.to(layer.weight.dtype)
        return found

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Put the filtered weights in; the originals return bit for bit."""
        parts: dict[str, State] = {}
        for name, value in state.items():
            part, _, parameter = name.partition(".")
            parts.setdefault(part, {})[parameter] = value
        with ExitStack() as stack:
            for part, values in parts.items():
                stack.enter_context(swapped(getattr(pipe, part), values))
            yield

    def filtered(
        self, model: Denoiser, base: Denoiser, report: Report
    ) -> Iterator[tuple[Layer, Channels, Tensor]]:
        """Each layer that was fine-tuned with the channels of its update, and what each is
        multiplied with, float64 `[r]`.

        Raises `UserError` where no layer was.
        """
        layers = list(changed_layers(model.pipe, base.pipe))
        if not layers:
            raise UserError(
                "the linear layers of the model are those of its base model: there is no update to"
                " filter"
            )
        scores = list[Scored]()
        for number, layer in enumerate(layers):
            report("filter", number, len(layers))
            scores.append(self.scored(layer))
        report("filter", len(layers), len(layers))
        if not any(len(one.score) for one in scores):
            raise UserError(
                "the model differs from its base model by rounding alone: there is no update to"
                " filter"
            )
        # Taken apart again: the channels of a whole model would not fit the memory.
        for layer, factors in zip(layers, self.factors(scores), strict=True):
            yield layer, channels_of(layer, len(factors)), factors

    def scored(self, layer: Layer) -> Scored:
        """What decides which channels of a layer are dropped."""
        channels = channels_of(layer)
        inside, chance = alignments(layer.base, channels, self.rho)
        score = inside / chance if chance else inside
        return Scored(channels.strength.cpu(), score.cpu())

    def factors(self, scores: list[Scored]) -> list[Tensor]:
        """What the channels of each layer are multiplied with: 0 for those that are dropped."""
        score = torch.cat([one.score for one in scores])
        count = round(self.q * len(score))
        order = score.argsort(stable=True)
        if self.control == "random":
            order = torch.randperm(len(score), generator=torch.Generator().manual_seed(self.seed))
        elif self.control == "reverse":
            order = order.flip(0)
        factors = torch.ones(len(score), dtype=torch.float64)
        factors[order[:count]] = 0
        if self.control == "weight" and count:
            energy = torch.cat([one.strength for one in scores]).square()
            factors = ((energy * factors).sum() / energy.sum()).sqrt().expand(len(score))
        return list(factors.split([len(one.score) for one in scores]))

    def write(self, path: Path, model: Denoiser, base: Denoiser) -> str:
        """Write the filtered update as a LoRA file for the base model, and return who it is: the
        sha256 of its tensors. What is not filtered stands there whole.

        Raises `UserError` where there is no update or nothing is left of it.
        """
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for layer, channels, kept in self.filtered(model, base, lambda *_: None):
            kept = kept.to(channels.strength)
            left = kept > 0
            if not bool(left.any()):
                continue
            root = (channels.strength * kept)[left].sqrt()
            up, down = channels.left[:, left] * root, root[:, None] * channels.right[left]
            ones = (1,) * (layer.weight.ndim - 2)
            factors[layer.name] = (up.reshape(*up.shape, *ones), down.reshape(*down.shape, *ones))
        return write_lora(path, factors, other_changes(model.pipe, base.pipe))


@dataclass(frozen=True)
class Scored:
    """Of each channel of a layer, float64 `[r]` on the CPU: how strong it is, and its score."""

    strength: Tensor
    score: Tensor
