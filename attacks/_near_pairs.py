"""Which pairs of pictures are near: the largest squared distance of a tile is at most a limit.

Exact, without doing all the arithmetic.

Two engines give the same answer, bit for bit, since every decision is made on integers or with a
rounding margin proven to be enough; every pair that no bound decides is decided on its pixels.

- "products": matrix products of a few rows of a tile at a time. A pair is out as soon as what is
  summed up exceeds the limit,
  pictures without an open pair leave, and few open pairs are compared one by one.
- "filter": bounds first. Sums over blocks of pixels (Cauchy-Schwarz: the squared difference of two
  sums over a set of pixels is
  at most its size times the sum of squared differences), coarse and of the whole picture through
  FAISS, then finer and by tile; then
  the triangle inequality with the mean picture of a group of candidates; then products of what is
  left, tiles that say most first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import numpy as np
from scipy.sparse.csgraph import connected_components

from attacks._blocks import Blocks, block_sums, candidates, excluded, pooled_distances
from attacks._exact import WHITE, int8_is_exact
from attacks._tiles import (
    Strip,
    checked,
    cut,
    paired_distances,
    tile_elements,
    tile_strips,
    upper_distances,
)
from bench import evenly

Engine = Literal["auto", "products", "filter"]
SAMPLE = 32  # pictures that "auto" judges by, and that a mean picture is made of
PROBE = 8  # pictures tried on a mean picture before all are
PAIRS = 64  # compared at a time: few enough for the cache

# Measured costs in nanoseconds an element, on one core with AVX-512. They choose the way and never
# the result.
COST_OF_PAIR = 1.2
COST_OF_BOUNDS = 0.5
COST_OF_CUT = 0.25


def _cost_of_product() -> float:
    return 0.004 if int8_is_exact() else 0.02


@dataclass(frozen=True)
class NearPairs:
    """The pairs found, how many each stage decided (they add up to `pairs`) and the engine that did
    it.

    `work`: `pairs` in all; ruled out `by_index` (whole pictures, coarse blocks) and `by_blocks`
    (tiles, fine blocks); `accepted` and `ruled_out` by the triangle inequality; `on_pixels`, the
    rest.
    """

    adjacency: np.ndarray  # bool [n, n], symmetric, False on the diagonal
    work: dict[str, int]
    engine: str


def near_pairs(
    pictures: np.ndarray | Sequence[np.ndarray], tiles: int, limit: int, engine: Engine = "auto"
) -> NearPairs:
    """Pairs of pictures uint8 `[n, H, W, 3]` with no tile, of `tiles` x `tiles`, whose squared
    distance exceeds `limit`.

    `limit` comes from `attacks._exact.squared_limit`. Raises `UserError` for fewer than two
    pictures, unequal sizes or a number of tiles that does not divide the sides. At most a few
    copies of `[n, n]` and of a tile of all pictures are held.
    """
    pictures = checked(pictures)
    # no more is possible, and bounds then stay small numbers
    limit = min(limit, tile_elements(pictures.shape, tiles) * WHITE**2)
    count = len(pictures)
    undecided = np.triu(np.ones((count, count), dtype=bool), 1)
    near = np.zeros_like(undecided)
    work = dict.fromkeys(
        ("pairs", "by_index", "by_blocks", "accepted", "ruled_out", "on_pixels"), 0
    )
    work["pairs"] = int(undecided.sum())
    order = list(range(tiles * tiles))
    if engine == "auto":
        engine, order = _chosen(pictures, tiles, limit)
    if engine == "filter":
        order = _filtered(pictures, tiles, limit, undecided, near, work)
    work["on_pixels"] = int(undecided.sum())
    near |= _on_pixels(pictures, tiles, limit, undecided, order)
    return NearPairs(near | near.T, work, engine)


def _filtered(
    pictures: np.ndarray,
    tiles: int,
    limit: int,
    undecided: np.ndarray,
    near: np.ndarray,
    work: dict[str, int],
) -> list[int]:
    """Decide pairs by bounds, in place; the order of tiles to compare the others in."""
    blocks = Blocks.of(pictures.shape, tiles)
    sums = block_sums(pictures, tiles, blocks)
    left = work["pairs"]
    undecided &= candidates(sums, blocks, limit)
    work["by_index"] = left - (left := int(undecided.sum()))
    excluded(sums, limit * blocks.size, undecided)
    work["by_blocks"] = left - int(undecided.sum())
    _by_pivots(pictures, tiles, limit, undecided, near, work)
    i, j = np.nonzero(undecided)
    some = slice(None, None, max(1, len(i) // 1024))
    return [
        int(tile)
        for tile in np.argsort(-pooled_distances(sums, i[some], j[some]).sum(0), kind="stable")
    ]


def _by_pivots(
    pictures: np.ndarray,
    tiles: int,
    limit: int,
    undecided: np.ndarray,
    near: np.ndarray,
    work: dict[str, int],
) -> None:
    """Decide by the triangle inequality with mean pictures of groups, while that is cheaper than
    products.
    """
    while undecided.any():
        members = _group(undecided)
        if len(members) * _cost_of_product() < COST_OF_PAIR:
            return
        pivot = _mean_picture(pictures, members)
        if not _promising(pictures, members, pivot, tiles, limit):
            return
        accepted, ruled_out = triangle(_to_pivot(pictures, members, pivot, tiles), limit)
        group = np.ix_(members, members)
        was_open = undecided[group]
        accepted, ruled_out = accepted & was_open, ruled_out & was_open
        near[group] |= accepted
        undecided[group] = was_open & ~accepted & ~ruled_out
        work["accepted"] += int(accepted.sum())
        work["ruled_out"] += int(ruled_out.sum())
        if 2 * int(accepted.sum() + ruled_out.sum()) < int(was_open.sum()):
            return


def _group(undecided: np.ndarray) -> np.ndarray:
    """The picture with most undecided pairs and all that it has them with."""
    hub = int(np.argmax(undecided.sum(0) + undecided.sum(1)))
    return np.flatnonzero(undecided[hub] | undecided[:, hub] | (np.arange(len(undecided)) == hub))


def _evenly(values: np.ndarray, count: int) -> np.ndarray:
    return values[evenly(len(values), count)]


def _mean_picture(pictures: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Rounded mean of some of them: of copies with noise the mean is nearer to each than they are
    to each other.
    """
    some = _evenly(members, SAMPLE)
    total: np.ndarray = pictures[some].sum(0, dtype=np.uint16)  # 32 * 255 fits
    return ((total + len(some) // 2) // len(some)).astype(np.uint8)


def _to_pivot(
    pictures: np.ndarray, members: np.ndarray, pivot: np.ndarray, tiles: int
) -> np.ndarray:
    """Squared distances of the members' tiles to the pivot's: int64 `[members, tiles * tiles]`."""
    strips = tile_strips(pictures.shape, tiles)
    result = np.zeros((len(members), len(strips)), dtype=np.int64)
    for start in range(0, len(members), PAIRS):
        part = slice(start, start + PAIRS)
        for index, tile in enumerate(strips):
            for strip in tile:
                result[part, index] += paired_distances(
                    cut(pictures, strip, members[part]), cut(pivot[None], strip)
                )
    return result


def _promising(
    pictures: np.ndarray, members: np.ndarray, pivot: np.ndarray, tiles: int, limit: int
) -> bool:
    """Whether half of a few pictures are so near the pivot that two such are near each other."""
    largest = _to_pivot(pictures, _evenly(members, PROBE), pivot, tiles).max(1)
    return 4 * int(np.sort(largest)[len(largest) // 2]) <= limit


def triangle(to_pivot: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that must be near and pairs that cannot be, bool `[n, n]` each, from squared distances
    to a pivot by tile, int64 `[n, T]`.

    In roots a + b bounds a distance from above and |a - b| from below. Roots are rounded to whole
    numbers, each to the side on which a decision stays right.
    """
    root = isqrt(limit)
    down = np.array([isqrt(int(value)) for value in to_pivot.flat], dtype=np.int64).reshape(
        to_pivot.shape
    )
    up = down + (down * down < to_pivot)
    accepted = np.ones((len(to_pivot), len(to_pivot)), dtype=bool)
    ruled_out = np.zeros_like(accepted)
    for low, high in zip(down.T, up.T, strict=True):
        accepted &= high[:, None] + high[None, :] <= root
        ruled_out |= np.maximum(low[:, None] - high[None, :], low[None, :] - high[:, None]) > root
    return accepted, ruled_out


def _on_pixels(
    pictures: np.ndarray, tiles: int, limit: int, undecided: np.ndarray, order: Sequence[int]
) -> np.ndarray:
    """Those of the undecided pairs, bool `[n, n]` above the diagonal, that are near."""
    near, strips = np.zeros_like(undecided), tile_strips(pictures.shape, tiles)
    rows = np.flatnonzero(undecided.any(0) | undecided.any(1))
    # Pictures of one group side by side: most blocks of products are then without an undecided
    # pair. The order within a group stays.
    _, group = connected_components(undecided[np.ix_(rows, rows)], directed=False)
    rows = rows[np.argsort(group, kind="stable")]
    open_pairs = undecided[np.ix_(rows, rows)]
    for tile in order:
        rows, open_pairs = _compact(rows, open_pairs)
        if not len(rows):
            return near
        if int(open_pairs.sum()) * COST_OF_PAIR < len(rows) ** 2 * _cost_of_product():
            open_pairs = _one_by_one(pictures, strips[tile], limit, rows, open_pairs)
        else:
            rows, open_pairs = _multiplied(pictures, strips[tile], limit, rows, open_pairs)
    i, j = np.nonzero(open_pairs)
    near[rows[i], rows[j]] = True
    return near


def _compact(rows: np.ndarray, open_pairs: np.ndarray, *more: np.ndarray) -> tuple[np.ndarray, ...]:
    """Only rows with an open pair, in all matrices."""
    kept = np.flatnonzero(open_pairs.any(0) | open_pairs.any(1))
    if len(kept) == len(rows):
        return rows, open_pairs, *more
    return rows[kept], *(matrix[np.ix_(kept, kept)] for matrix in (open_pairs, *more))


def _multiplied(
    pictures: np.ndarray,
    tile: Sequence[Strip],
    limit: int,
    rows: np.ndarray,
    open_pairs: np.ndarray,
) -> tuple[np.ndarray, ...]:
    total = np.zeros(open_pairs.shape, dtype=np.int64)
    for strip in tile:
        rows, open_pairs, total = _compact(rows, open_pairs, total)
        total += upper_distances(cut(pictures, strip, rows), open_pairs)
        open_pairs = open_pairs & (total <= limit)
    return rows, open_pairs


def _one_by_one(
    pictures: np.ndarray,
    tile: Sequence[Strip],
    limit: int,
    rows: np.ndarray,
    open_pairs: np.ndarray,
) -> np.ndarray:
    i, j = np.nonzero(open_pairs)
    total = np.zeros(len(i), dtype=np.int64)
    for strip in tile:
        for start in range(0, len(i), PAIRS):
            part = slice(start, start + PAIRS)
            total[part] += paired_distances(
                cut(pictures, strip, rows[i[part]]), cut(pictures, strip, rows[j[part]])
            )
        near = total <= limit
        i, j, total = i[near], j[near], total[near]
    result = np.zeros_like(open_pairs)
    result[i, j] = True
    return result


def _chosen(pictures: np.ndarray, tiles: int, limit: int) -> tuple[Engine, list[int]]:
    """The engine that a sample promises to be the faster, and for products the tiles that rule out
    most of its pairs first.
    """
    count, natural = len(pictures), list(range(tiles * tiles))
    if count <= 2 * SAMPLE:
        return "products", natural
    some = _evenly(np.arange(count), SAMPLE)
    blocks = Blocks.of(pictures.shape, tiles)
    i, j = np.triu_indices(SAMPLE, 1)
    # By Cauchy-Schwarz at least so far apart in the tile; what rows of it were summed so far is
    # taken for their share.
    apart = pooled_distances(block_sums(pictures[some], tiles, blocks), i, j) / (
        blocks.size * (limit + 0.5)
    )
    products, left, order = 0.0, np.ones(len(i), dtype=bool), list[int]()
    strips = len(tile_strips(pictures.shape, tiles)[0])
    while len(order) < len(natural):
        rest = [tile for tile in natural if tile not in order]
        order.append(
            rest[int(np.argmax((apart[left][:, rest] > 1).sum(0)))] if left.any() else rest[0]
        )
        for strip in range(1, strips + 1):
            share = len(np.union1d(i[left], j[left])) / SAMPLE
            products += (
                share * (share * count * _cost_of_product() + COST_OF_CUT) / (strips * len(natural))
            )
            left &= apart[:, order[-1]] * strip <= strips
    share = len(np.union1d(i[left], j[left])) / SAMPLE
    rest_cost = share * (share * count * _cost_of_product() + COST_OF_CUT)
    if share * count * _cost_of_product() > COST_OF_PAIR:
        open_sample = np.zeros((SAMPLE, SAMPLE), dtype=bool)
        open_sample[i[left], j[left]] = True
        members = some[_group(open_sample)]
        if _promising(pictures, members, _mean_picture(pictures, members), tiles, limit):
            rest_cost = share * COST_OF_PAIR
    return ("filter" if COST_OF_BOUNDS + rest_cost < products else "products"), order
