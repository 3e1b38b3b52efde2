"""Training pictures from every kind of file, and searches among them against slow, obvious
oracles.
"""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attacks import _nearest
from attacks._exact import squared_limit
from attacks._nearest import FAR, distances_of_pairs, nearest, within
from attacks._training_set import TrainingSet
from bench.base.errors import UserError
from bench.store.store import SampleKey, SampleStore, encode_png

SIDE = 8


def random_pictures(count, seed=0, side=SIDE, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, side, side, 3), dtype=np.uint8)


def shard(path, pictures, column="image", ids=None, kind=None):
    content = [
        picture if isinstance(picture, bytes | dict | None) else encode_png(picture)
        for picture in pictures
    ]
    columns = {column: pa.array(content, kind)} if kind else {column: content}
    pq.write_table(pa.table(columns | ({"id": ids} if ids else {})), path)
    return path


def read(training):
    batches = list(training)
    return [id_ for ids, _ in batches for id_ in ids], np.concatenate(
        [pictures for _, pictures in batches]
    )


class Batches(SimpleNamespace):
    """A training set without files, in batches of a given size."""

    def __iter__(self):
        for start in range(0, len(self.pictures), self.size):
            part = self.pictures[start : start + self.size]
            yield [str(start + i) for i in range(len(part))], part


def batches(pictures, size=3):
    return Batches(pictures=pictures, size=size, side=pictures.shape[1])


def all_distances(a, b):
    return np.array([[int(((x.astype(int) - y.astype(int)) ** 2).sum()) for y in b] for x in a])


# Reading


def as_struct(png):
    return {"bytes": png, "path": "x.png"}


@pytest.mark.parametrize(
    "column, wrap", [("png", bytes), ("image", bytes), ("image", as_struct), ("image_bytes", bytes)]
)
def test_every_column_gives_the_pictures_bit_for_bit(tmp_path, column, wrap):
    pictures = random_pictures(70)
    shard(tmp_path / "b.parquet", [wrap(encode_png(p)) for p in pictures[40:]], column)
    shard(tmp_path / "a.parquet", [wrap(encode_png(p)) for p in pictures[:40]], column)
    training = TrainingSet.open(tmp_path, SIDE)
    assert training.count is None
    ids, got = read(training)
    assert np.array_equal(got, pictures) and got.dtype == np.uint8
    assert (
        ids[:2] == ["a.parquet:0", "a.parquet:1"]
        and ids[40] == "b.parquet:0"
        and len(set(ids)) == 70
    )
    assert training.count == 70
    assert np.array_equal(read(training)[1], pictures), "it can be read again"


def test_ids_come_from_their_column_and_large_binaries_are_read(tmp_path):
    pictures = random_pictures(3)
    file = shard(tmp_path / "a.parquet", pictures, ids=[7, None, 9], kind=pa.large_binary())
    assert read(TrainingSet.open(file, SIDE))[0] == ["7", "a.parquet:1", "9"]


def test_what_this_projects_store_writes_is_read(tmp_path):
    pictures = random_pictures(5)
    store = SampleStore(tmp_path, "suite", "none", {})
    store.append([SampleKey("a fox", i) for i in range(5)], pictures)
    assert np.array_equal(read(TrainingSet.open(store.folder, SIDE))[1], pictures)


def test_picture_files_of_a_folder_and_of_a_list(tmp_path):
    pictures = random_pictures(3)
    (tmp_path / "inner").mkdir()
    files = [tmp_path / "inner" / "z.PNG", tmp_path / "b.png", tmp_path / "a.bmp"]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    (tmp_path / "notes.txt").write_text("no picture")
    ids, got = read(TrainingSet.open(tmp_path, SIDE))
    assert ids == ["a.bmp", "b.png", "inner/z.PNG"] and np.array_equal(got, pictures[::-1])
    ids, got = read(TrainingSet.open(files, SIDE))
    assert ids == ["z.PNG", "b.png", "a.bmp"] and np.array_equal(got, pictures)


