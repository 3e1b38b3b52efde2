"""The tile distance and the engines that find near pairs: always what brute force finds, by every
way and with every bound.
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import _exact, _near_pairs, _tiles
from attacks._blocks import Blocks, block_sums, candidates, coarse_sums, excluded, pooled_distances
from attacks._exact import normalised, squared_distances, squared_limit
from attacks._near_pairs import near_pairs, triangle
from attacks._tiles import distances, paired_distances, tile_distances, tile_elements
from bench.base.errors import UserError

ENGINES = ["products", "filter", "auto"]
KINDS = ["random", "copies", "duplicates", "bright tile", "logo", "flat", "groups"]


def brute_force(pictures: np.ndarray, tiles: int) -> np.ndarray:
    """Squared distances int64 [n, n, T], pair by pair and tile by tile."""
    count, height, width, _ = pictures.shape
    result = np.zeros((count, count, tiles * tiles), dtype=np.int64)
    for a in range(count):
        for b in range(count):
            for tile in range(tiles * tiles):
                y, x = (tile // tiles) * (height // tiles), (tile % tiles) * (width // tiles)
                part = (slice(y, y + height // tiles), slice(x, x + width // tiles))
                result[a, b, tile] = (
                    (pictures[a][part].astype(np.int64) - pictures[b][part].astype(np.int64)) ** 2
                ).sum()
    return result


def draw(kind: str, count: int, side: int, seed: int, width: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (side, width or side, 3)
    one, quarter = rng.integers(0, 256, shape), side // 4
    if kind == "random":
        return rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    if kind == "copies":
        return np.clip(
            one + rng.normal(0, 1, (count, *shape)) * rng.uniform(0, 20, (count, 1, 1, 1)), 0, 255
        ).astype(np.uint8)
    if kind == "duplicates":
        return rng.integers(0, 256, (2, *shape)).astype(np.uint8)[rng.integers(0, 2, count)]
    if kind == "flat":
        levels = rng.choice([0, 1, 2, 100, 101, 254, 255], count)
        return np.broadcast_to(levels[:, None, None, None], (count, *shape)).astype(np.uint8)
    if kind == "groups":
        centres = rng.integers(0, 256, (3, *shape))
        return np.clip(
            centres[rng.integers(0, 3, count)] + rng.integers(-6, 7, (count, *shape)), 0, 255
        ).astype(np.uint8)
    pictures = np.broadcast_to(one, (count, *shape)).astype(np.uint8).copy()
    for picture in pictures:
        y, x = rng.integers(0, 4, 2) * quarter
        picture[y : y + quarter, x : x + quarter] = (
            255 if kind == "bright tile" else rng.integers(0, 256, (1, 1, 3))
        )
    return pictures


@contextmanager
def ways(pair: float | None = None, block: int = 128, chunk: int = 16384, int8: bool | None = None):
    """Other ways to the same answer: `pair` 0 compares on pixels pair by pair and always tries mean
    pictures, infinity always multiplies.
    """
    integers = _exact.int8_is_exact() if int8 is None else int8 and _exact.int8_is_exact()
    with (
        patch.object(
            _near_pairs, "COST_OF_PAIR", _near_pairs.COST_OF_PAIR if pair is None else pair
        ),
        patch.object(_tiles, "BLOCK", block),
        patch.object(_tiles, "CHUNK", chunk),
        patch.object(_exact, "CHUNK", chunk),
        patch.object(_exact, "int8_is_exact", lambda: integers),
        patch.object(_near_pairs, "int8_is_exact", lambda: integers),
    ):
        yield


def expected(pictures: np.ndarray, tiles: int, limit: int) -> np.ndarray:
    near = brute_force(pictures, tiles).max(2) <= limit
    np.fill_diagonal(near, False)
    return near


sets = st.builds(
    draw,
    st.sampled_from(KINDS),
    st.integers(2, 9),
    st.sampled_from([16, 24, 32]),
    st.integers(0, 2**20),
    st.sampled_from([None, 16, 40]),
)


@settings(deadline=None, max_examples=40)
@given(sets, st.sampled_from([1, 2, 4]), st.data())
def test_every_engine_finds_what_brute_force_finds(pictures, tiles, data):
    exact = brute_force(pictures, tiles).max(2)
    # at a distance and beside
    limit = max(
        0,
        int(data.draw(st.sampled_from(sorted(set(exact.flat)))))
        + data.draw(st.sampled_from([-1, 0, 1])),
    )
    near = exact <= limit
    np.fill_diagonal(near, False)
    for engine in ENGINES:
        for pair, block, chunk, int8 in [
            (None, 128, 16384, None),
            (0.0, 2, 100, None),
            (float("inf"), 3, 257, False),
        ]:
            with ways(pair, block, chunk, int8):
                found = near_pairs(pictures, tiles, limit, engine)
            assert found.adjacency.dtype == bool and np.array_equal(found.adjacency, near)
            work = dict(found.work)
            assert (
                work.pop("pairs") == sum(work.values()) == len(pictures) * (len(pictures) - 1) // 2
            )


@settings(deadline=None, max_examples=40)
@given(sets, st.sampled_from([1, 2, 4]), st.data())
def test_the_distance_is_a_metric_that_ignores_where_tiles_lie(pictures, tiles, data):
    exact = brute_force(pictures, tiles).max(2)
    with ways(
        block=data.draw(st.sampled_from([1, 3, 128])), chunk=data.draw(st.sampled_from([50, 16384]))
    ):
        found = distances(pictures, tiles)
        assert np.array_equal(found, exact) and np.array_equal(
            tile_distances(pictures, pictures[::-1], tiles), exact[:, ::-1]
        )
    assert np.array_equal(found == 0, (pictures[:, None] == pictures[None]).all((2, 3, 4)))
    roots = np.sqrt(found)
    assert (roots[:, None, :] <= roots[:, :, None] + roots[None, :, :] + 1e-6).all()
    tall, wide = pictures.shape[1] // tiles, pictures.shape[2] // tiles
    rolled = np.roll(
        pictures,
        (tall * data.draw(st.integers(0, tiles)), wide * data.draw(st.integers(0, tiles))),
        (1, 2),
    )
    assert np.array_equal(distances(rolled, tiles), found)
    assert np.array_equal(distances(pictures[:, ::-1, ::-1], tiles), found)
    # Between the distance of whole pictures and the root of the number of tiles times it.
    whole = distances(pictures, 1)
    assert (whole <= tiles**2 * found).all() and (found <= whole).all()


@settings(deadline=None, max_examples=40)
@given(sets, st.sampled_from([1, 2, 4]))
def test_block_sums_bound_every_tile(pictures, tiles):
    exact, blocks = brute_force(pictures, tiles), Blocks.of(pictures.shape, tiles)
    sums = block_sums(pictures, tiles, blocks)
    i, j = np.triu_indices(len(pictures), 1)
    pooled = pooled_distances(sums, i, j)
    assert (pooled <= blocks.size * exact[i, j]).all()
    coarse = coarse_sums(sums, blocks).astype(np.int64)
    down, across = blocks.merged
    apart = ((coarse[i] - coarse[j]) ** 2).sum(1)
    assert (apart <= down * across * pooled.sum(1)).all()
    for limit in [0, int(np.median(exact)), int(exact.max())]:
        found = candidates(sums, blocks, limit)
        # a superset by whole numbers
        assert found[i, j][apart <= tiles**2 * blocks.size * down * across * limit].all()
        for share in [1, len(pictures) ** 2]:  # the pairs gathered, and products of all
            undecided = np.triu(np.ones((len(pictures),) * 2, dtype=bool), 1)
            if share > 1:
                undecided[:] = False
                undecided[0, -1] = True
            before = undecided.copy()
            excluded(sums, blocks.size * limit, undecided)
            assert np.array_equal(
                undecided[i, j], before[i, j] & (pooled <= blocks.size * limit).all(1)
            )


def test_the_block_bound_is_reached_by_flat_differences():
    """Flat pictures have the largest sums that their distance allows: one less in the limit and the
    blocks decide alone.
    """
    pictures = np.stack([np.full((64, 32, 3), level, dtype=np.uint8) for level in [100, 107]])
    blocks = Blocks.of(pictures.shape, 2)
    assert (blocks.height, blocks.width) == (4, 2)
    limit = 7 * 7 * tile_elements(pictures.shape, 2)
    for less, expected_work in [(0, 1), (1, 0)]:
        undecided = np.triu(np.ones((2, 2), dtype=bool), 1)
        excluded(block_sums(pictures, 2, blocks), blocks.size * (limit - less), undecided)
        assert undecided.sum() == expected_work
        assert near_pairs(pictures, 2, limit - less, "filter").adjacency[0, 1] == (less == 0)


def test_blocks_need_not_divide_a_tile():
    pictures = draw("groups", 6, 46, 0, 34)
    blocks = Blocks.of(pictures.shape, 2)
    assert (blocks.height, blocks.down, blocks.width, blocks.across) == (2, 11, 2, 8)
    sums = block_sums(pictures, 2, blocks).reshape(6, 2, 2, 11, 8, 3)
    assert sums[4, 1, 0, 10, 7].tolist() == pictures[4, 43:45, 14:16].sum((0, 1)).tolist()
    assert (
        coarse_sums(sums.reshape(6, 4, -1), blocks)
        .reshape(6, 2, 2, 5, 4, 3)[4, 1, 0, 4, 3]
        .tolist()
        == pictures[4, 39:43, 12:16].sum((0, 1)).tolist()
    )


@pytest.mark.parametrize("by_products_from", [1, 10**6])
def test_rounding_in_the_search_loses_no_pair(by_products_from, monkeypatch):
    """Pairs exactly at the limit, of flat tiles so far from the mean that squares of their sums
    exceed what float32 holds.
    """
    levels = np.random.default_rng(1).choice([0, 254], (60, 4, 4, 3)).astype(np.uint8)
    pictures = np.concatenate([levels, levels + np.uint8(1)]).repeat(16, 1).repeat(16, 2)
    limit = tile_elements(pictures.shape, 4)
    blocks = Blocks.of(pictures.shape, 4)
    sums = block_sums(pictures, 4, blocks)
    partner = np.eye(120, k=60, dtype=bool) | np.eye(120, k=-60, dtype=bool)
    # queries; products round far more
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", by_products_from)
    assert candidates(sums, blocks, limit)[partner].all()
    few = np.triu(partner)
    excluded(sums, blocks.size * limit, few)
    assert few.sum() == 60
    excluded(sums, blocks.size * limit - 1, few)
    assert not few.any()
    assert np.array_equal(near_pairs(pictures, 4, limit, "filter").adjacency, partner)
    assert not near_pairs(pictures, 4, limit - 1, "filter").adjacency.any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=2, max_size=8), st.integers(0, 255), st.data())
def test_the_triangle_decides_only_what_is_certain(levels, middle, data):
    """On a line sums and differences of distances are distances, the hardest case for rounding
    roots.
    """
    elements = data.draw(st.sampled_from([3, 12, 48, 49152]))
    values = np.array(levels, dtype=np.int64)
    exact = (values[:, None] - values[None]) ** 2 * elements
    limit = max(
        0,
        int(data.draw(st.sampled_from(sorted(set(exact.flat)))))
        + data.draw(st.sampled_from([-1, 0, 1])),
    )
    accepted, ruled_out = triangle(((values - middle) ** 2 * elements)[:, None], limit)
    assert (exact <= limit)[accepted].all() and (exact > limit)[ruled_out].all()
    with_tile = np.stack([(values - middle) ** 2 * elements, np.zeros_like(values)], 1)
    assert np.array_equal(triangle(with_tile, limit)[0], accepted) and np.array_equal(
        triangle(with_tile, limit)[1], ruled_out
    )


def test_the_mean_picture_accepts_copies_without_their_pixels():
    pictures = np.concatenate([draw("groups", 40, 16, seed) for seed in (0, 1)])
    limit = squared_limit(0.05, tile_elements(pictures.shape, 2))
    with ways(pair=0.0):
        found = near_pairs(pictures, 2, limit, "filter")
    assert np.array_equal(found.adjacency, expected(pictures, 2, limit)) and found.adjacency.any()
    assert found.work["on_pixels"] == 0 and found.work["accepted"] > 300


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["random", "copies", "groups", "logo"])
def test_shuffling_and_threads_change_nothing(engine, kind):
    pictures = draw(kind, 90, 16, 3)
    exact = distances(pictures, 4)
    limit = int(np.median(exact[np.triu_indices(90, 1)]))
    order = np.random.default_rng(0).permutation(90)
    first = near_pairs(pictures, 4, limit, engine)
    assert np.array_equal(first.adjacency, (exact <= limit) & ~np.eye(90, dtype=bool))
    try:
        torch.set_num_threads(2)
        faiss.omp_set_num_threads(2)
        assert np.array_equal(near_pairs(pictures, 4, limit, engine).adjacency, first.adjacency)
        assert np.array_equal(
            near_pairs(list(pictures[order]), 4, limit, engine).adjacency,
            first.adjacency[np.ix_(order, order)],
        )
    finally:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_extremes_of_the_limit(engine):
    pictures = draw("duplicates", 20, 16, 1)
    # a single number differs, by one
    pictures[0] = pictures[0] ^ (np.arange(16 * 16 * 3).reshape(16, 16, 3) == 5)
    same = (pictures[:, None] == pictures[None]).all((2, 3, 4)) & ~np.eye(20, dtype=bool)
    assert np.array_equal(near_pairs(pictures, 4, 0, engine).adjacency, same) and same.any()
    opposite = np.stack([np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)] * 3)
    largest = squared_limit(1.0, tile_elements(opposite.shape, 4))
    for limit in (largest, 2**70):
        assert near_pairs(opposite, 4, limit, engine).adjacency.sum() == 6 * 5
    assert near_pairs(opposite, 4, largest - 1, engine).adjacency.sum() == 2 * 3 * 2


@pytest.mark.parametrize("engine", ENGINES)
def test_another_logo_is_not_near_though_the_pictures_are(engine):
    pictures = np.full((2, 32, 32, 3), 128, np.uint8)
    pictures[1, 8:16, 16:24] = 255
    elements = tile_elements(pictures.shape, 4)
    limit = squared_limit(0.15, elements)
    assert (
        normalised(int(distances(pictures, 1)[0, 1]), 16 * elements)
        < 0.15
        < normalised(int(distances(pictures, 4)[0, 1]), elements)
    )
    assert near_pairs(pictures, 1, squared_limit(0.15, 16 * elements), engine).adjacency.any()
    assert not near_pairs(pictures, 4, limit, engine).adjacency.any()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_planted_clique_is_found(engine):
    pictures = draw("random", 150, 16, 5)
    members = np.random.default_rng(1).permutation(150)[:10]
    pictures[members] = np.clip(
        pictures[members[0]] + np.random.default_rng(2).integers(-4, 5, (10, 16, 16, 3)), 0, 255
    )
    found = near_pairs(pictures, 4, squared_limit(0.05, tile_elements(pictures.shape, 4)), engine)
    wanted = np.zeros((150, 150), dtype=bool)
    wanted[np.ix_(members, members)] = True
    assert np.array_equal(found.adjacency, wanted & ~np.eye(150, dtype=bool))


def test_auto_looks_first_where_pictures_differ():
    pictures = np.tile(draw("random", 1, 32, 0), (80, 1, 1, 1))
    pictures[:, 8:16, 16:24] = np.random.default_rng(0).integers(0, 256, (80, 1, 1, 3))
    limit = squared_limit(0.02, tile_elements(pictures.shape, 4))
    _, order = _near_pairs._chosen(pictures, 4, limit)
    assert order[0] == 6 and sorted(order) == list(range(16))
    assert near_pairs(pictures, 4, limit).work["pairs"] == 80 * 79 // 2


def test_auto_takes_the_bounds_where_products_cost_much():
    pictures = draw("copies", 80, 16, 0) // np.uint8(3)
    pictures[1::2] += np.uint8(100)
    limit = squared_limit(0.1, tile_elements(pictures.shape, 4))
    for cost, engine in [(1e6, "filter"), (1e-6, "products")]:
        with patch.object(_near_pairs, "_cost_of_product", lambda cost=cost: cost):
            found = near_pairs(pictures, 4, limit)
        assert found.engine == engine


def test_limits_of_the_paper():
    elements = tile_elements((512, 512, 3), 4)
    assert elements == 49152
    assert [squared_limit(threshold, elements) for threshold in (0.05, 0.1, 0.15)] == [
        7990272,
        31961088,
        71912448,
    ]


def test_sums_of_the_largest_differences_do_not_overflow():
    black, white = np.zeros((2, 70001), np.uint8), np.full((2, 70001), 255, np.uint8)
    assert paired_distances(black, white).tolist() == [70001 * 65025] * 2
    assert (squared_distances(black, white) == 70001 * 65025).all()
    wide = np.stack([np.zeros((1, 24000, 3), np.uint8), np.full((1, 24000, 3), 255, np.uint8)])
    assert distances(wide, 1)[0, 1] == tile_distances(wide[:1], wide[1:], 1)[0, 0] == 72000 * 65025


def test_errors_name_the_numbers():
    pictures = draw("random", 3, 16, 0)
    with pytest.raises(UserError, match="16x16 cannot be cut into 3 x 3"):
        near_pairs(pictures, 3, 10)
    with pytest.raises(UserError, match="0 x 0"):
        near_pairs(pictures, 0, 10)
    with pytest.raises(UserError, match="at least 2 pictures"):
        near_pairs(pictures[:1], 4, 10)
    with pytest.raises(UserError, match="unequal size: picture 0 is 16x16 and picture 2 is 12x16"):
        near_pairs([*pictures[:2], pictures[2][:, :12]], 4, 10)
    with pytest.raises(UserError, match="float64"):
        near_pairs(pictures.astype(float), 4, 10)
    with pytest.raises(UserError, match="unequal size"):
        tile_distances(pictures, pictures[:, :8], 4)
    for threshold in (0, -0.1, 1.01):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            squared_limit(threshold, 48)
