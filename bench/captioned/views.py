"""The views of a training picture: what a training may have shown to the model in its place.

A model learns pictures as its script cuts them, and repeats them so. Compared with the whole
picture alone, a copy of a cut or of a mirror image would look like a new picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bench.base.pictures import centred_square, pixel_digest

STEP, LEAST, MOST = 1 / 8, 1 / 2, 2  # of sides of buckets, in shares of the resolution (kohya: 64,
# 256 and 1024 at 512)
CROP = 0.75  # the side of a random crop that is looked for, in shares of the shorter side


@dataclass(frozen=True)
class Training:
    """How a training cut its pictures: `side` in pixels, whether it mirrored, whether it cut at
    random places.
    """

    side: int
    flips: bool = True
    random_crops: bool = False


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
    width, height = bucket(image.width, image.height, side)
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


def bucket(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height that a picture is trained at: of the proportions nearest to its own among
    sides that are multiples of a step, with no more pixels than a square of `side`.

    At 512 these are multiples of 64 from 256 to 1024, as kohya-ss/sd-scripts makes its buckets.
    """
    step = max(1, round(side * STEP))
    least, most = step * round(side * LEAST / step), step * round(side * MOST / step)
    sizes = {(step * (side // step),) * 2}
    for first in range(least, most + 1, step):
        other = min(most, side * side // first // step * step)
        if other >= least:
            sizes |= {(first, other), (other, first)}
    ratio = math.log(width / height)
    return min(sorted(sizes), key=lambda size: abs(math.log(size[0] / size[1]) - ratio))


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
