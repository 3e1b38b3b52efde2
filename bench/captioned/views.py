"""The views of a training picture: what a training may have shown to the model in its place.

A model learns pictures as its script cuts them, and repeats them so. Compared with the whole
picture alone, a copy of a cut or of a mirror image would look like a new picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from bench.base.pictures import centred_square, pixel_digest
from bench.captioned.buckets import Sides, buckets_of, nearest_bucket

CROP = 0.75  # the side of a random crop that is looked for, in shares of the shorter side


@dataclass(frozen=True)
class Training:
    """How a training cut its pictures: `side` in pixels, whether it mirrored, whether it cut at
    random places, and its buckets, where they are known to be others than those of `side`.
    """

    side: int
    flips: bool = True
    random_crops: bool = False
    known_buckets: tuple[Sides, ...] = ()

    @cached_property
    def buckets(self) -> tuple[Sides, ...]:
        """Width and height of every bucket."""
        return self.known_buckets or buckets_of(self.side)

    def bucket(self, image: Image.Image) -> Sides:
        """Width and height that a picture is trained at."""
        return nearest_bucket(image.width, image.height, self.buckets)


@dataclass(frozen=True)
class View:
    """One view of a picture, uint8 `[h, w, 3]`, and what it is called."""

    name: str
    pixels: np.ndarray


def views(image: Image.Image, training: Training) -> list[View]:
    """The different views of a picture, the plainest first.

    `square` is the centred square, `bucket` the picture cut to the sides that kohya's scripts give
    one of its proportions, `crop` a cut of three quarters of the shorter side; each also mirrored.
    """
    found: dict[str, View] = {}
    for name, pixels in _plain(image, training):
        for mirrored in (False, True) if training.flips else (False,):
            shown = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
            view = View(f"{name}, mirrored" if mirrored else name, shown)
            found.setdefault(pixel_digest(shown), view)
    return sorted(found.values(), key=lambda view: "mirrored" in view.name)


def _plain(image: Image.Image, training: Training) -> Iterator[tuple[str, np.ndarray]]:
    side = training.side
    yield "square", centred_square(image, side)
    width, height = training.bucket(image)
    yield "bucket", _covering(image, width, height)
    if training.random_crops:
        cut = max(1, round(min(image.size) * CROP))
        right, bottom = image.width - cut, image.height - cut
        places = {
            "top left": (0, 0),
            "top right": (right, 0),
            "bottom left": (0, bottom),
            "bottom right": (right, bottom),
            "centre": (right // 2, bottom // 2),
        }
        for place, (left, top) in places.items():
            yield (
                f"crop {place}",
                centred_square(image.crop((left, top, left + cut, top + cut)), side),
            )


def _covering(image: Image.Image, width: int, height: int) -> np.ndarray:
    """The picture scaled to cover so many pixels, its centre cut out."""
    scale = max(width / image.width, height / image.height)
    sides = (
        max(width, math.ceil(image.width * scale - 1e-9)),
        max(height, math.ceil(image.height * scale - 1e-9)),
    )
    scaled = image if image.size == sides else image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (sides[0] - width) // 2, (sides[1] - height) // 2
    return np.asarray(scaled.crop((left, top, left + width, top + height)))
