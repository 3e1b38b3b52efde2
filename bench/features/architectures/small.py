"""The small networks of the embedded model's judges: what `bench testbed build` trains, and what
files of their weights name as their architecture.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Trunk(nn.Sequential):
    """A small residual network: `[B, 3, H, W]` to `[B, 128, H/4, W/4]`."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            Residual(32, 64, stride=2),
            Residual(64, 128, stride=2),
            Residual(128, 128, stride=1),
        )


class Residual(nn.Module):
    """Two convolutions and a shortcut: `[B, inputs, H, W]` to `[B, outputs, H/s, W/s]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class SmallDescriptor(nn.Module):
    """Trunk, generalised-mean pooling with exponent 3, linear layer, L2 normalisation:
    ImageNet-normalised pixels `[B, 3, H, W]` to unit vectors `[B, dimensions]`.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.trunk, self.embeddings = Trunk(), nn.Linear(128, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        return self.described(self.trunk(x))

    def described(self, seen: Tensor) -> Tensor:
        """What the trunk saw, `[B, 128, h, w]`, as a unit vector."""
        pooled = seen.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        return F.normalize(self.embeddings(pooled), dim=1)


class SmallFeatures(nn.Module):
    """`layers` takes pixels in [-1, 1] to features `[B, dimensions]`, as Inception's does."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        pool = nn.AdaptiveAvgPool2d(2)
        self.layers = nn.Sequential(Trunk(), pool, nn.Flatten(), nn.Linear(512, dimensions))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Colours(nn.Module):
    """The colours of a 4 by 4 mosaic through a linear layer: `[B, 3, H, W]` to `[B, dimensions]`.
    It knows nothing and costs nothing, for tests of what stands around it.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(48, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.adaptive_avg_pool2d(x, 4).flatten(1))


# By the name that a file gives, and the tensor whose length is the number of dimensions.
_SMALL: dict[str, tuple[type[nn.Module], str]] = {
    "small-descriptor": (SmallDescriptor, "embeddings.weight"),
    "small-features": (SmallFeatures, "layers.3.weight"),
    "colours": (Colours, "linear.weight"),
}
NAMES = tuple(_SMALL)


def name_of(network: nn.Module) -> str:
    """The name of a network's architecture. Raises `KeyError` for one that is none of these."""
    return {kind: name for name, (kind, _) in _SMALL.items()}[type(network)]


def small(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of an architecture with these tensors.

    Raises `KeyError` or `RuntimeError` when they are not those of the network.
    """
    kind, last = _SMALL[name]
    with torch.device("meta"):
        network = kind(len(tensors[last]))  # type: ignore[call-arg]
    network.load_state_dict(dict(tensors), assign=True)
    return network
