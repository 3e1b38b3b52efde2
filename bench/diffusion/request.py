"""What is asked of a denoiser (`Request`) and what a method sees at every step (`Step`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor


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

    @property
    def handed_in(self) -> bool:
        """Whether the embeddings are the caller's own, so that no rewording of prompts reaches
        them.
        """
        return any(isinstance(prompt, HandedIn) for prompt in self.prompts)

    def replace(self, **changes: Any) -> Request:
        """The same request with other values of some fields."""
        return replace(self, **changes)


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
