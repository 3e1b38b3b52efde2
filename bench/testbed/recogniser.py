"""How the judge of objects is trained: `bench.features.recogniser` is what it is.

It sees real renderings only, and nothing is trained or chosen with it: it is an independent judge
of whether generated pictures show what was asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from bench.features.recogniser import ObjectNetwork
from bench.testbed.scenes import clean_scene, render
from bench.testbed.sprites import CODEPOINTS
from bench.testbed.training import Job, to_unit


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
    network = ObjectNetwork(len(CODEPOINTS))
    return Job("recogniser", network, NamedPictures(seed, side), _loss, steps, 96, 2e-3, seed)


def _loss(module: torch.nn.Module, batch: tuple[Tensor, Tensor], _: torch.Generator) -> Tensor:
    pixels, shares = batch
    return F.cross_entropy(module(pixels.contiguous(memory_format=torch.channels_last)), shares)
