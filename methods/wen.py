"""Prompt-embedding optimisation before the first step (Wen et al., ICLR 2024, arXiv 2407.21720).

A memorized prompt shows in the magnitude of conditional minus unconditional prediction at the first
step. Gradient descent on the prompt's embedding brings it below a target; prompts below it stay
untouched. Where paper and reference code disagree, the default is the per-image reading with a
frozen first token, and `preset=reference` is the code's arithmetic.

Of Stable Diffusion XL the embeddings of the tokens are optimised, and the pooled text stays the
prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import Added, Denoiser, FitData, Method, Need, Request, State, Swept, Where


class Wen(Method):
    """Optimise the prompt embedding until the first step's guidance is no stronger than for clean
    prompts (Wen et al.).
    """

    where: ClassVar[Where] = "embedding"
    needs: ClassVar[tuple[Need, ...]] = ("clean_prompts",)
    version: ClassVar[int] = 2  # 2: the reference preset's bound follows the size of the group
    paper: ClassVar[str] = "Wen et al. 2024, arXiv:2407.21720"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"target": 1e9}
    swept: ClassVar[Swept | None] = ("quantile", (0.99, 0.9, 0.75, 0.5, 0.25, 0.05))

    target: float | None = Field(
        None,
        gt=0,
        description=(
            "magnitude to reach, epsilon units: of an image (1.5 for SD 1.4) or, under"
            " preset=reference, of `target_rows` images together (3 for 4); else the quantile"
        ),
    )
    target_rows: int = Field(
        4,
        ge=1,
        description=(
            "under preset=reference the number of images that a given target is the norm over; a"
            " group of another size has a bound that grows with the root of its images"
        ),
    )
    quantile: float = Field(
        0.95,
        ge=0,
        le=1,
        description="of the magnitude on clean prompts: the target where none is given",
    )
    clean_prompts: int = Field(
        200,
        ge=1,
        description="clean prompts that the quantile is taken over, the first of the suite's list",
    )
    iterations: int = Field(10, ge=0, description="updates at most")
    lr: float = Field(0.05, gt=0, description="of AdamW")
    preset: Literal["image", "reference"] = Field(
        "image",
        description=(
            "image: each image has an embedding and a norm of its own, the first token stays;"
            " reference: images of a prompt in a batch share both, and weight decay moves the first"
            " token"
        ),
    )
    graph_rows: int = Field(
        32,
        ge=1,
        description="images optimised at once, where memory is short; results do not depend on it",
    )
    seed: int = Field(0, ge=0, description="of the noise for the quantile")

    def needed(self) -> tuple[Need, ...]:
        return () if self.target is not None else self.needs

    def mixes_images(self) -> bool:
        return self.preset == "reference"

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The target from clean prompts, a scalar. Costs two row evaluations for each of them."""
        if self.target is not None:
            return {}
        prompts, magnitudes = data.clean_prompts[: self.clean_prompts], []
        for start in range(0, len(prompts), denoiser.batch_size):
            part = prompts[start : start + denoiser.batch_size]
            request = denoiser.request(part, [self.seed + start + i for i in range(len(part))])
            with torch.no_grad():
                unconditional, conditional = denoiser.branches(
                    *denoiser.start(request.latents), request
                )
            magnitudes.append(_magnitudes(conditional - unconditional))
        return {"target": torch.quantile(torch.cat(magnitudes).double(), self.quantile)}

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """Optimised embeddings `[B, T, D]`; the first step's predictions go along, since the last
        evaluations have made them.

        An untouched image costs nothing beyond sampling, one with k updates 2k + 1 row evaluations
        (one more when others of its batch go on): a backward pass counts as one, and the
        unconditional prediction is made once.
        """
        target = self.target if self.target is not None else float(state["target"])
        scaled, timestep = denoiser.start(request.latents)
        with torch.no_grad():
            unconditional, conditional = denoiser.branches(scaled, timestep, request)
        before = _magnitudes(conditional - unconditional)
        embeddings, conditional = request.embeddings.clone(), conditional.clone()
        groups = self._groups(request, target)
        descent = _Descent(
            denoiser, scaled, timestep, unconditional, conditional, embeddings, request.added, self
        )
        waiting = (
            [group for group in groups if descent.magnitude(group) > group.bound]
            if self.iterations
            else []
        )
        while waiting:
            taken = [
                group
                for count, group in zip(accumulate(len(group.rows) for group in waiting), waiting)
                if count <= self.graph_rows
            ] or waiting[:1]
            descent.run(taken)
            waiting = waiting[len(taken) :]
        facts: dict[int, tuple[bool, int]] = {
            row: (descent.magnitude(group) <= group.bound, group.updates)
            for group in groups
            for row in group.rows
        }
        rows = range(len(request.prompts))
        request.facts["converged"] = [facts[row][0] for row in rows]
        request.facts["updates"] = [facts[row][1] for row in rows]
        request.facts["magnitude_before"] = before.tolist()
        request.facts["magnitude_after"] = _magnitudes(conditional - unconditional).tolist()
        return request.replace(embeddings=embeddings, first=(unconditional, conditional))

    def _groups(self, request: Request, target: float) -> list[_Group]:
        """The rows that share an embedding: each its own, or under the reference preset those of a
        prompt.
        """
        if self.preset == "image":
            return [_Group([row], target) for row in range(len(request.prompts))]
        by_prompt: dict[str, list[int]] = {}
        for row, prompt in enumerate(request.prompts):
            by_prompt.setdefault(prompt, []).append(row)
        # A given target is the code's norm over the whole batch of a prompt, a calibrated one is an
        # image's; a batch that holds a part of the prompt's images has the same target an image.
        together = self.target_rows if self.target is not None else 1
        return [_Group(rows, target * (len(rows) / together) ** 0.5) for rows in by_prompt.values()]


