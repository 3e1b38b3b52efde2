"""A small classifier of the objects, which says whether generated pictures show what was asked for.

It is trained on real renderings only, and nothing is trained or chosen with it: it is an
independent judge. Saved as safetensors; reading it needs no extra.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from bench.testbed.scenes import clean_scene, render
from bench.testbed.sprites import CODEPOINTS
from bench.testbed.training import Job, to_unit

WIDTHS = (32, 64, 96, 128, 128)


class Recogniser(nn.Module):
    """Five convolutions and a linear layer: `[B, 3, H, W]` in [-1, 1] to logits `[B, 64]`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *WIDTHS), WIDTHS, strict=False):
            halved = 1 if inputs == 3 else 2
            layers += [
                nn.Conv2d(inputs, outputs, 3, halved, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * WIDTHS[-1], len(CODEPOINTS))

    def features(self, pixels: Tensor) -> Tensor:
        """What the last layer decides by: `[B, 512]`."""
        return self.trunk(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


class NamedPictures(Dataset[tuple[Tensor, Tensor]]):
    """Clean pictures and the share of each concept in them `[64]`."""

    def __init__(self, seed: int, side: int) -> None:
        self.seed, self.side = seed, side

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = clean_scene(self.seed, index, "recogniser")
        shares = torch.zeros(len(CODEPOINTS))
        shares[list(scene.concepts)] = 1.0 / len(scene.concepts)
        return to_unit(render(scene, self.side)), shares


def recogniser_job(seed: int, side: int, steps: int) -> Job:
    torch.manual_seed(seed)
    return Job("recogniser", Recogniser(), NamedPictures(seed, side), _loss, steps, 96, 2e-3, seed)


def _loss(module: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    pixels, shares = batch
    return F.cross_entropy(module(pixels.contiguous(memory_format=torch.channels_last)), shares)


def save_recogniser(module: nn.Module, path: Path) -> None:
    weights = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(weights, temporary)
    temporary.replace(path)


def load_recogniser(path: Path) -> Recogniser:
    """The recogniser in eval mode. Raises `OSError` when there is no such file."""
    module = Recogniser()
    module.load_state_dict(load_file(path))
    return module.eval().requires_grad_(False)


def recognised(
    recogniser: Recogniser, pictures: list[np.ndarray], concepts: list[int]
) -> np.ndarray:
    """Whether the concept asked for is the first answer, bool `[n]`, for uint8 `[H, W, 3]`."""
    answers = [
        recogniser(torch.stack([to_unit(picture) for picture in pictures[start : start + 256]]))
        for start in range(0, len(pictures), 256)
    ]
    return torch.cat(answers).argmax(1).numpy() == np.asarray(concepts)
