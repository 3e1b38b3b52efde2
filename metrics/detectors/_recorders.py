"""What detectors keep of a run while it samples: norms of what the prompt adds, attention to each
token, and norms where the end token looks.

Each row is computed from that row alone, so nothing here depends on the batch.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bench import Moment, Recorder, Request, UserError

# "The last fifth of the steps" of Ren et al., steps 40 to 49 of 50.
LAST_PART = 5
# Chen et al. take the cross-attention of the UNet's first resolution; Stable Diffusion has two
# layers there.
ENDING_LAYERS = 2


class DifferenceNorms(Recorder):
    """Norm of conditional minus unconditional noise, over all numbers of a row, at every step:
    float32 `[B, S]`.
    """

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        memory.setdefault("norms", []).append(_norms(moment.difference))

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, S]`."""
        return torch.stack(memory["norms"], 1)


class TokenMarginals(Recorder):
    """How much attention each token gets: cross-attention's probabilities, averaged over heads and
    pixels, float32 `[B, K, layers, tokens]`.

    K is 1 + ceil(S / 5): the first step comes first, the last fifth of the S steps follows. They
    sum to one over tokens. A mean over pixels is linear, so keeping it alone loses nothing that
    entropies of marginals need, and takes far less room than the maps.
    """

    reads_attention: ClassVar[bool] = True

    def wants(self, index: int, count: int) -> bool:
        return index == 0 or index >= count - last_part(count)

    def attended(
        self, index: int, layer: int, probabilities: Tensor, memory: dict[str, Any]
    ) -> None:
        steps = memory.setdefault("steps", {})
        steps.setdefault(index, {})[layer] = probabilities.mean((1, 2))

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        memory["count"] = moment.count

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, K, layers, tokens]`."""
        steps, count = memory["steps"], memory["count"]
        kept = [0, *range(count - last_part(count), count)]
        # By number: a model runs its layers in another order than it holds them.
        layers = sorted(steps[0])
        return torch.stack(
            [torch.stack([steps[index][layer] for layer in layers], 1) for index in kept], 1
        )


class BrightEnding(Recorder):
    """Norm of the difference where the end token looks, at every step: `|d m| / mean(m)`, float32
    `[B, S]`, d being conditional minus unconditional noise.

    m `[h, w]` is how much each pixel attends to the end token in the first two cross-attention
    layers at the last step, a mean over heads and both layers; a smaller map is enlarged to the
    latents' size bilinearly. As m is known at the end only, all differences of the batch are kept
    until then.
    """

    reads_attention: ClassVar[bool] = True

    def wants(self, index: int, count: int) -> bool:
        return index == count - 1

    def begin(self, request: Request, memory: dict[str, Any]) -> None:
        if request.lengths is None:
            raise UserError("the model has no tokenizer, so nobody knows where its prompts end")
        memory["ends"] = request.lengths - 1

    def attended(
        self, index: int, layer: int, probabilities: Tensor, memory: dict[str, Any]
    ) -> None:
        if layer < ENDING_LAYERS:
            rows = torch.arange(len(probabilities), device=probabilities.device)
            ends = memory["ends"].to(probabilities.device)
            memory.setdefault("maps", {})[layer] = probabilities[rows, :, :, ends].mean(1)

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        memory.setdefault("differences", []).append(moment.difference)

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, S]`."""
        differences = memory["differences"]
        height, width = differences[0].shape[2:]
        maps = [enlarged(memory["maps"][layer], height, width) for layer in sorted(memory["maps"])]
        mask = torch.stack(maps).mean(0)[:, None]  # [B, 1, h, w]
        return torch.stack([_norms(one * mask) for one in differences], 1) / mask.mean((2, 3))


def last_part(count: int) -> int:
    """How many of `count` steps the last fifth has, at least one."""
    return -(-count // LAST_PART)


def enlarged(attention: Tensor, height: int, width: int) -> Tensor:
    """Attention by pixel `[B, pixels]` of a layer whose size is that of the latents or halved some
    times, as a map of the latents' size `[B, height, width]`.

    Raises `UserError` for a number of pixels that halving does not lead to.
    """
    rows, columns = height, width
    while rows * columns > attention.shape[1]:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2  # as convolutions of stride 2 halve
    if rows * columns != attention.shape[1]:
        raise UserError(
            f"a cross-attention layer has {attention.shape[1]} pixels, which is no halving of the"
            f" latents' {height}x{width}"
        )
    small = attention.reshape(-1, 1, rows, columns)
    if (rows, columns) == (height, width):
        return small[:, 0]
    return interpolate(small, (height, width), mode="bilinear", align_corners=False)[:, 0]


def _norms(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1)
