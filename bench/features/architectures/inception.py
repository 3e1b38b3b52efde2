"""The Inception network of 2015 that the Frechet distance is defined by, up to its 2048 features.

Layers and the names of tensors are those of `inception-2015-12-05.pt`, the TorchScript of NVIDIA's
StyleGAN2-ADA that clean-fid loads (Parmar et al. 2022), which translates the graph of the first
implementation (Heusel et al. 2017): batch normalisation without a scale, epsilon 0.001, averages
that leave the border out, and a maximum instead of an average in the last block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 0.001


class Convolution(nn.Module):
    """A convolution without bias, fixed batch normalisation without a scale, and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, *sides))
        self.beta = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("var", torch.ones(outputs))
        self.mean: Tensor
        self.var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return F.relu(F.batch_norm(x, self.mean, self.var, bias=self.beta, eps=EPSILON))


def _average() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _tower(**layers: nn.Module) -> nn.Sequential:
    tower = nn.Sequential()
    for name, layer in layers.items():
        tower.add_module(name, layer)
    return tower


class _Joined(nn.Module):
    """Branches whose answers are put beside one another, in the order in which they are given."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def _block_35(inputs: int, pooled: int) -> nn.Module:
    return _Joined(
        conv=Convolution(inputs, 64, 1),
        tower=_tower(conv=Convolution(inputs, 48, 1), conv_1=Convolution(48, 64, 5, padding=2)),
        tower_1=_tower(
            conv=Convolution(inputs, 64, 1),
            conv_1=Convolution(64, 96, 3, padding=1),
            conv_2=Convolution(96, 96, 3, padding=1),
        ),
        tower_2=_tower(pool=_average(), conv=Convolution(inputs, pooled, 1)),
    )


def _down_to_17(inputs: int) -> nn.Module:
    return _Joined(
        conv=Convolution(inputs, 384, 3, 2),
        tower=_tower(
            conv=Convolution(inputs, 64, 1),
            conv_1=Convolution(64, 96, 3, padding=1),
            conv_2=Convolution(96, 96, 3, 2),
        ),
        pool=nn.MaxPool2d(3, 2),
    )


def _block_17(inner: int) -> nn.Module:
    wide: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
    tall: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
    return _Joined(
        conv=Convolution(768, 192, 1),
        tower=_tower(
            conv=Convolution(768, inner, 1),
            conv_1=Convolution(inner, inner, **wide),
            conv_2=Convolution(inner, 192, **tall),
        ),
        tower_1=_tower(
            conv=Convolution(768, inner, 1),
            conv_1=Convolution(inner, inner, **tall),
            conv_2=Convolution(inner, inner, **wide),
            conv_3=Convolution(inner, inner, **tall),
            conv_4=Convolution(inner, 192, **wide),
        ),
        tower_2=_tower(pool=_average(), conv=Convolution(768, 192, 1)),
    )


def _down_to_8() -> nn.Module:
    return _Joined(
        tower=_tower(conv=Convolution(768, 192, 1), conv_1=Convolution(192, 320, 3, 2)),
        tower_1=_tower(
            conv=Convolution(768, 192, 1),
            conv_1=Convolution(192, 192, (1, 7), padding=(0, 3)),
            conv_2=Convolution(192, 192, (7, 1), padding=(3, 0)),
            conv_3=Convolution(192, 192, 3, 2),
        ),
        pool=nn.MaxPool2d(3, 2),
    )


class _Block8(nn.Module):
    """The last two blocks, whose towers divide once more."""

    def __init__(self, inputs: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv = Convolution(inputs, 320, 1)
        self.tower_conv = Convolution(inputs, 384, 1)
        self.tower_mixed_conv = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.tower_mixed_conv_1 = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.tower_1_conv = Convolution(inputs, 448, 1)
        self.tower_1_conv_1 = Convolution(448, 384, 3, padding=1)
        self.tower_1_mixed_conv = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.tower_1_mixed_conv_1 = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.tower_2_pool = pool
        self.tower_2_conv = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.tower_conv(x)
        second = self.tower_1_conv_1(self.tower_1_conv(x))
        return torch.cat(
            [
                self.conv(x),
                self.tower_mixed_conv(first),
                self.tower_mixed_conv_1(first),
                self.tower_1_mixed_conv(second),
                self.tower_1_mixed_conv_1(second),
                self.tower_2_conv(self.tower_2_pool(x)),
            ],
            1,
        )


class Inception(nn.Module):
    """`layers` takes pixels `[B, 3, 299, 299]` in [-1, 1] to features `[B, 2048, 1, 1]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _tower(
            conv=Convolution(3, 32, 3, 2),
            conv_1=Convolution(32, 32, 3),
            conv_2=Convolution(32, 64, 3, padding=1),
            pool0=nn.MaxPool2d(3, 2),
            conv_3=Convolution(64, 80, 1),
            conv_4=Convolution(80, 192, 3),
            pool1=nn.MaxPool2d(3, 2),
            mixed=_block_35(192, 32),
            mixed_1=_block_35(256, 64),
            mixed_2=_block_35(288, 64),
            mixed_3=_down_to_17(288),
            mixed_4=_block_17(128),
            mixed_5=_block_17(160),
            mixed_6=_block_17(160),
            mixed_7=_block_17(192),
            mixed_8=_down_to_8(),
            mixed_9=_Block8(1280, _average()),
            mixed_10=_Block8(2048, nn.MaxPool2d(3, 1, padding=1)),
            pool2=nn.AvgPool2d(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors have the names of that file."""
    return {"layers.conv.beta", "layers.mixed_10.tower_2_conv.weight"} <= tensors.keys()


def inception(tensors: Mapping[str, Tensor]) -> Inception:
    """The network of these tensors; the classifier `output` behind the features is left out.

    Raises `RuntimeError` when they are not those of the network.
    """
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(
        {name: value for name, value in tensors.items() if name.startswith("layers.")}, assign=True
    )
    return network
