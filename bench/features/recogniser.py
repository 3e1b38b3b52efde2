"""A small classifier of objects, which says whether a picture shows what was asked for.

One safetensors file holds its weights and, as metadata, the names of its objects; reading it runs
no code and needs no extra. `bench testbed build` trains one on real renderings.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.base.digests import path_digest
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically

WIDTHS = (32, 64, 96, 128, 128)


class ObjectNetwork(nn.Module):
    """Five convolutions and a linear layer: `[B, 3, H, W]` in [-1, 1] to logits `[B, objects]`."""

    def __init__(self, objects: int) -> None:
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
        self.head = nn.Linear(4 * WIDTHS[-1], objects)

    def features(self, pixels: Tensor) -> Tensor:
        """What the last layer decides by: `[B, 512]`."""
        return self.trunk(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


@dataclass(frozen=True)
class ObjectRecogniser:
    """The classifier of a file as an extractor: pictures, uint8 `[H, W, 3]`, to logits, float32
    `[n, objects]`.

    Raises `UserError` when the file is no such classifier.
    """

    weights: Path
    device: Any
    batch_size: int = 64

    @cached_property
    def digest(self) -> str:
        return path_digest(self.weights)

    @property
    def fingerprint(self) -> str:
        return f"objects-{self.digest[:12]}"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the objects are called, in the order of the logits."""
        try:
            with safe_open(self.weights, framework="pt") as file:
                names = json.loads((file.metadata() or {})["objects"])
        except (KeyError, ValueError, OSError, SafetensorError) as error:
            raise UserError(
                f"{self.weights} is no classifier of objects: its metadata has no list of names"
                f" ({one_line(error)[:100]})"
            ) from error
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise UserError(f"{self.weights}: its metadata `objects` is no list of names")
        return tuple(names)

    @cached_property
    def network(self) -> ObjectNetwork:
        with torch.device("meta"):  # no weights are drawn before those of the file take their place
            network = ObjectNetwork(len(self.names))
        try:
            network.load_state_dict(load_file(self.weights), assign=True)
        except RuntimeError as error:
            raise UserError(
                f"{self.weights} is no classifier of objects ({one_line(error)[:100]})"
            ) from error
        return network.to(self.device).eval().requires_grad_(False)

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        return self._each(self.network, pictures)

    def looks(self, pictures: list[np.ndarray]) -> np.ndarray:
        """What the last layer decides by, unit length: float32 `[n, 512]`."""
        rows = torch.from_numpy(self._each(self.network.features, pictures))
        return np.asarray(nn.functional.normalize(rows, dim=1))

    def _each(self, function: Any, pictures: list[np.ndarray]) -> np.ndarray:
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            batch = np.stack(pictures[start : start + self.batch_size]).transpose(0, 3, 1, 2)
            with torch.no_grad():
                pixels = torch.from_numpy(batch).float().to(self.device) / 127.5 - 1.0
                parts.append(function(pixels).float().cpu().numpy())
        return np.concatenate(parts)

    def named(self, text: str) -> tuple[int, ...]:
        """The objects whose names stand in a text as whole words; of names within names, the
        longest.
        """
        found = [
            (name, number)
            for number, name in enumerate(self.names)
            if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)
        ]
        return tuple(
            number
            for name, number in found
            if not any(name != other and name in other for other, _ in found)
        )

    def shows(self, pictures: list[np.ndarray], objects: list[int]) -> np.ndarray:
        """Whether the first answer for each picture is its object, bool `[n]`."""
        return self(pictures).argmax(1) == np.asarray(objects)


def save_recogniser(network: ObjectNetwork, names: tuple[str, ...], path: Path) -> None:
    """Write the file that `ObjectRecogniser` reads."""
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, save(weights, metadata={"objects": json.dumps(list(names))}))