@pytest.mark.parametrize("size", [(20, 12), (12, 20), (8, 11), (11, 8), (5, 9), (4, 4), (9, 8)])
def test_other_sizes_are_resized_by_the_short_side_and_cropped_in_the_middle(tmp_path, size):
    width, height = size
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    picture.save(tmp_path / "a.png")
    [got] = read(training := TrainingSet.open(tmp_path / "a.png", SIDE))[1]
    scale = SIDE / min(size)
    resized = np.asarray(
        picture.resize(
            (int(width * scale + 1e-9), int(height * scale + 1e-9)), Image.Resampling.BICUBIC
        )
        if min(size) != SIDE
        else picture
    )
    top, left = (resized.shape[0] - SIDE) // 2, (resized.shape[1] - SIDE) // 2
    assert np.array_equal(got, resized[top : top + SIDE, left : left + SIDE])
    assert (
        "bicubic" in training.policy
        and "centre crop" in training.policy
        and str(SIDE) in training.policy
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_are_read_as_rgb(tmp_path, mode):
    picture = Image.fromarray(random_pictures(1)[0]).convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(
        read(TrainingSet.open(tmp_path, SIDE))[1][0], np.asarray(picture.convert("RGB"))
    )


def test_what_cannot_be_read_is_named(tmp_path):
    png = encode_png(random_pictures(1)[0])
    noise = encode_png(random_pictures(1, side=64)[0])

    def complaint(what, side=SIDE):
        with pytest.raises(UserError) as caught:
            read(TrainingSet.open(what, side))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "row 1 of shard broken.parquet" in complaint(
        shard(tmp_path / "broken.parquet", [png, b"no picture", b"nor this"])
    )
    assert "row 40 of shard late.parquet" in complaint(
        shard(tmp_path / "late.parquet", [png] * 40 + [noise[:400]])
    )
    assert "row 1 of shard null.parquet has no picture" in complaint(
        shard(tmp_path / "null.parquet", [png, None])
    )
    assert "row 0 of shard path.parquet has no picture" in complaint(
        shard(tmp_path / "path.parquet", [as_struct(None), as_struct(png)])
    )
    assert "it has: pixels" in complaint(shard(tmp_path / "column.parquet", [png], column="pixels"))
    assert "no training pictures" in complaint(
        shard(tmp_path / "empty.parquet", [], kind=pa.binary())
    )
    (tmp_path / "text.parquet").write_text("not Parquet")
    assert "shard text.parquet cannot be read" in complaint(tmp_path / "text.parquet")
    (tmp_path / "short.png").write_bytes(noise[: len(noise) // 2])
    assert "short.png is no readable picture" in complaint([tmp_path / "short.png"])
    assert "gone.png is no readable picture" in complaint([tmp_path / "gone.png"])
    (tmp_path / "nothing").mkdir()
    assert "no training pictures" in complaint(tmp_path / "nothing")
    assert "no training pictures in the list" in complaint([])


def test_a_column_of_another_type_is_named(tmp_path):
    pq.write_table(pa.table({"image": ["x.png"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'image' of shard a.parquet holds string"):
        read(TrainingSet.open(tmp_path, SIDE))


def test_batches_are_bounded_by_pictures_and_by_encoded_bytes(tmp_path, monkeypatch):
    pictures = random_pictures(30)
    training = TrainingSet.open(shard(tmp_path / "a.parquet", pictures), SIDE)
    training.batch = 7
    assert [len(ids) for ids, _ in training] == [7, 7, 7, 7, 2]
    assert np.array_equal(read(training)[1], pictures)
    monkeypatch.setattr("attacks._training_set.MEMORY", 3 * len(encode_png(pictures[0])) - 20)
    assert max(len(ids) for ids, _ in training) <= 4
    assert TrainingSet.open(tmp_path, 512).batch * 512 * 512 * 3 <= 2**26


def test_an_iteration_that_is_given_up_leaves_no_count(tmp_path):
    training = TrainingSet.open(shard(tmp_path / "a.parquet", random_pictures(30)), SIDE)
    training.batch = 4
    next(iter(training))
    assert training.count is None


# Searching


def oracle_within(queries, pictures, limit):
    table = all_distances(queries, pictures)
    near = table <= limit
    best = [
        int(np.flatnonzero(row == row.min())[0]) if hits.any() else None
        for row, hits in zip(table, near, strict=True)
    ]
    return (
        [None if b is None else str(b) for b in best],
        [-1 if b is None else row[b] for b, row in zip(best, table, strict=True)],
        near.sum(1),
    )


@st.composite
def cases(draw):
    """Queries and training pictures of many kinds: unrelated, near copies, flat, with one bright
    corner, equal to each other.
    """
    side = draw(st.sampled_from([1, 5, 8, 9, 17]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries = rng.integers(0, 256, (draw(st.integers(1, 5)), side, side, 3), dtype=np.uint8)
    made = []
    for kind in draw(
        st.lists(
            st.sampled_from(["random", "copy", "near", "flat", "corner", "black", "white"]),
            min_size=1,
            max_size=12,
        )
    ):
        picture = queries[rng.integers(len(queries))].copy()
        if kind == "random":
            picture = rng.integers(0, 256, picture.shape, dtype=np.uint8)
        elif kind == "near":
            picture = np.clip(
                picture.astype(int) + rng.integers(-20, 21, picture.shape), 0, 255
            ).astype(np.uint8)
        elif kind == "corner":
            picture[: side // 2 + 1, : side // 2 + 1] ^= 255
        elif kind in ("flat", "black", "white"):
            picture[:] = {"flat": int(rng.integers(256)), "black": 0, "white": 255}[kind]
        made.append(picture)
    if draw(st.booleans()):
        queries[0] = made[-1][0, 0]
    return queries, np.stack(made)


@settings(deadline=None, max_examples=60)
@given(
    cases(),
    st.integers(1, 5),
    st.sampled_from([0.001, 0.05, 0.15, 0.5, 1.0]),
    st.integers(-1, 1),
    st.sampled_from([0, 10, 10**6]),
)
def test_within_equals_brute_force_at_and_beside_the_limit(case, size, threshold, offset, enough):
    queries, pictures = case
    table = all_distances(queries, pictures)
    for limit in {
        squared_limit(threshold, queries[0].size),
        int(table.max()),
        max(0, int(np.median(table)) + offset),
        max(0, int(table[0, 0]) + offset),
        0,
    }:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_nearest, "worth_a_table", lambda rows, columns: enough)
            found = within(queries, batches(pictures, size), limit)
        ids, squared, counts = oracle_within(queries, pictures, limit)
        assert (
            found.nearest == ids
            and found.squared.tolist() == squared
            and found.count.tolist() == counts.tolist()
        )
        assert found.scanned == len(pictures) and counts.sum() <= found.candidates <= table.size


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(1, 5), st.integers(1, 6), st.sampled_from([0, 10, 10**6]))
def test_nearest_equals_brute_force_with_ties_in_the_order_of_the_set(case, size, k, enough):
    queries, pictures = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_nearest, "worth_a_table", lambda rows, columns: enough)
        found = nearest(queries, batches(pictures, size), k)
    for row, distances in enumerate(all_distances(queries, pictures)):
        order = sorted(range(len(pictures)), key=lambda i: (distances[i], i))[:k]
        missing = k - len(order)
        assert found.positions[row].tolist() == order + [-1] * missing
        assert found.squared[row].tolist() == [distances[i] for i in order] + [FAR] * missing
        assert found.ids[row] == str(order[0]) and np.array_equal(
            found.closest[row], pictures[order[0]]
        )


def test_many_queries_are_searched_in_blocks(monkeypatch):
    queries, pictures = random_pictures(11, high=8), random_pictures(20, seed=1, high=8)
    whole = within(queries, batches(pictures), 2500), nearest(queries, batches(pictures), 4)
    monkeypatch.setattr(_nearest, "QUERIES", 3)
    seen = []
    parts = (
        within(queries, batches(pictures), 2500, seen.append),
        nearest(queries, batches(pictures), 4),
    )
    assert 0 < whole[0].count.sum() < 220
    assert (
        whole[0].nearest == parts[0].nearest
        and np.array_equal(whole[0].squared, parts[0].squared)
        and np.array_equal(whole[0].count, parts[0].count)
    )
    assert (
        np.array_equal(whole[1].positions, parts[1].positions)
        and whole[1].ids == parts[1].ids
        and np.array_equal(whole[1].closest, parts[1].closest)
    )
    assert seen == [3, 6, 9, 12, 15, 18, 20]


@settings(deadline=None, max_examples=40)
@given(cases())
def test_block_sums_bound_the_distance_from_below(case):
    a, b = case
    for left, right in ((a, b), (a, a)):
        (sums_a, block), (sums_b, _) = _nearest._block_sums(left), _nearest._block_sums(right)
        pooled = [
            [int(((x.astype(int) - y.astype(int)) ** 2).sum()) for y in sums_b] for x in sums_a
        ]
        assert np.all(np.array(pooled) <= block**2 * all_distances(left, right))


@pytest.mark.parametrize("side", [7, 8, 24, 100])
def test_block_sums_are_the_sums_of_blocks(side):
    pictures = random_pictures(2, side=side, low=200)
    sums, block = _nearest._block_sums(pictures)
    expected = [
        [
            pictures[n, y : y + block, x : x + block].sum((0, 1))
            for y in range(0, side, block)
            for x in range(0, side, block)
        ]
        for n in range(2)
    ]
    assert np.array_equal(sums, np.array(expected).reshape(2, -1))


def test_the_bound_is_reached_and_what_reaches_it_is_kept():
    """Flat pictures: the block sums differ by as much as the pictures do, so the filter stands
    exactly at its limit.
    """
    grey = np.full((256, 16, 16, 3), np.arange(256)[:, None, None, None], dtype=np.uint8)
    for limit in (0, 3 * 256 * 1, 3 * 256 * 100**2, 3 * 256 * 100**2 - 1):
        steps = int((limit / 768) ** 0.5)
        found = within(grey, batches(grey, 100), limit)
        assert found.count.tolist() == [
            min(255, i + steps) - max(0, i - steps) + 1 for i in range(256)
        ]
        assert found.nearest == [str(i) for i in range(256)] and not found.squared.any()


def test_the_filter_rules_out_what_is_far_and_says_how_much_it_left():
    queries = np.full((10, 16, 16, 3), 30, dtype=np.uint8)
    pictures = np.full((50, 16, 16, 3), 220, dtype=np.uint8)
    pictures[17] = 31
    found = within(queries, batches(pictures, 20), squared_limit(0.15, 768))
    assert (
        found.candidates == 10 and found.count.tolist() == [1] * 10 and found.nearest == ["17"] * 10
    )
    queries[:5] = 60
    found = nearest(queries, batches(pictures, 20), 1)
    assert found.positions.ravel().tolist() == [17] * 10
    assert found.candidates == 10 * 20, "the second batch and the third cannot be nearer"


@pytest.mark.parametrize("cost", [0, 10**9])
def test_pairs_alone_and_from_a_table_are_the_same(monkeypatch, cost):
    monkeypatch.setattr(_nearest, "worth_a_table", lambda rows, columns: cost)
    a, b = random_pictures(6).reshape(6, -1), random_pictures(9, seed=1).reshape(9, -1)
    rows, columns = np.array([5, 0, 5, 2]), np.array([8, 8, 0, 3])
    assert distances_of_pairs(a, b, rows, columns).tolist() == [
        ((a[i].astype(int) - b[j]) ** 2).sum() for i, j in zip(rows, columns, strict=True)
    ]
    assert distances_of_pairs(a, b, rows[:0], columns[:0]).tolist() == []


def test_queries_must_be_pictures_of_the_sets_size():
    for queries in (
        random_pictures(2, side=9),
        random_pictures(2).astype(float),
        random_pictures(0),
    ):
        with pytest.raises(UserError, match="pictures to look up must be uint8"):
            within(queries, batches(random_pictures(3)), 1)
    with pytest.raises(UserError, match="at least 1"):
        nearest(random_pictures(2), batches(random_pictures(3)), 0)


def test_the_order_of_the_set_only_decides_between_equals(tmp_path):
    pictures = random_pictures(40, high=40)
    queries = random_pictures(5, seed=1, high=40)
    shuffled = np.random.default_rng(2).permutation(40)
    files = [
        shard(tmp_path / f"{order[0]}.parquet", pictures[order], ids=[str(i) for i in order])
        for order in (np.arange(40), shuffled)
    ]
    limit = int(np.median(all_distances(queries, pictures)))
    one, other = (within(queries, TrainingSet.open(file, SIDE), limit) for file in files)
    assert (
        one.nearest == other.nearest
        and np.array_equal(one.squared, other.squared)
        and np.array_equal(one.count, other.count)
    )


def test_an_equal_picture_is_found_through_its_file(tmp_path):
    pictures = random_pictures(5)
    Image.fromarray(pictures[3]).save(tmp_path / "p.png")
    (tmp_path / "q.png").write_bytes(encode_png(pictures[4]))
    found = within(pictures, TrainingSet.open(tmp_path, SIDE), 0)
    assert found.nearest == [None, None, None, "p.png", "q.png"] and found.squared.tolist() == [
        -1,
        -1,
        -1,
        0,
        0,
    ]


def test_sixteen_bit_pictures_keep_their_high_byte_instead_of_being_clipped_to_white(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    ((_, pictures),) = TrainingSet.open([tmp_path / "deep.png"], 8)
    assert np.array_equal(pictures[0], np.full((8, 8, 3), 40_000 >> 8))
