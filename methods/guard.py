"""Guidance away from the prompt and towards the same prompt with weaker attention to the tokens
that stand out (GUARD: Zhao et al., ICML 2026, arXiv 2603.00133).

With D = e_c - e_u as usual and e+ the prediction for the same prompt in which cross-attention to
some tokens is attenuated, a step takes e_u + g (v - r D), where g is the guidance scale, v = e+ -
e_u the pull of the attenuated prompt and r the repulsion. The tokens are found anew in every layer
of the down and mid blocks, for each image and head: those whose statistic is more than
`spike_threshold` standard deviations above the mean of all tokens but the first, and never the
first. The published repulsion is a number of its own; here it is a share of the guidance scale, so
that it means the same where a suite guides less than the published 7.5.

Where paper and released code disagree, the code is the default. It takes the largest attention
logit over all places of the picture as the statistic; the paper writes of attention mass, which is
here the mean over places of the attention itself (`spikes=mass`). It lets the repulsion fade to
nothing with a quarter of a cosine; in the paper it is constant (`decay=none`). And it takes from v
its part along D wherever both nearly agree, which the paper does not mention (`orthogonal=false`).
With the threshold of its instructions, 0.1, about half of the tokens stand out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from bench import Denoiser, Method, Request, State, Step, Swept, UserError, Where
from methods._predictions import Evaluating, carrying, norms, predicted, wide

# Of the code: above this cosine the part along D is taken away, at most so often D itself.
AGREEMENT, MOST = 0.9, 2.0


class Guard(Method):
    """Guide towards the prompt with attenuated attention and away from the prompt itself (GUARD,
    Zhao et al.).
    """

    where: ClassVar[Where] = "attention"
    paper: ClassVar[str] = "Zhao et al. 2026, arXiv:2603.00133"
    families: ClassVar = ("sd", "sdxl")
    in_chunks: ClassVar[bool] = False
    neutral: ClassVar[dict[str, Any] | None] = {"repulsion": 0, "scale": 1, "orthogonal": False}
    swept: ClassVar[Swept | None] = ("repulsion", (0.05, 0.1, 0.2, 0.4, 0.8))

    repulsion: float = Field(
        2 / 7.5,
        ge=0,
        description=(
            "r, the weight of what is guided away from, as a share of the guidance scale: 2 at 7.5"
            " in the published instructions, 3 in the code's default, 0 for attenuation alone (with"
            " spike_threshold 0.01)"
        ),
    )
    decay: Literal["cosine", "none"] = Field(
        "cosine", description="of the repulsion over the steps: cosine (code) or none (paper)"
    )
    scale: float = Field(
        0.3, ge=0, description="factor on the attention logits of tokens that stand out"
    )
    spikes: Literal["logits", "mass"] = Field(
        "logits",
        description=(
            "statistic of a token: its largest attention logit over the places of the picture"
            " (code), or its mean attention (paper)"
        ),
    )
    spike_threshold: float = Field(
        0.1,
        description="standard deviations above the mean of all tokens but the first; 0.01 or 0.1",
    )
    orthogonal: bool = Field(
        True,
        description=(
            "take from the attenuated prompt's pull its part along the prompt's, where their cosine"
            " is above 0.9 (code)"
        ),
    )

    _attenuating: bool = PrivateAttr(False)  # whether the hooks act on the call at hand

    @property
    def _nothing(self) -> bool:
        return not self.repulsion and self.scale == 1 and not self.orthogonal

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Hooks on the queries and keys of cross-attention, which act on the rows of the attenuated
        prompt only.

        Logits are linear in keys, so that a key times the scale is its logits times the scale, and
        attention stays the fused kernel.
        """
        if self.scale == 1:
            yield
            return
        handles, kept = [], dict[str, Tensor]()
        try:
            for name, layer in _cross_attention(pipe.unet).items():
                keep, attenuate = partial(self._keep, kept, name), partial(self._scaled, kept, name)
                handles.append(layer.to_q.register_forward_hook(keep))
                handles.append(layer.to_k.register_forward_hook(partial(attenuate, layer.heads)))
            yield
        finally:
            self._attenuating = False
            for handle in handles:
                handle.remove()

    def _keep(
        self, kept: dict[str, Tensor], name: str, layer: Any, args: Any, output: Tensor
    ) -> None:
        """Queries are made before keys; they wait here for them."""
        if self._attenuating:
            kept[name] = output

    def _scaled(
        self, kept: dict[str, Tensor], name: str, heads: int, layer: Any, args: Any, output: Tensor
    ) -> Tensor | None:
        """The keys `[B, T, D]`, those of tokens that stand out times the scale, head by head."""
        if not self._attenuating:
            return None
        rows, tokens, width = output.shape
        keys = output.reshape(rows, tokens, heads, width // heads)
        queries = kept.pop(name).reshape(rows, -1, heads, width // heads)
        logits = torch.einsum("bqhd,bthd->bhqt", wide(queries), wide(keys))
        found = self._spikes(logits / math.sqrt(width // heads))  # [B, heads, T]
        return torch.where(found.transpose(1, 2)[..., None], keys * self.scale, keys).reshape(
            output.shape
        )

    def _spikes(self, logits: Tensor) -> Tensor:
        """Which tokens stand out, bool `[B, heads, T]`, from logits `[B, heads, L, T]`."""
        statistic = logits.amax(2) if self.spikes == "logits" else logits.softmax(-1).mean(2)
        others = statistic[..., 1:]
        deviation = others.std(-1, keepdim=True) + 1e-6
        found = (statistic - others.mean(-1, keepdim=True)) / deviation > self.spike_threshold
        found[..., 0] = False
        return found

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """The same request; it carries the model, which the third prediction needs, to `guide`."""
        if self._nothing:
            return request
        if self.orthogonal:
            request.facts["orthogonalised"] = [0] * len(request.prompts)
        return carrying(Evaluating, request, denoiser=denoiser)

    def guide(self, step: Step, state: State) -> Tensor:
        """`e_u + g (v - r D)`, epsilon `[B, C, h, w]`. Three row evaluations an image, and two
        where nothing is attenuated. The fact `orthogonalised` says in how many steps v lost its
        part along D.
        """
        if self._nothing:
            return step.guided(step.guidance_scale)
        pull = step.conditional - step.unconditional
        target = self._target(step, pull)
        fading = math.cos(math.pi / 2 * step.index / step.count) if self.decay == "cosine" else 1.0
        towards = target - self.repulsion * fading * pull
        return step.unconditional + step.guidance_scale * towards

    def _target(self, step: Step, pull: Tensor) -> Tensor:
        """v, what is guided towards, `[B, C, h, w]`."""
        target = pull
        if self.scale != 1:
            everything = list(range(len(step.latents)))
            self._attenuating = True
            try:
                attenuated = predicted(
                    step, everything, step.request.embeddings, step.request.added
                )
            finally:
                self._attenuating = False
            target = attenuated - step.unconditional
        if not self.orthogonal:
            return target
        apart, agrees = without_agreement(target, pull)
        so_far = step.request.facts["orthogonalised"]
        step.request.facts["orthogonalised"] = [
            count + int(now) for count, now in zip(so_far, agrees.tolist(), strict=True)
        ]
        return apart


def without_agreement(target: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """`target` without its part along `pull`, image by image of `[B, C, h, w]`, where their cosine
    is above 0.9; and for which images that is so, bool `[B]`.
    """
    a, b = wide(target).flatten(1), wide(pull).flatten(1)
    tiny = torch.finfo(a.dtype).tiny
    product, lengths = (a * b).sum(1), norms(target) * norms(pull)
    agrees = product / lengths.clamp_min(tiny) > AGREEMENT
    share = (product / b.square().sum(1).clamp_min(tiny)).clamp(-MOST, MOST)
    taken = torch.where(agrees, share, 0.0).to(target.dtype).reshape(-1, 1, 1, 1)
    return target - taken * pull, agrees


def _cross_attention(unet: torch.nn.Module) -> dict[str, Any]:
    """The `attn2` modules of the down and mid blocks by name."""
    layers = {
        name: module
        for name, module in unet.named_modules()
        if name.startswith(("down_blocks.", "mid_block.")) and name.endswith(".attn2")
    }
    if not layers or any(getattr(layer, "fused_projections", False) for layer in layers.values()):
        raise UserError(
            "method guard: the model's down and mid blocks have no attn2.to_k layers (are its"
            " projections fused?)"
        )
    return layers
