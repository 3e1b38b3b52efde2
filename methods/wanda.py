"""Pruning of feed-forward output weights by their share in memorized prompts (Chavhan et al., arXiv
2406.18566).

Scores follow Wanda: |W| times the norm of the input activation. A weight goes when, at one of the
first calls, it is among the largest of its row for memorized prompts and its input is more active
than for the empty prompt. Where paper and reference code disagree, the code is the default (both
rows of the guided batch, every token scaled to unit length), and `branch=cond`, `token_norm=none`
are the paper.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import (
    Denoiser,
    FitData,
    MaskFunction,
    Method,
    Need,
    Report,
    State,
    Swept,
    UserError,
    Where,
    classifier_free_guidance,
    evenly,
    trajectory,
)


class Wanda(Method):
    """Zero the feed-forward weights that memorized prompts use most (Wanda scores, subspace
    pruning).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("fit_prompts",)
    paper: ClassVar[str] = "Chavhan et al. 2024, arXiv:2406.18566"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"sparsity": 0}
    swept: ClassVar[Swept | None] = ("sparsity", (0.01, 0.02, 0.05, 0.1, 0.2, 0.3))

    sparsity: float = Field(
        0.01, ge=0, le=1, description="share of every row that is a candidate at one call"
    )
    prompts: int = Field(
        10, ge=1, description="fit prompts used, evenly spread over the suite's list"
    )
    calls: int = Field(10, ge=1, description="first UNet calls whose masks are united")
    branch: Literal["both", "cond"] = Field(
        "both", description="rows observed: both of guidance (code) or the conditional (paper)"
    )
    token_norm: Literal["l2", "none"] = Field(
        "l2", description="scale every token to unit length (code) or not (paper)"
    )
    seed: int = Field(0, ge=0, description="of the initial noise, the same for every prompt")

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """Masks of the weights to remove, bool `[d, m]` by layer.

        Costs `2 * calls * (prompts + 1)` row evaluations.
        """
        chosen = [data.fit_prompts[i] for i in self.fitted_on(len(data.fit_prompts))]
        calls = min(self.calls, denoiser.steps)
        active = self.column_energies(denoiser, chosen, calls)
        # Same seed, same prompt: the empty prompt repeated n times has n times the energy of one
        # run.
        empty = self.column_energies(denoiser, [""], calls)
        layers = feed_forward_outputs(denoiser.pipe.unet)
        return {
            name: self.mask(layer.weight.detach(), active[name], len(chosen) * empty[name])
            for name, layer in layers.items()
        }

    def fitted_on(self, available: int) -> list[int]:
        """Positions of the prompts that `fit` uses, evenly spread over the `available` ones."""
        return evenly(available, self.prompts)

    def mask_functions(
        self, denoiser: Denoiser, prompts: Sequence[str], report: Report
    ) -> dict[str, MaskFunction]:
        """What `bench analyze masks` asks for: energies add up, so one run of every prompt gives
        the masks of all subsets.
        """
        calls, batch = min(self.calls, denoiser.steps), denoiser.batch_size
        parts = []
        for start in range(0, len(prompts), batch):
            parts.append(
                self.column_energies(
                    denoiser, list(prompts[start : start + batch]), calls, per_prompt=True
                )
            )
            report("observe prompts", min(start + batch, len(prompts)), len(prompts))
        empty = self.column_energies(denoiser, [""], calls)

        def function(name: str, weight: Tensor) -> MaskFunction:
            energies = torch.cat([part[name] for part in parts])

            def masks(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
                by_call = self.call_masks(
                    weight, energies[list(chosen)].sum(0), len(chosen) * empty[name]
                )
                candidates, masked = zip(*by_call, strict=True)
                return torch.stack(candidates), torch.stack(masked)

            return masks

        return {
            name: function(name, layer.weight.detach())
            for name, layer in feed_forward_outputs(denoiser.pipe.unet).items()
        }

    def column_energies(
        self, denoiser: Denoiser, prompts: list[str], calls: int, per_prompt: bool = False
    ) -> dict[str, Tensor]:
        """Sum over prompts and tokens of the squared input of every layer, fp32 `[calls, m]` by
        layer; activations are not kept.

        `per_prompt` keeps prompts apart, `[prompts, calls, m]`.
        """
        layers = feed_forward_outputs(denoiser.pipe.unet)
        shape = (len(prompts), calls) if per_prompt else (calls,)
        energies = {
            name: torch.zeros(
                *shape, layer.in_features, device=layer.weight.device, dtype=_wide(layer.weight)
            )
            for name, layer in layers.items()
        }
        fired = dict.fromkeys(layers, 0)

        def observe(name: str) -> Any:
            def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
                rows, count = args[0].detach(), len(args[0]) // 2
                if self.branch == "cond":
                    rows = rows[count:]
                rows = rows.flatten(0, -2).to(_wide(rows))
                if self.token_norm == "l2":
                    rows = torch.nn.functional.normalize(rows, dim=1)
                call = fired[name] % calls
                if per_prompt:
                    # [branches, prompts, tokens, m]
                    by_prompt = rows.square().unflatten(0, (-1, count, args[0].shape[1]))
                    # `start` of the batch that runs
                    energies[name][start : start + count, call] += by_prompt.sum((0, 2))
                else:
                    energies[name][call] += rows.square().sum(0)
                fired[name] += 1

            return hook

        handles = [layer.register_forward_pre_hook(observe(name)) for name, layer in layers.items()]
        try:
            batches = range(0, len(prompts), denoiser.batch_size)
            for start in batches:
                part = prompts[start : start + denoiser.batch_size]
                with torch.no_grad():
                    trajectory(
                        denoiser,
                        denoiser.request(part, [self.seed] * len(part)),
                        classifier_free_guidance,
                        calls,
                    )
        finally:
            for handle in handles:
                handle.remove()
        silent = [name for name, times in fired.items() if times != calls * len(batches)]
        if silent:
            raise UserError(
                f"method wanda: layer {silent[0]} fired {fired[silent[0]]} times and not once a"
                " call; the UNet bypasses its modules"
            )
        return energies

    def mask(self, weight: Tensor, active: Tensor, empty: Tensor) -> Tensor:
        """Union over calls of the masks of every call, bool `[d, m]`, from energies `[calls,
        m]`.
        """
        united = torch.zeros_like(weight, dtype=torch.bool)
        for _, masked in self.call_masks(weight, active, empty):
            united |= masked
        return united

    def call_masks(
        self, weight: Tensor, active: Tensor, empty: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """By call, bool `[d, m]` both: the `floor(sparsity * m)` largest |W| A of every row, and
        those with A > A of the empty prompt.
        """
        largest = int(self.sparsity * weight.shape[1])
        magnitude = weight.to(_wide(weight)).abs()
        # Both scores share |W|, so comparing them is comparing columns, without the rounding of two
        # products.
        for energy, baseline in zip(active, empty, strict=True):
            chosen = (magnitude * energy.sqrt()).topk(largest, dim=1).indices
            candidates = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, chosen, True)
            yield candidates, candidates & (energy > baseline)

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Zero the masked weights; the originals return bit for bit."""
        layers = feed_forward_outputs(pipe.unet)
        originals = {name: layers[name].weight.detach().clone() for name in state}
        try:
            with torch.no_grad():
                for name, mask in state.items():
                    layers[name].weight.masked_fill_(mask.to(layers[name].weight.device), 0)
            yield
        finally:
            with torch.no_grad():
                for name, original in originals.items():
                    layers[name].weight.copy_(original)


def _wide(tensor: Tensor) -> torch.dtype:
    """fp32 for half precision: the reference sums in fp16, which loses small increments."""
    return torch.promote_types(tensor.dtype, torch.float32)


def feed_forward_outputs(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The output layers of all transformer blocks' feed-forwards by module name (16 in Stable
    Diffusion 1.x and 2.x).
    """
    from diffusers.models.attention import BasicTransformerBlock

    found = {
        f"{name}.ff.net.2": block.ff.net[2]
        for name, block in unet.named_modules()
        if isinstance(block, BasicTransformerBlock)
    }
    layers = {name: layer for name, layer in found.items() if isinstance(layer, torch.nn.Linear)}
    if not layers or len(layers) != len(found):
        raise UserError(
            "method wanda: the model has no transformer blocks with a plain linear `ff.net.2` (is a"
            " LoRA fused in?)"
        )
    return dict(sorted(layers.items()))
