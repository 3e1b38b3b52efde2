"""What is asked of a denoiser (`Request`) and what a method sees at every step (`Step`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Added:
    """What a UNet of Stable Diffusion XL reads beside the tokens of B texts (Podell et al. 2023,
    section 2.2).

    pooled    float `[B, P]`: each text as a whole, the projection of the second text encoder
    time_ids  float `[B, 6]`, in pixels: height and width of the original picture, top and left of
              the crop that is shown, height and width of that crop
    """

    pooled: Tensor
    time_ids: Tensor

    def rows(self, rows: slice | Sequence[int]) -> Added:
        """Those of some texts."""
        return Added(self.pooled[rows], self.time_ids[rows])

    def expand(self, count: int) -> Added:
        """Those of one text for `count` images."""
        return Added(self.pooled.expand(count, -1), self.time_ids.expand(count, -1))

    def and_then(self, other: Added) -> Added:
        """Those of these texts, then those of others."""
        return Added(
            torch.cat([self.pooled, other.pooled]), torch.cat([self.time_ids, other.time_ids])
        )


class HandedIn(str):
    """The caption that comes with an embedding `[T, D]` which the caller hands in: a text like any
    other, for which `Denoiser.encode` gives that embedding.

    It is equal to itself alone, so that nothing that was learned of the caption is taken for
    something learned of the embedding. What is made out of it by cutting or joining is plain text.
    """

    embedding: Tensor

    def __new__(cls, caption: str, embedding: Tensor) -> HandedIn:
        made = super().__new__(cls, caption)
        made.embedding = embedding
        return made

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Request:
    """One batch of B images to sample.

    prompts, seeds   B texts, and the seed of each image's own generator
    latents          float `[B, C, h, w]`: initial noise of unit variance
    embeddings       float `[B, T, D]`: of the prompts
    null_embeddings  float `[B, T, D]`: of the empty prompt
    guidance_scale   of classifier-free guidance
    attention_mask   bool `[B, T]`: the tokens that cross-attention sees, in both branches; all of
                     them for None
    lengths          int64 `[B]` on the CPU: tokens of each prompt with those of its beginning and
                     end, so padding begins there; only where sampling is recorded
    first            both predictions of the first step, epsilon `[B, C, h, w]` (unconditional, then
                     conditional), where a method has made them for these latents and embeddings
    pooled           float `[B, P]`: of the prompts as wholes; only Stable Diffusion XL has this and
                     the next two, for the others they are None
    null_pooled      float `[B, P]`: of the empty prompt
    time_ids         float `[B, 6]`: sizes and crop of the picture, as `Added` has them, the same in
                     both branches
    facts            filled by a method with lists of B numbers or truth values, which are stored
                     beside the images
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    embeddings: Tensor
    null_embeddings: Tensor
    guidance_scale: float
    attention_mask: Tensor | None = None
    lengths: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    facts: dict[str, Sequence[float]] = field(default_factory=dict)
    pooled: Tensor | None = None
    null_pooled: Tensor | None = None
    time_ids: Tensor | None = None

    @property
    def added(self) -> Added | None:
        """What the UNet reads beside the tokens of the prompts; None for Stable Diffusion 1 and
        2.
        """
        return _added(self.pooled, self.time_ids)

    @property
    def null_added(self) -> Added | None:
        """What it reads beside the tokens of the empty prompt."""
        return _added(self.null_pooled, self.time_ids)

    @property
    def both_added(self) -> Added | None:
        """Both, those of the empty prompt first, for `[2 B]` rows."""
        null, added = self.null_added, self.added
        return None if null is None or added is None else null.and_then(added)

    @property
    def handed_in(self) -> bool:
        """Whether the embeddings are the caller's own, so that no rewording of prompts reaches
        them.
        """
        return any(isinstance(prompt, HandedIn) for prompt in self.prompts)

    def replace(self, **changes: Any) -> Request:
        """The same request with other values of some fields."""
        return replace(self, **changes)

    def in_float32(self) -> Request:
        """The same request in float32."""
        tensors = {
            part.name: value.float()
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), Tensor) and value.is_floating_point()
        }
        return self.replace(**tensors)

    def rows(self, rows: slice | Sequence[int]) -> Request:
        """A request for some of the images, whose facts are its own."""

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        chosen = range(len(self.prompts))[rows] if isinstance(rows, slice) else rows
        return self.replace(
            prompts=tuple(self.prompts[row] for row in chosen),
            seeds=tuple(self.seeds[row] for row in chosen),
            latents=self.latents[rows],
            embeddings=self.embeddings[rows],
            null_embeddings=self.null_embeddings[rows],
            attention_mask=of(self.attention_mask),
            lengths=of(self.lengths),
            first=None if self.first is None else (self.first[0][rows], self.first[1][rows]),
            facts={},
            pooled=of(self.pooled),
            null_pooled=of(self.null_pooled),
            time_ids=of(self.time_ids),
        )


def _added(pooled: Tensor | None, time_ids: Tensor | None) -> Added | None:
    return None if pooled is None or time_ids is None else Added(pooled, time_ids)


@dataclass(frozen=True)
class Step:
    """Step number `index` of `count` as `Method.guide` sees it.

    Latents and predictions have the shape `[B, C, h, w]`; predictions are epsilon, whatever the
    model predicts. The model is evaluated when a prediction is first asked for: both branches in
    one batch of 2B rows, or the unconditional one alone with `unconditional_only`. `memory` is a
    dict that belongs to this batch, empty at the first step and handed from step to step.
    """

    index: int
    count: int
    timestep: int
    latents: Tensor
    guidance_scale: float
    request: Request
    memory: dict[str, Any]
    # Called with True for both branches, with False for the unconditional one (given twice).
    predict: Callable[[bool], tuple[Tensor, Tensor]]

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.predict(True)

    @property
    def predicted_both(self) -> bool:
        """Whether both predictions were asked for so far."""
        return "_both" in self.__dict__

    @property
    def unconditional(self) -> Tensor:
        """The prediction for the empty prompt, epsilon `[B, C, h, w]`."""
        return self._both[0]

    @property
    def conditional(self) -> Tensor:
        """The prediction for the prompt, epsilon `[B, C, h, w]`."""
        return self._both[1]

    def unconditional_only(self) -> Tensor:
        """The unconditional prediction at half the cost; of no use once both were asked for."""
        return self.predict(False)[0]

    def guided(self, scale: float | Tensor) -> Tensor:
        """`e_u + scale (e_c - e_u)`, classifier-free guidance (Ho and Salimans 2022); `scale` may
        be `[B, 1, 1, 1]`.
        """
        return self.unconditional + scale * (self.conditional - self.unconditional)


def classifier_free_guidance(step: Step) -> Tensor:
    """What a step does when no method says otherwise: epsilon `[B, C, h, w]`."""
    return step.guided(step.guidance_scale)
