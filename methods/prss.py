"""Another prompt for the same thing, and guidance that turns against the given one (PRSS: Chen et
al., CVPR 2025, arXiv 2504.18032).

At the first step the pull of a memorized prompt, conditional minus unconditional prediction, is
long. Semantic search tries other prompts for it, one after the other, until the pull is no longer
than `l_ss`, and takes the shortest where none is. From then on the length m of the chosen prompt's
pull is watched. With e_o the prediction for the given prompt and e_m the one for the chosen prompt,
prompt re-anchoring takes the guided prediction

    e_o + s (e_m - e_o) + (g - s) (e_m - e_u),    s = min(1 + (g - 1) (m - l_pr) / (M - l_pr), g)

where m is above `l_pr`. At m = `l_pr` it is ordinary guidance with the chosen prompt, and from m =
M (`full`) the given prompt is a negative prompt.

The authors read 25 paraphrases a prompt, written by a language model, from a file. Here they are
the clean prompts that share most of their words with the prompt, rare words counting more; one that
shares none is no paraphrase. The released code takes the norm over the batch of a prompt; here
every image has a norm, a choice and a guidance of its own. The code evaluates both branches of both
prompts; here the empty prompt is evaluated once, and the given one only where it is made use of.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench import (
    Added,
    Denoiser,
    FitData,
    Method,
    Need,
    Request,
    State,
    Step,
    Swept,
    Where,
    trajectory,
)
from methods._predictions import Evaluating, carrying, norms, predicted


class Prss(Method):
    """Search another prompt with a weaker pull, and guide away from the given one while the pull is
    strong (PRSS, Chen et al.).
    """

    where: ClassVar[Where] = "guidance"
    needs: ClassVar[tuple[Need, ...]] = ("clean_prompts",)
    paper: ClassVar[str] = "Chen et al. 2025, arXiv:2504.18032"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"l_ss": None, "quantile": 1.0}
    swept: ClassVar[Swept | None] = ("quantile", (0.99, 0.9, 0.75, 0.5, 0.25, 0.05))

    l_ss: float | None = Field(
        None,
        gt=0,
        description=(
            "length of the pull at the first step above which other prompts are tried; 1 for Stable"
            " Diffusion 1.4, else the quantile"
        ),
    )
    quantile: float = Field(
        0.95,
        ge=0,
        le=1,
        description="of that length on clean prompts, where l_ss is not given; 1 is never",
    )
    l_pr: float | None = Field(
        None,
        gt=0,
        description=(
            "length of the chosen prompt's pull above which guidance turns against the given"
            " prompt; 3 for Stable Diffusion 1.4, else the quantile"
        ),
    )
    pr_quantile: float = Field(
        0.9,
        ge=0,
        le=1,
        description="of the length on clean prompts over all steps, where l_pr is not given",
    )
    full: float | None = Field(
        None,
        gt=0,
        description=(
            "M, the length from which the given prompt is a negative prompt, above l_pr; 5 for"
            " Stable Diffusion 1.4, else the quantile"
        ),
    )
    full_quantile: float = Field(
        0.999,
        ge=0,
        le=1,
        description="of the length on clean prompts over all steps, where M is not given",
    )
    paraphrases: int = Field(
        25, ge=0, description="other prompts tried at most; 25 are published, 0 leaves the prompt"
    )
    calibration_prompts: int = Field(
        64,
        ge=1,
        description="clean prompts that quantiles are taken over, the first of the suite's list",
    )
    seed: int = Field(0, ge=0, description="of the noise for the quantiles")

    @model_validator(mode="after")
    def _ascending(self) -> Prss:
        if self.l_pr is not None and self.full is not None and self.full <= self.l_pr:
            raise ValueError(f"full ({self.full:g}) must be above l_pr ({self.l_pr:g})")
        if self.l_pr is None and self.full is None and self.full_quantile <= self.pr_quantile:
            raise ValueError(
                f"full_quantile ({self.full_quantile:g}) must be above pr_quantile"
                f" ({self.pr_quantile:g})"
            )
        return self

    @property
    def _never(self) -> bool:
        return self.l_ss is None and self.quantile == 1

    def needed(self) -> tuple[Need, ...]:
        return () if self._never else self.needs

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """`l_ss`, `l_pr` and `full`, scalars, given or measured; and `prompts`, all clean prompts
        as the bytes of one text. Costs two row evaluations a step and clean prompt, for the first
        step alone where the others' thresholds are given, and none where all are.
        """
        if self._never:
            return {}
        given = {"l_ss": self.l_ss, "l_pr": self.l_pr, "full": self.full}
        first, every = self._lengths(denoiser, data) if None in given.values() else ([], [])
        quantiles = {"l_ss": self.quantile, "l_pr": self.pr_quantile, "full": self.full_quantile}
        levels = {
            name: torch.tensor(value, dtype=torch.float64)
            if value is not None
            else torch.quantile(torch.cat(first if name == "l_ss" else every), quantiles[name])
            for name, value in given.items()
        }
        # A length that all clean prompts share would leave no room between both.
        levels["full"] = torch.maximum(levels["full"], levels["l_pr"] * 1.001)
        return levels | {"prompts": _as_bytes(data.clean_prompts)}

    def _lengths(self, denoiser: Denoiser, data: FitData) -> tuple[list[Tensor], list[Tensor]]:
        """Of clean prompts under ordinary guidance: the pull's length at the first step, and at all
        steps that are needed, float64 `[B]` each.
        """
        calls = None if self.l_pr is None or self.full is None else 1
        prompts = data.clean_prompts[: self.calibration_prompts]
        first: list[Tensor] = []
        every: list[Tensor] = []

        def guide(step: Step) -> Tensor:
            every.append(norms(step.conditional - step.unconditional).double().cpu())
            if step.index == 0:
                first.append(every[-1])
            return step.guided(step.guidance_scale)

        for start in range(0, len(prompts), denoiser.batch_size):
            part = prompts[start : start + denoiser.batch_size]
            request = denoiser.request(part, [self.seed + start + i for i in range(len(part))])
            with torch.no_grad():
                trajectory(denoiser, request, guide, calls)
        return first, every

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """The request with the embeddings of the chosen prompts; the first step's predictions go
        along, since the search has made them. One row evaluation for each prompt that is tried for
        an image, nothing beyond sampling for the others.
        """
        count = len(request.prompts)
        if self._never:
            request.facts.update(triggered=[False] * count, tried=[0] * count)
            return request
        l_ss = float(state["l_ss"])
        scaled, timestep = denoiser.start(request.latents)
        with torch.no_grad():
            unconditional, original = denoiser.branches(scaled, timestep, request, 0)
        conditional, embeddings = original.clone(), request.embeddings.clone()
        pooled = None if request.pooled is None else request.pooled.clone()
        before = norms(original - unconditional).tolist()
        least, tried = list(before), [0] * count
        triggered = [row for row in range(count) if before[row] > l_ss]
        clean = Paraphrases(_from_bytes(state["prompts"]))
        # What comes as an embedding has no words that another prompt could share.
        others = {
            row: [] if request.handed_in else clean.nearest(request.prompts[row], self.paraphrases)
            for row in triggered
        }
        for number in range(self.paraphrases):
            waiting = [row for row in triggered if least[row] > l_ss and number < len(others[row])]
            if not waiting:
                break
            texts, added = denoiser.texts([others[row][number] for row in waiting])
            mask = None if request.attention_mask is None else request.attention_mask[waiting]
            with torch.no_grad():
                found = denoiser.epsilon(scaled[waiting], timestep, texts, mask, 0, added)
            lengths = norms(found - unconditional[waiting]).tolist()
            for place, row in enumerate(waiting):
                tried[row] += 1
                if lengths[place] < least[row]:
                    least[row] = lengths[place]
                    conditional[row], embeddings[row] = found[place], texts[place]
                    if pooled is not None and added is not None:
                        pooled[row] = added.pooled[place]
        request.facts.update(
            triggered=[row in triggered for row in range(count)],
            tried=tried,
            length_before=before,
            length_after=least,
        )
        return carrying(
            _Searched,
            request.replace(
                embeddings=embeddings, pooled=pooled, first=(unconditional, conditional)
            ),
            denoiser=denoiser,
            given=request.embeddings,
            given_added=request.added,
            given_first=original,
            triggered=triggered,
        )

    def guide(self, step: Step, state: State) -> Tensor:
        """The guided prediction `[B, C, h, w]`: the formula above for triggered images whose pull
        is longer than `l_pr`, ordinary guidance with the chosen prompt for the others. An image
        costs a third row evaluation where the formula is made use of.
        """
        guided = step.guided(step.guidance_scale)
        request = step.request
        if not isinstance(request, _Searched) or not request.triggered:
            return guided
        l_pr, full = float(state["l_pr"]), float(state["full"])
        lengths = norms(step.conditional - step.unconditional)
        rows = [row for row in request.triggered if float(lengths[row]) > l_pr]
        if not rows:
            return guided
        given = (
            request.given_first[rows]
            if step.index == 0
            else predicted(
                step,
                rows,
                request.given[rows],
                request.given_added and request.given_added.rows(rows),
            )
        )
        guided = guided.clone()
        guided[rows] = turned(
            given,
            step.conditional[rows],
            step.unconditional[rows],
            share(lengths[rows], step.guidance_scale, l_pr, full).to(given.dtype),
            step.guidance_scale,
        )
        return guided


@dataclass(frozen=True, kw_only=True)
class _Searched(Evaluating):
    """A request for chosen prompts, which also has what was asked for."""

    given: Tensor  # embeddings of the given prompts, [B, T, D]
    given_added: Added | None  # what a UNet of Stable Diffusion XL reads beside them
    given_first: Tensor  # their predictions at the first step, [B, C, h, w]
    triggered: list[int]


def share(lengths: Tensor, scale: float, l_pr: float, full: float) -> Tensor:
    """s for pulls of some lengths `[B]`: 1 at `l_pr`, the guidance scale from `full` on."""
    room = max(full - l_pr, torch.finfo(torch.float32).tiny)
    return (1 + (scale - 1) * (lengths - l_pr) / room).clamp_max(scale)


def turned(
    given: Tensor, chosen: Tensor, unconditional: Tensor, share: Tensor, scale: float
) -> Tensor:
    """`e_o + s (e_m - e_o) + (g - s) (e_m - e_u)`, `[B, C, h, w]`, for s `[B]`."""
    s = share.reshape(-1, 1, 1, 1)
    return given + s * (chosen - given) + (scale - s) * (chosen - unconditional)


class Paraphrases:
    """Stand-ins for paraphrases: prompts of a list, by the words that they share with another."""

    def __init__(self, prompts: tuple[str, ...]) -> None:
        self.prompts = tuple(dict.fromkeys(prompts))
        self._words = [_words(prompt) for prompt in self.prompts]
        counts = Counter(word for words in self._words for word in words)
        # A word that is in every prompt says nothing, one of a few prompts much.
        self._weights = {
            word: math.log(len(self.prompts) / count) for word, count in counts.items()
        }

    def nearest(self, prompt: str, most: int) -> list[str]:
        """At most `most` other prompts, those that share most first: by the weight of the shared
        words, as a part of that of all their words. Words that no prompt of the list has do not
        count.
        """
        own, found = _words(prompt), []
        for place, words in enumerate(self._words):
            shared = self._weight(own & words)
            if shared > 0 and self.prompts[place] != prompt:
                found.append((-shared / self._weight(own | words), place))
        return [self.prompts[place] for _, place in sorted(found)[:most]]

    def _weight(self, words: set[str]) -> float:
        # in a fixed order, because a sum of floats depends on it
        return sum(self._weights.get(word, 0.0) for word in sorted(words))


def _words(prompt: str) -> set[str]:
    return set(re.findall(r"\w+", prompt.lower()))


def _as_bytes(prompts: tuple[str, ...]) -> Tensor:
    """Prompts as a tensor, uint8: what a method learns is kept as tensors."""
    return torch.tensor(list("\0".join(prompts).encode()), dtype=torch.uint8)


def _from_bytes(content: Tensor) -> tuple[str, ...]:
    return tuple(bytes(content.tolist()).decode().split("\0"))