@dataclass
class _Group:
    """Images that share one embedding, and the norm of conditional minus unconditional prediction
    that ends their descent.
    """

    rows: list[int]
    bound: float
    updates: int = 0
    leaf: Tensor = field(init=False)  # [T, D]
    # its own, so that groups do not know of each other
    optimizer: torch.optim.AdamW = field(init=False)


@dataclass
class _Descent:
    """Gradient descent on the embeddings of some groups at once; a group that has arrived is left
    alone.
    """

    denoiser: Denoiser
    scaled: Tensor  # [B, C, h, w]
    timestep: Tensor
    unconditional: Tensor  # [B, C, h, w], made once: it does not depend on the prompt
    conditional: Tensor  # [B, C, h, w], of the embeddings below, kept up to date in place
    embeddings: Tensor  # [B, T, D], in place
    added: Added | None  # of Stable Diffusion XL, the prompts' pooled texts, which stay
    method: Wen

    def magnitude(self, group: _Group) -> float:
        return float(_wide(self.conditional[group.rows] - self.unconditional[group.rows]).norm())

    def run(self, groups: list[_Group]) -> None:
        for group in groups:
            group.leaf = _wide(self.embeddings[group.rows[0]]).clone().requires_grad_()
            group.optimizer = torch.optim.AdamW([group.leaf], lr=self.method.lr)
        active = groups
        for _ in range(self.method.iterations):
            with torch.enable_grad():
                predictions = self._predicted(active)
                losses = [
                    _wide(predicted - self.unconditional[group.rows]).norm()
                    for group, predicted in zip(active, predictions, strict=True)
                ]
            going = []
            for group, predicted, loss in zip(active, predictions, losses, strict=True):
                # The first decision was made before there was a graph; rounding must not overturn
                # it.
                if group.updates and loss.item() <= group.bound:
                    self.conditional[group.rows] = predicted.detach()
                else:
                    going.append((group, loss))
            active = [group for group, _ in going]
            if not active:
                break
            gradients = torch.autograd.grad(
                [loss for _, loss in going], [group.leaf for group in active]
            )
            for group, gradient in zip(active, gradients, strict=True):
                self._update(group, gradient)
        if active:  # ended by the number of iterations: what the last update did is not known yet
            with torch.no_grad():
                for group, predicted in zip(active, self._predicted(active), strict=True):
                    self.conditional[group.rows] = predicted
        for group in groups:
            self.embeddings[group.rows] = group.leaf.detach().to(self.embeddings.dtype)

    def _predicted(self, groups: list[_Group]) -> tuple[Tensor, ...]:
        """The conditional predictions of each group, `[len(rows), C, h, w]`; only these rows are
        evaluated.
        """
        rows = [row for group in groups for row in group.rows]
        embeddings = torch.stack([group.leaf for group in groups for _ in group.rows]).to(
            self.embeddings.dtype
        )
        added = self.added and self.added.rows(rows)
        return self.denoiser.epsilon(
            self.scaled[rows], self.timestep, embeddings, added=added
        ).split([len(group.rows) for group in groups])

    def _update(self, group: _Group, gradient: Tensor) -> None:
        first_token = group.leaf.detach()[0].clone()
        gradient[0] = 0
        group.leaf.grad = gradient
        group.optimizer.step()
        # in the reference code its gradient is zero too, and AdamW's decay still moves it
        if self.method.preset == "image":
            group.leaf.data[0] = first_token
        group.updates += 1


def _wide(tensor: Tensor) -> Tensor:
    """At least fp32: AdamW's epsilon and the sum of squares of a picture are beyond half
    precision.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _magnitudes(delta: Tensor) -> Tensor:
    """Norm of each image's difference `[B, C, h, w]`, fp32 `[B]`."""
    return _wide(delta).flatten(1).norm(dim=1)
