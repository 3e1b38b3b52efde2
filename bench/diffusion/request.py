"""What is asked of a denoiser (`Request`) and what a method sees at every step (`Step`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One batch of B images to sample.

    `latents` `[B, C, h, w]`: unit-variance initial noise; `embeddings` and `null_embeddings` `[B,
     T, D]`: of the prompts
    and of the empty prompt; `seeds`: of each image's own generator; `attention_mask` `[B, T]`,
    bool: the tokens that
    cross-attention sees, in both branches (None: all); `first`: both predictions of the first step,
    epsilon
    `[B, C, h, w]`, where a method has made them already for these latents and embeddings; `facts`:
     a dict that a method
    may fill with lists of B numbers or truth values, which are kept beside the images.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    embeddings: Tensor
    null_embeddings: Tensor
    guidance_scale: float
    attention_mask: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    facts: dict[str, Sequence[float]] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Request:
        return replace(self, **changes)


@dataclass(frozen=True)
class Step:
    """One step of sampling as `Method.guide` sees it.

    Predictions are epsilon, `[B, C, h, w]`, whatever the model predicts.

    The model is evaluated when a prediction is first asked for: both branches in one batch, or with
    `unconditional_only` half of it. `memory` is a dict of this batch's own, empty at the first step
    and handed from step to step.
    """

    index: int
    count: int
    timestep: int
    latents: Tensor
    guidance_scale: float
    request: Request
    memory: dict[str, Any]
    # whether both branches or the unconditional alone
    predict: Callable[[bool], tuple[Tensor, Tensor]]

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.predict(True)

    @property
    def unconditional(self) -> Tensor:
        return self._both[0]

    @property
    def conditional(self) -> Tensor:
        return self._both[1]

    def unconditional_only(self) -> Tensor:
        """The unconditional prediction without evaluating the conditional one, unless that is known
        already.
        """
        return self._both[0] if "_both" in vars(self) else self.predict(False)[0]

    def guided(self, scale: float | Tensor) -> Tensor:
        """`e_u + scale (e_c - e_u)`, classifier-free guidance (Ho and Salimans 2022); `scale` may
        be `[B, 1, 1, 1]`.
        """
        return self.unconditional + scale * (self.conditional - self.unconditional)


def classifier_free_guidance(step: Step) -> Tensor:
    """What a step does when no method says otherwise."""
    return step.guided(step.guidance_scale)
