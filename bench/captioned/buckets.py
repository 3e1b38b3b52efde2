"""The sides at which a training in buckets shows pictures to the model: buckets of many proportions
and about as many pixels, each picture in the one that is nearest to its own.

The rule is that of kohya-ss/sd-scripts (`make_bucket_resolutions` and `BucketManager`): sides are
multiples of 64 between 256 and 1024 with no more pixels than a square of the resolution, and the
nearest proportions are those whose width by height differs least. Sizes are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Sides = tuple[int, int]
STEP, LEAST, MOST = 64, 256, 1024  # pixels: what the scripts take where nobody says otherwise


def buckets_of(side: int, least: int = LEAST, most: int = MOST) -> tuple[Sides, ...]:
    """All buckets of a training at a resolution of `side` pixels, in order.

    Models of less than 256 pixels a side have no such bucket: theirs are those of 512 pixels in
    miniature.
    """
    step = STEP
    if side < LEAST:
        step = max(1, round(side / 8))
        least, most = step * round(side / 2 / step), step * round(side * 2 / step)
    sizes = {(step * (side // step),) * 2}
    for first in range(least, most + 1, step):
        other = min(most, side * side // first // step * step)
        if other >= least:
            sizes |= {(first, other), (other, first)}
    return tuple(sorted(sizes))


def believed(resolution: int | None, side: int) -> int:
    """The resolution of a training that a file states, for a model of `side` pixels: at most twice
    its own side. One of less than a quarter of it, or than any bucket has, is not believed, and the
    model's own is taken.
    """
    least = max(side / 4, LEAST if side >= LEAST else STEP / 8)
    return min(resolution, 2 * side) if resolution and resolution >= least else side


def nearest_bucket(width: int, height: int, buckets: Sequence[Sides]) -> Sides:
    """The bucket of a picture of so many pixels: its own size, else the first of those whose
    proportions are nearest to its own.
    """
    if (width, height) in buckets:
        return (width, height)
    ratio = width / height
    return min(sorted(buckets), key=lambda size: abs(size[0] / size[1] - ratio))


def believable(buckets: Sequence[Sides], side: int) -> tuple[Sides, ...]:
    """Those of the buckets that a file states which a model of `side` pixels may be asked for:
    sides between a quarter and four times its own, of at most four times the pixels, and, as its
    autoencoder wants them, multiples of eight (of any number where the model is a miniature).
    """
    factor = 8 if side >= LEAST else 1
    return tuple(
        sorted(
            {
                (width, height)
                for width, height in buckets
                if not width % factor
                and not height % factor
                and side <= 4 * min(width, height)
                and max(width, height) <= 4 * side
                and math.prod((width, height)) <= 4 * side * side
            }
        )
    )
