"""The copy descriptors of SSCD (Pizzi et al., CVPR 2022): a ResNet or ResNeXt, generalised-mean
pooling with exponent 3, a linear layer and unit length.

Their authors publish each network twice, with the names of tensors that Classy Vision or that
torchvision gives (github.com/facebookresearch/sscd-copy-detection, `sscd/models/model.py`); both
are known here. Depth, width and groups follow from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torchvision.models.resnet import ResNet

EXPONENT = 3.0
DEEPEST = 100  # blocks of a stage; ResNeXt-101 has 23
FEWEST = 1e-6  # activations below are raised to it before their power is taken
# Versions of Classy Vision name a block by its number or `block0-1`, and wrap it or not.
_BLOCK = re.compile(r"backbone\.blocks\.(\d)\.(?:block\d[-_])?(\d+)\.(?:_module\.)?(.+)\.(\w+)")
_PLACES = {
    "convolutional_block.0": "conv1",
    "convolutional_block.1": "bn1",
    "convolutional_block.3": "conv2",
    "convolutional_block.4": "bn2",
    "convolutional_block.6": "conv3",
}


class GeneralisedMean(nn.Module):
    """`[B, C, H, W]` to `[B, C]`: the mean of the third powers, and its third root."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).clamp(min=FEWEST).pow(EXPONENT).mean(2).pow(1 / EXPONENT)


class SSCD(nn.Module):
    """Normalised pixels `[B, 3, H, W]` to unit vectors `[B, dimensions]`."""

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        trunk.avgpool = GeneralisedMean()  # type: ignore[assignment]
        self.backbone = trunk

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.backbone(x))


def recognises(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors have the names of an SSCD network."""
    return {"backbone.initial_block._module.0.weight", "embeddings.1.weight"} <= tensors.keys() or {
        "backbone.conv1.weight",
        "backbone.fc.weight",
    } <= tensors.keys()


def sscd(tensors: Mapping[str, Tensor]) -> SSCD:
    """The network of these tensors, in either naming.

    Raises `KeyError`, `ValueError` or `RuntimeError` when they make none.
    """
    # Here, because it takes a second that whoever needs no such network does not wait.
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    state = dict(_renamed(tensors))
    depths = [_depth(state, layer) for layer in range(1, 5)]
    inner = state["backbone.layer1.0.conv2.weight"]
    dimensions = len(state["backbone.fc.weight"])
    if "backbone.layer1.0.conv3.weight" in state:
        groups = len(inner) // inner.shape[1]
        settings = {"groups": groups, "width_per_group": inner.shape[1] if groups > 1 else 64}
        trunk = (Bottleneck, depths, settings)
    else:
        trunk = (BasicBlock, depths, {})
    with torch.device("meta"):  # no weights are drawn before those of the file take their place
        network = SSCD(ResNet(trunk[0], trunk[1], num_classes=dimensions, **trunk[2]))
    network.load_state_dict(state, assign=True)
    return network


def _depth(state: Mapping[str, Tensor], layer: int) -> int:
    found = [
        int(match[1])
        for name in state
        if (match := re.match(rf"backbone\.layer{layer}\.(\d+)\.", name))
    ]
    if not found or max(found) >= DEEPEST:
        raise ValueError(f"it has no stage {layer}, or one of more than {DEEPEST} blocks")
    return max(found) + 1


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names of Classy Vision as those of torchvision."""
    two_convolutions = not any("convolutional_block.6." in name for name in tensors)
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"backbone\.initial_block\._module\.([01])\.(\w+)", name):
            yield f"backbone.{('conv1', 'bn1')[int(match[1])]}.{match[2]}", tensor
        elif match := re.fullmatch(r"embeddings\.1\.(weight|bias)", name):
            yield f"backbone.fc.{match[1]}", tensor
        elif match := _BLOCK.fullmatch(name):
            last = "bn2" if two_convolutions else "bn3"
            place = {**_PLACES, "bn": last}.get(match[3], match[3])
            yield f"backbone.layer{int(match[1]) + 1}.{match[2]}.{place}.{match[4]}", tensor
        else:
            yield name, tensor
