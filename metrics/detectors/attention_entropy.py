"""Entropy of cross-attention over tokens (Ren et al., ECCV 2024, arXiv 2403.11052)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bench import Detector, Needs, Observation, Recorder
from metrics.detectors._recorders import TokenMarginals


class AttentionEntropy(Detector):
    """How widely attention spreads over tokens in the last fifth of the steps, plus how much that
    of the summary tokens changed since the first step (Ren et al.).

    `D = mean E(t) + |mean E_S(t) - E_S(first)|`, means over the last fifth of the steps, with
    `E = sum of -a log a` in nats over all tokens, E_S the same sum over summary tokens alone, and
    a the attention that a token gets, averaged over heads and pixels. The published code leaves the
    absolute value out and gives NaN where attention is 0, which adds 0 here. In that code summary
    tokens are the end token and the padding, and a is averaged over layers before its entropy is
    taken; both are the defaults, and `summary` and `layers` are the other readings. Memorized is
    declared to be high, as the paper has it; Jeon et al. (2025) measured areas about 0.6 for it on
    Stable Diffusion 1.4.
    """

    needs: ClassVar[Needs] = "trajectory"
    paper: ClassVar[str] = "Ren et al. 2024, arXiv:2403.11052"
    in_chunks: ClassVar[bool] = False

    layers: Literal["pooled", "apart"] = Field(
        "pooled",
        description=(
            "pooled: entropy of the attention averaged over layers (code); apart: mean of the"
            " layers' entropies"
        ),
    )
    summary: Literal["end", "padding"] = Field(
        "end",
        description="whose change counts: of the end token and padding (code), or of padding only",
    )
    absolute: bool = Field(
        True, description="take the change without its sign (paper); the code keeps the sign"
    )

    def recorders(self) -> Sequence[Recorder]:
        return (TokenMarginals(),)

    def score(self, seen: Observation) -> np.ndarray:
        """In nats, `[P, n]`."""
        attention = seen.trace(TokenMarginals()).astype(np.float64)  # [P, n, K, layers, tokens]
        if self.layers == "pooled":
            attention = attention.mean(3, keepdims=True)
        parts = surprise(attention)
        first = seen.lengths - (self.summary == "end")
        is_summary = np.arange(parts.shape[-1]) >= first[:, None]  # [P, tokens]
        whole = parts.sum(-1).mean(-1)  # [P, n, K]
        summary = (parts * is_summary[:, None, None, None]).sum(-1).mean(-1)
        change = summary[..., 1:].mean(-1) - summary[..., 0]
        return whole[..., 1:].mean(-1) + (np.abs(change) if self.absolute else change)


def surprise(probabilities: np.ndarray) -> np.ndarray:
    """`-a log a` of each number, in nats, and 0 of 0."""
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return -probabilities * logarithms
