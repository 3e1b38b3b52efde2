"""Initial noise moved to where what the prompt adds is flat (SAIL: Jeon et al., ICML 2025, arXiv
2412.04140).

Where a memorized image is near, the difference of both predictions changes fast along itself. With
D(x) conditional minus unconditional prediction at the first step and d = D(x) / |D(x)|, the
released code brings |D(x + d)| + alpha |x| below a threshold by gradient descent on the noise x;
the second term keeps the noise from growing. The paper's text has squares and subtracts D(x) in the
first term (`form=squared`); its thresholds fit the code's form only, because the square of the
noise's norm alone is far above them.

Three things differ from the released code. The direction d is that of the present noise at every
update; the code takes the one of the first noise for all of them. An attempt that fails begins
again at new noise; the code's first three attempts begin at the same noise, and a noise that has
been found twice counts twice. And the number of attempts is bounded: after the last one the image
takes the noise of the least value seen, where the code raises the threshold for as long as it
takes. Each image of the benchmark has noise of its own, so its own noise is where the first attempt
begins, and the generator that made it gives the noise of the next ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import Denoiser, FitData, Method, Need, Request, State, Swept, Where
from methods._predictions import norms, wide


class Sail(Method):
    """Move the initial noise until the prompt's pull is no sharper there than for clean prompts
    (SAIL, Jeon et al.).
    """

    where: ClassVar[Where] = "noise"
    needs: ClassVar[tuple[Need, ...]] = ("clean_prompts",)
    paper: ClassVar[str] = "Jeon et al. 2025, arXiv:2412.04140"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"threshold": None, "quantile": 1.0}
    swept: ClassVar[Swept | None] = ("quantile", (0.99, 0.9, 0.75, 0.5, 0.25, 0.05))

    threshold: float | None = Field(
        None,
        gt=0,
        description=(
            "value above which an image's noise is moved, and to which; published with form=norm:"
            " 7.6 to 9, in the code 8.2, for Stable Diffusion 1.4, and 4 to 6 with alpha 0.01 for"
            " 2.0. By default the quantile"
        ),
    )
    quantile: float = Field(
        0.95,
        ge=0,
        le=1,
        description=(
            "of the value on clean prompts, the threshold where none is given; 1 moves nothing"
        ),
    )
    form: Literal["norm", "squared"] = Field(
        "norm",
        description=(
            "norm (code): |D(x + d)| + alpha |x|; squared (paper): |D(x + d) - D(x)|^2 +"
            " alpha |x|^2"
        ),
    )
    alpha: float = Field(
        0.05, ge=0, description="weight of the noise's norm; 0.01 for Stable Diffusion 2.0"
    )
    steps: int = Field(
        10, ge=0, description="updates of an attempt at most; with 0 noise is only drawn again"
    )
    lr: float = Field(0.05, gt=0, description="of Adam")
    attempts: int = Field(
        3, ge=1, description="attempts at most, the first one from the image's own noise"
    )
    clean_prompts: int = Field(
        200,
        ge=1,
        description="clean prompts that the quantile is taken over, the first of the suite's list",
    )
    graph_rows: int = Field(
        32,
        ge=4,
        description=(
            "rows that gradients are kept for at once, four an image, where memory is short;"
            " results do not depend on it"
        ),
    )
    seed: int = Field(0, ge=0, description="of the noise for the quantile")

    def needed(self) -> tuple[Need, ...]:
        return self.needs if self._measured() else ()

    def _measured(self) -> bool:
        return self.threshold is None and self.quantile < 1

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The threshold from clean prompts, a scalar. Costs four row evaluations for each of
        them.
        """
        if not self._measured():
            return {}
        prompts, values = data.clean_prompts[: self.clean_prompts], []
        for start in range(0, len(prompts), denoiser.batch_size):
            part = prompts[start : start + denoiser.batch_size]
            request = denoiser.request(part, [self.seed + start + i for i in range(len(part))])
            with torch.no_grad():
                values.append(self._evaluated(denoiser, request, request.latents).value)
        return {"threshold": torch.quantile(torch.cat(values).double(), self.quantile)}

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """The request with the noise that was found; the first step's predictions go along, since
        they were made to find it.

        An image below the threshold keeps its noise and costs two row evaluations beyond sampling.
        For one above it an attempt with k updates costs 8 k + 4 more (four more when others of its
        batch go on): four a value, and four a backward pass.
        """
        count = len(request.prompts)
        if self.threshold is None and self.quantile == 1:
            request.facts.update(triggered=[False] * count, updates=[0] * count)
            return request
        threshold = self.threshold if self.threshold is not None else float(state["threshold"])
        with torch.no_grad():
            best = self._evaluated(denoiser, request, request.latents)
        before, waiting = best.value.tolist(), best.above(threshold)
        triggered = set(waiting)
        updates, attempts = [0] * count, [0] * count
        streams = {row: _Stream(request, row) for row in waiting}
        size = self.graph_rows // 4
        for _ in range(self.attempts):
            for start in range(0, len(waiting), size):
                part = waiting[start : start + size]
                begin = torch.stack([streams[row].next() for row in part])
                made = self._descend(denoiser, request.rows(part), begin, threshold)
                for place, row in enumerate(part):
                    updates[row] += made.updates[place]
                    attempts[row] += 1
                    best.take(row, made.best, place)
            waiting = best.above(threshold)
        request.facts.update(
            triggered=[row in triggered for row in range(count)],
            converged=(best.value <= threshold).tolist(),
            updates=updates,
            attempts=attempts,
            value_before=before,
            value_after=best.value.tolist(),
        )
        return request.replace(latents=best.latents, first=(best.unconditional, best.conditional))

    def _evaluated(self, denoiser: Denoiser, request: Request, latents: Tensor) -> _Point:
        """Noise `[B, C, h, w]` with its value, through which gradients pass, and the predictions
        there. Four row evaluations an image.
        """
        given = latents.to(request.latents.dtype)
        unconditional, conditional = denoiser.branches(*denoiser.start(given), request, 0)
        pull = wide(conditional) - wide(unconditional)
        length = norms(pull).clamp_min(torch.finfo(pull.dtype).tiny)
        ahead = (wide(given) + pull / length.reshape(-1, 1, 1, 1)).to(given.dtype)
        without, with_prompt = denoiser.branches(*denoiser.start(ahead), request, 0)
        pull_ahead = wide(with_prompt) - wide(without)
        if self.form == "norm":
            value = norms(pull_ahead) + self.alpha * norms(given)
        else:
            value = norms(pull_ahead - pull).square() + self.alpha * norms(given).square()
        parts = (given, unconditional, conditional)
        return _Point(value, *(part.detach().clone() for part in parts))

    def _descend(
        self, denoiser: Denoiser, request: Request, begin: Tensor, threshold: float
    ) -> _Attempt:
        """One attempt for some images, from noise `[B, C, h, w]`. Every image has an optimiser of
        its own and is left alone once it has arrived, so that images do not know of each other.
        """
        leaves = [wide(row).clone().requires_grad_() for row in begin]
        optimizers = [torch.optim.Adam([leaf], lr=self.lr) for leaf in leaves]
        updates, active = [0] * len(leaves), list(range(len(leaves)))
        best: _Point | None = None
        for update in range(self.steps + 1):
            with torch.set_grad_enabled(update < self.steps):
                stacked = torch.stack([leaves[place] for place in active])
                point = self._evaluated(denoiser, request.rows(active), stacked)
            if best is None:
                best = point.detached()
            for number, place in enumerate(active):
                best.take(place, point, number)
            going = point.above(threshold)
            if update == self.steps or not going:
                break
            moved = [active[number] for number in going]
            gradients = torch.autograd.grad(
                [point.value[number] for number in going], [leaves[place] for place in moved]
            )
            for place, gradient in zip(moved, gradients, strict=True):
                leaves[place].grad = gradient
                optimizers[place].step()
                updates[place] += 1
            active = moved
        assert best is not None
        return _Attempt(best, updates)


