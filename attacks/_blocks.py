"""Sums over blocks of pixels, and what they say about distances without looking at the pixels
again.

For a block B of pixels, (sum of a - sum of b)^2 <= |B| * sum (a - b)^2 (Cauchy-Schwarz). Over the
blocks of a tile, the squared distance of the sums is at most |B| times that of the pixels; sums of
four blocks bound the same with 4 |B|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch

QUERIES = 1024  # searched at a time
GATHERED = 2**20  # numbers compared at a time


@dataclass(frozen=True)
class Blocks:
    """How a tile is cut: `down` x `across` blocks of `height` x `width` pixels of a colour; rows
    and columns left over do not count.
    """

    height: int
    width: int
    down: int
    across: int

    @classmethod
    def of(cls, shape: Sequence[int], tiles: int) -> Blocks:
        """At least eight blocks to a side where there are as many pixels."""
        tall, wide = shape[-3] // tiles, shape[-2] // tiles
        height, width = _block_side(tall), _block_side(wide)
        return cls(height, width, tall // height, wide // width)

    @property
    def size(self) -> int:
        """Numbers summed in a block."""
        return self.height * self.width

    @property
    def merged(self) -> tuple[int, int]:
        """How many blocks, down and across, a coarse block is made of."""
        return min(2, self.down), min(2, self.across)


def _block_side(side: int) -> int:
    # At most 32: sums then stay below 2**18, coarse ones below 2**20, and their squares over a tile
    # of 4000 pixels a side below 2**51.
    return min(32, max(1, side // 8))


def block_sums(pictures: np.ndarray, tiles: int, blocks: Blocks) -> np.ndarray:
    """Sums over blocks by tile: int32 `[n, T, d]`, d of `down` x `across` x 3.

    One picture at a time stays in the cache.
    """
    count, height, width, _ = pictures.shape
    tall, wide, down, across = height // tiles, width // tiles, blocks.down, blocks.across
    result = np.empty((count, tiles, tiles, down, across, 3), dtype=np.int32)
    # sums of whole numbers below 2**24: float32 holds them
    along = np.kron(np.ones((blocks.width, 1)), np.eye(3)).astype(np.float32)
    for picture, sums in zip(pictures, result, strict=True):
        rows = picture.reshape(tiles, tall, width * 3)[:, : down * blocks.height].reshape(
            tiles, down, blocks.height, width * 3
        )
        by_column = rows.sum(2, dtype=np.uint16).reshape(tiles, down, tiles, wide, 3)[
            :, :, :, : across * blocks.width
        ]
        by_block = by_column.reshape(-1, blocks.width * 3).astype(np.float32) @ along
        sums[:] = by_block.reshape(tiles, down, tiles, across, 3).transpose(0, 2, 1, 3, 4)
    return result.reshape(count, tiles * tiles, down * across * 3)


def coarse_sums(sums: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Sums of two by two neighbouring blocks, all tiles in a row: int32 `[n, d]`."""
    down, across = blocks.merged
    grid = sums.reshape(len(sums), -1, blocks.down, blocks.across, 3)[
        :, :, : blocks.down // down * down, : blocks.across // across * across
    ]
    coarse = np.zeros_like(grid[:, :, ::down, ::across])
    for y in range(down):
        for x in range(across):
            coarse += grid[:, :, y::down, x::across]
    return coarse.reshape(len(sums), -1)


def candidates(sums: np.ndarray, blocks: Blocks, limit: int) -> np.ndarray:
    """All pairs whose coarse sums leave it possible that no tile exceeds `limit`: bool `[n, n]`, a
    superset whatever FAISS rounds.

    Over all T tiles the sums of near pictures are at most T |B| `limit` apart. Whole numbers below
    2**24 are float32 without loss, also after a whole centre is taken off them, so only the
    arithmetic of FAISS rounds: |x|^2 + |y|^2 - 2 x y in float32 of d terms each, in any order (its
    sums of squared differences round less), is off by at most (4 g + 8 u) N, with u = 2**-24, g = d
    u / (1 - d u) and N the largest |x|^2.
    """
    down, across = blocks.merged
    coarse = coarse_sums(sums, blocks)
    coarse -= np.rint(coarse.mean(0)).astype(np.int32)
    values = coarse.astype(np.float32)
    unit, terms = 2.0**-24, values.shape[1]
    largest = float(np.einsum("nd,nd->n", coarse, coarse, dtype=np.float64).max())
    margin = (4 * terms * unit / (1 - terms * unit) + 8 * unit) * largest * 1.01
    radius = np.nextafter(
        np.float32(sums.shape[1] * blocks.size * down * across * limit + margin), np.float32(np.inf)
    )
    # the search is for less than the radius, and the conversion rounds too
    radius = float(np.nextafter(radius, np.float32(np.inf)))
    index = faiss.IndexFlatL2(terms)
    index.add(values)
    result = np.zeros((len(values), len(values)), dtype=bool)
    for start in range(0, len(values), QUERIES):
        ends, _, found = index.range_search(values[start : start + QUERIES], radius)
        result[
            start + np.repeat(np.arange(len(ends) - 1), np.diff(ends).astype(np.int64)), found
        ] = True
    return result


def excluded(sums: np.ndarray, bound: int, undecided: np.ndarray) -> None:
    """Take from the undecided pairs, bool `[n, n]` above the diagonal, those whose sums are more
    than `bound` apart in a tile.
    """
    for tile in range(sums.shape[1]):
        rows = np.flatnonzero(undecided.any(0) | undecided.any(1))
        i, j = np.nonzero(undecided)
        if len(i) * 16 < len(rows) ** 2:
            far = pooled_distances(sums[:, tile : tile + 1], i, j)[:, 0] > bound
            undecided[i[far], j[far]] = False
        else:
            # every partial sum is a whole number below 2**53: no rounding
            values = torch.from_numpy(sums[rows, tile]).double()
            products = (values @ values.t()).numpy()
            norms = products.diagonal()
            undecided[np.ix_(rows, rows)] &= norms[:, None] + norms[None, :] - 2 * products <= bound


def pooled_distances(sums: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Squared distances of block sums `[n, T, d]` between pictures i and j, by tile: int64 `[pairs,
    T]`.
    """
    result = np.empty((len(i), sums.shape[1]), dtype=np.int64)
    step = max(1, GATHERED // sums[0].size)
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = (sums[i[part]] - sums[j[part]]).astype(np.int64)
        result[part] = np.einsum("ptd,ptd->pt", difference, difference)
    return result
