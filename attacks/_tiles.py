"""The distance between pictures of Carlini et al. (2023): the largest distance between tiles at the
same position.

Pictures with the same large flat background are close as wholes; close in every tile they are only
where they show the same. Distances here are sums of squared differences of 8-bit numbers, integers
without rounding; `attacks._exact.normalised` makes numbers within [0, 1] of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from attacks._exact import CHUNK, centred, products, squared_distances, stacked
from bench import UserError

BLOCK = 128  # pictures multiplied with each other at a time

ALL = slice(None)

Strip = tuple[slice, slice]  # rows and columns of a picture


def tile_elements(shape: Sequence[int], tiles: int) -> int:
    """Numbers in one tile of pictures `[..., H, W, 3]` cut into `tiles` x `tiles`.

    Raises `UserError` if `tiles` does not divide both sides.
    """
    height, width, channels = shape[-3:]
    if tiles < 1 or height % tiles or width % tiles or not height * width:
        raise UserError(
            f"pictures of {width}x{height} cannot be cut into {tiles} x {tiles} equal tiles:"
            f" {tiles} must divide {width} and {height}"
        )
    return (height // tiles) * (width // tiles) * channels


def checked(pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Pictures as one array uint8 `[n, H, W, 3]`, n at least 2, uncopied if they are one.

    Raises `UserError` for anything else.
    """
    if (
        isinstance(pictures, np.ndarray)
        and pictures.dtype == np.uint8
        and pictures.ndim == 4
        and pictures.shape[3] == 3
        and len(pictures) > 1
    ):
        return pictures
    return stacked(list(pictures), at_least=2)


def tile_strips(shape: Sequence[int], tiles: int) -> list[list[Strip]]:
    """Every tile of pictures `[..., H, W, 3]`, row by row, as strips of a few rows each: what is
    worked on at a time.
    """
    tile_elements(shape, tiles)
    height, width = shape[-3] // tiles, shape[-2] // tiles
    count = -(-height // max(1, CHUNK // (width * shape[-1])))
    edges = [height * i // count for i in range(count + 1)]
    return [
        [(slice(y + start, y + stop), slice(x, x + width)) for start, stop in pairwise(edges)]
        for y in range(0, height * tiles, height)
        for x in range(0, width * tiles, width)
    ]


def cut(pictures: np.ndarray, strip: Strip, which: np.ndarray | slice = ALL) -> np.ndarray:
    """A strip of each picture, or of some, as a row: uint8 `[n, k]`."""
    values = pictures[which, strip[0], strip[1]]
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def tile_distances(pictures: np.ndarray, others: np.ndarray, tiles: int) -> np.ndarray:
    """The largest sum of squared differences of a tile, between pictures `[n, H, W, 3]` and others
    `[m, H, W, 3]`: int64 `[n, m]`.
    """
    if pictures.shape[1:] != others.shape[1:]:
        raise UserError(
            f"pictures {list(pictures.shape[1:])} and {list(others.shape[1:])} of unequal size have"
            " no distance"
        )
    largest = np.zeros((len(pictures), len(others)), dtype=np.int64)
    for tile in tile_strips(pictures.shape, tiles):
        np.maximum(
            largest,
            sum(squared_distances(cut(pictures, strip), cut(others, strip)) for strip in tile),
            out=largest,
        )
    return largest


def distances(pictures: np.ndarray, tiles: int) -> np.ndarray:
    """The same between all pairs of pictures `[n, H, W, 3]`, each multiplied once: int64 `[n, n]`,
    symmetric.
    """
    largest = np.zeros((len(pictures), len(pictures)), dtype=np.int64)
    every = np.triu(np.ones(largest.shape, dtype=bool), 1)
    for tile in tile_strips(pictures.shape, tiles):
        np.maximum(
            largest,
            sum(upper_distances(cut(pictures, strip), every) for strip in tile),
            out=largest,
        )
    upper = np.triu(largest, 1)
    return upper + upper.T


def upper_distances(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Squared distances of uint8 rows `[n, k]`: int64 `[n, n]`, right where `wanted`, bool `[n, n]`
    and above the diagonal, is True.

    Products are made by blocks, and blocks without a wanted pair left out.
    """
    result = np.zeros((len(rows), len(rows)), dtype=np.int64)
    values, parts = (
        centred(rows),
        [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)],
    )
    own = [products(values[part], values[part]) for part in parts]  # their diagonals are the norms
    norms = [block.diagonal() for block in own]
    for i, left in enumerate(parts):
        for j, right in enumerate(parts[i:], start=i):
            if wanted[left, right].any():
                block = own[i] if i == j else products(values[left], values[right])
                result[left, right] = norms[i][:, None] + norms[j][None, :] - 2 * block
    return result


def paired_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances of uint8 rows `[n, k]`, each of `a` to the one of `b` beside it (or to its
    only one): int64 `[n]`.
    """
    total = np.zeros(len(a), dtype=np.int64)
    for start in range(0, a.shape[1], CHUNK):
        left, right = a[:, start : start + CHUNK], b[:, start : start + CHUNK]
        difference = np.maximum(left, right) - np.minimum(left, right)
        # 255**2 fits uint16, CHUNK of them uint32
        total += np.multiply(difference, difference, dtype=np.uint16).sum(1, dtype=np.uint32)
    return total