@dataclass
class _Point:
    """Noise of some images, and what the model says there."""

    value: Tensor  # [B]
    latents: Tensor  # [B, C, h, w]
    unconditional: Tensor  # [B, C, h, w]
    conditional: Tensor  # [B, C, h, w]

    def above(self, threshold: float) -> list[int]:
        """The images whose value is above the threshold."""
        return [row for row, value in enumerate(self.value.tolist()) if value > threshold]

    def detached(self) -> _Point:
        """A copy to keep, which no gradient passes through."""
        return _Point(
            self.value.detach().clone(),
            self.latents.clone(),
            self.unconditional.clone(),
            self.conditional.clone(),
        )

    def take(self, row: int, other: _Point, place: int) -> None:
        """Make an image what another point has at `place`, where the value is less there."""
        if other.value[place] < self.value[row]:
            self.value[row] = other.value[place].detach()
            self.latents[row] = other.latents[place]
            self.unconditional[row] = other.unconditional[place]
            self.conditional[row] = other.conditional[place]


@dataclass(frozen=True)
class _Attempt:
    best: _Point  # of all noise that the attempt has seen, by image
    updates: list[int]


class _Stream:
    """The noise that an image begins its attempts at: its own first, then what its generator gives
    next.
    """

    def __init__(self, request: Request, row: int) -> None:
        self._first: Tensor | None = request.latents[row]
        self._like = request.latents[row]
        self._generator = torch.Generator().manual_seed(request.seeds[row])
        self._drawn()  # the image's own noise, which the generator gives first

    def _drawn(self) -> Tensor:
        return torch.randn(self._like.shape, generator=self._generator)

    def next(self) -> Tensor:
        """Noise `[C, h, w]`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._drawn().to(self._like)
