"""What fine-tuning added to the weights of a model, layer by layer, as a sum of channels, and how
each of them lies to the weight that it was added to.

    W - W_b = sum_i s_i u_i v_i^T,    a_i = (|U_k^T u_i|^2 + |V_k^T v_i|^2) / (k/out + k/in)

The channels are the singular vectors of the update of a layer `[out, in]`. U_k and V_k span the
principal subspaces of the base weight, with the least k whose squared singular values make up the
share rho of all. An update that knows nothing of the weight has a mean a_i of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("unet", "text_encoder", "text_encoder_2")
SKETCH = 32  # directions in which an update of low rank is looked for at first
ROUNDS = 30  # of the power iteration that says how large what is left is


@dataclass(frozen=True)
class Layer:
    """A layer that is a matrix, in the model and in its base. `name` has the part before it."""

    name: str
    module: nn.Linear | nn.Conv2d
    base: Tensor

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @property
    def update(self) -> Tensor:
        """What was added, float64 `[out, in]`."""
        return (self.weight.detach().double() - self.base.double()).flatten(1)

    @property
    def rounding(self) -> float:
        """How large the largest singular value of the weights' rounding may be: the update is known
        to no more than that. About three and a half times what is expected of errors that are
        independent of each other.
        """
        out, into = self.weight.shape[:2]
        norm = max(float(one.detach().double().norm()) for one in (self.weight, self.base))
        spread = (math.sqrt(out) + math.sqrt(into)) / math.sqrt(out * into)
        return torch.finfo(self.weight.dtype).eps * norm * spread


@dataclass(frozen=True)
class Channels:
    """The channels of one update, strongest first: `left` `[out, r]`, `strength` `[r]` and `right`
    `[r, in]`, float64. Those that rounding alone could make are left out.
    """

    left: Tensor
    strength: Tensor
    right: Tensor

    def product(self, factors: Tensor) -> Tensor:
        """The sum of the channels, each with a factor `[r]`: `[out, in]`."""
        return (self.left * (self.strength * factors.to(self.strength))) @ self.right


def changed_layers(model: Any, base: Any) -> Iterator[Layer]:
    """Linear layers and 1x1 convolutions whose weight differs between two pipelines of the same
    shapes.
    """
    for part in PARTS:
        network = getattr(model, part, None)
        if network is None:
            continue
        before = dict(getattr(base, part).named_parameters())
        for path, module in network.named_modules():
            if _is_matrix(module):
                old = before[f"{path}.weight"].detach().to(module.weight.device)
                if not torch.equal(old, module.weight):
                    yield Layer(f"{part}.{path}", module, old)


def other_changes(model: Any, base: Any) -> dict[str, Tensor]:
    """What was added to every other parameter, float32 by name with the part before it."""
    found = dict[str, Tensor]()
    for part in PARTS:
        network = getattr(model, part, None)
        if network is None:
            continue
        matrices = {
            f"{path}.weight" for path, module in network.named_modules() if _is_matrix(module)
        }
        before = dict(getattr(base, part).named_parameters())
        for name, value in network.named_parameters():
            old = before[name].detach().to(value.device)
            if name not in matrices and not torch.equal(old, value):
                found[f"{part}.{name}"] = value.detach().float() - old.float()
    return found


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def channels_of(layer: Layer, count: int | None = None) -> Channels:
    """The singular value decomposition of a layer's update, without channels that are rounding; the
    strongest `count` where so many were found before.
    """
    update, least = layer.update, layer.rounding
    found = _of_low_rank(update, least) or torch.linalg.svd(update, full_matrices=False)
    left, strength, right = found
    count = int((strength > least).sum()) if count is None else count
    return Channels(left[:, :count], strength[:count], right[:count])


def _of_low_rank(update: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """The decomposition of an update of low rank by way of a basis of its columns; None where its
    rank is not low.

    The basis is that of the update's products with random vectors, twice as many until what is left
    outside of it has no singular value above `least`, which is as much as the update is known to.
    """
    random = torch.Generator().manual_seed(0)
    width = SKETCH
    while 2 * width < min(update.shape):
        drawn = torch.randn(update.shape[1], width, generator=random, dtype=torch.float64)
        basis = torch.linalg.qr(update @ drawn.to(update.device)).Q
        basis = torch.linalg.qr(update @ (update.T @ basis)).Q
        inside = basis.T @ update
        if _largest(update - basis @ inside, random) <= least:
            left, strength, right = torch.linalg.svd(inside, full_matrices=False)
            return basis @ left, strength, right
        width *= 2
    return None


def _largest(matrix: Tensor, random: torch.Generator) -> float:
    """The largest singular value of a matrix, by power iteration."""
    row = torch.randn(matrix.shape[1], generator=random, dtype=torch.float64).to(matrix.device)
    found = 0.0
    for _ in range(ROUNDS):
        image = matrix @ row
        found = float(image.norm() / row.norm())
        if not found:
            break
        row = matrix.T @ (image / image.norm())
    return found


def alignments(weight: Tensor, channels: Channels, share: float) -> tuple[Tensor, float]:
    """How much of each channel lies in the principal subspaces of a base weight `[out, in]`, in
    [0, 1], float64 `[r]`, and what is expected of a channel that knows nothing of them.

    `share` in (0, 1) of the squared singular values is what a principal subspace holds. That of a
    weight of 0 is empty.
    """
    matrix, left, right = weight.double().flatten(1), channels.left, channels.right.T
    out, into = matrix.shape
    if out > into:  # the smaller Gram matrix has all of it
        matrix, left, right = matrix.T, right, left
    # squaring costs the leading directions nothing
    energy, basis = torch.linalg.eigh(matrix @ matrix.T)
    energy, basis = energy.flip(0).clamp(min=0), basis.flip(1)
    total = energy.cumsum(0)
    if not float(total[-1]):
        return torch.zeros_like(channels.strength), 0.0
    count = int((total < share * total[-1]).sum()) + 1
    one, norms = basis[:, :count], energy[:count, None].sqrt()
    other = one.T @ (matrix @ right) / norms  # the other subspace is matrix.T @ one / norms.T
    inside = (one.T @ left).square().sum(0) + other.square().sum(0)
    return inside / 2, (count / out + count / into) / 2
