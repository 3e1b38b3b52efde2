from itertools import count
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.base import limits
from bench.base.errors import UserError
from bench.store import shards
from bench.store.folders import BehindUrl
from bench.store.store import SampleKey, SampleStore, pixel_digest

NUMBERS = count()


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def keys(count, start=0):
    return [SampleKey(f"prompt {i}", 1000 + i) for i in range(start, start + count)]


def open_store(root, **identity):
    return SampleStore(root, "suite", "method", {"a": 1} | identity)


def test_what_was_stored_is_there_for_the_next_process(tmp_path):
    open_store(tmp_path).append(keys(5), pictures(5))
    again = open_store(tmp_path)
    assert again.missing(keys(7)) == keys(2, start=5)
    for stored, original in zip(
        again.pictures([*reversed(keys(5))]), reversed(pictures(5)), strict=True
    ):
        assert np.array_equal(stored, original)


def test_another_identity_is_another_place(tmp_path):
    open_store(tmp_path).append(keys(2), pictures(2))
    assert len(open_store(tmp_path, a=2)) == 0


def test_features_are_extracted_once_a_shard_and_follow_their_pictures(tmp_path):
    calls = []

    def extract(batch):
        calls.append(len(batch))
        return np.array([[picture.mean()] for picture in batch], dtype=np.float32)

    store = open_store(tmp_path)
    store.append(keys(3), pictures(3))
    store.append(keys(2, start=3), pictures(2, seed=1))
    order = [keys(5)[i] for i in (4, 0, 3, 1)]
    expected = [np.concatenate([pictures(3), pictures(2, seed=1)])[i].mean() for i in (4, 0, 3, 1)]
    for _ in range(2):
        assert store.features(order, "mean", extract)[:, 0] == pytest.approx(expected)
    assert sorted(calls) == [2, 3]


def test_a_half_written_shard_is_never_seen(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2))
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="No space left.*what was written before is kept"):
        store.append(keys(2, start=2), pictures(2))
    assert [path.name for path in store.folder.iterdir() if path.suffix == ".tmp"] == []
    assert open_store_after(monkeypatch, tmp_path).missing(keys(4)) == keys(2, start=2)


def open_store_after(monkeypatch, root):
    monkeypatch.undo()
    return open_store(root)


def test_a_truncated_shard_is_named_and_the_rest_is_kept(tmp_path):
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2))
    store.append(keys(2, start=2), pictures(2))
    shard = store.shards()[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{shard.name} is corrupt.*delete it and repeat") as error:
        open_store(tmp_path)
    assert "\n" not in str(error.value)
    shard.unlink()
    assert open_store(tmp_path).missing(keys(4)) == keys(2)


def test_new_shards_never_overwrite_those_that_are_left_after_a_deletion(tmp_path):
    store = open_store(tmp_path)
    for start in (0, 2, 4):
        store.append(keys(2, start=start), pictures(2, seed=start))
    store.shards()[0].unlink()
    again = open_store(tmp_path)
    again.append(keys(2), pictures(2))
    assert np.array_equal(
        open_store(tmp_path).pictures(keys(6)),
        np.concatenate([pictures(2), pictures(2, seed=2), pictures(2, seed=4)]),
    )


def test_a_changed_picture_does_not_match_its_hash(tmp_path):
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2))
    table = pq.read_table(store.shards()[0]).to_pydict()
    table["png"][1] = table["png"][0]

    from bench.store.store import SCHEMA

    pq.write_table(pa.table(table, schema=SCHEMA), store.shards()[0], compression="none")
    with pytest.raises(UserError, match="row 1 does not match its sha256"):
        open_store(tmp_path).pictures(keys(2))


def test_shards_are_ordinary_parquet_for_pandas(tmp_path):
    import pandas as pd

    store = open_store(tmp_path)
    store.append(keys(3), pictures(3))
    frame = pd.read_parquet(store.shards()[0])
    assert list(frame["prompt"]) == [key.prompt for key in keys(3)]
    assert all(png.startswith(b"\x89PNG") for png in frame["png"])


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_store(tmp_path / "file").prepare()


class HalfWay(MemoryFileSystem):
    """A file system that renames, whose disk is full half way through a write while `full`;
    `stuck`: then what was begun stays, too.
    """

    protocol = "halfway"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    full: ClassVar = False
    stuck: ClassVar = False

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if HalfWay.full:
            super().pipe_file(path, value[: len(value) // 2])
            raise OSError(28, "No space left on device")
        super().pipe_file(path, value)

    def rm_file(self, path):
        if HalfWay.stuck:
            raise OSError(5, "Input/output error")
        super().rm_file(path)


@pytest.fixture
def half_way(monkeypatch):
    fsspec.register_implementation("halfway", HalfWay, clobber=True)
    monkeypatch.setattr(HalfWay, "store", {})
    monkeypatch.setattr(HalfWay, "pseudo_dirs", [""])
    return HalfWay


@pytest.fixture(params=["path", "file", "memory", "halfway"])
def root(request, tmp_path, half_way):
    return {
        "path": str(tmp_path),
        "file": f"file://{tmp_path}",
        "memory": f"memory://{tmp_path.name}",
        "halfway": "halfway://a/b",
    }[request.param]


def mean_of(batch):
    return np.array([[picture.mean(), 1] for picture in batch], dtype=np.float32)


def test_a_store_anywhere_gives_what_a_folder_gives(root):
    store = open_store(root)
    store.prepare()
    store.append(keys(3), pictures(3), [{"a": i} for i in range(3)])
    store.append(
        keys(2, start=3), pictures(2, seed=1), features={"mean": mean_of(pictures(2, seed=1))}
    )
    again = open_store(root)
    assert again.shard_names() == store.shard_names() and len(again.shard_names()) == 2
    assert again.missing(keys(7)) == keys(2, start=5)
    everything = np.concatenate([pictures(3), pictures(2, seed=1)])
    assert np.array_equal(again.pictures(keys(5)), everything)
    assert again.facts(keys(3)) == [{"a": i} for i in range(3)]
    assert np.array_equal(again.features(keys(5), "mean", mean_of), mean_of(everything))
    assert again.with_features("mean") == set(again.shard_names())
    store.files.write("timing-x.json", b"{}")
    assert (
        store.files.exists("timing-x.json")
        and "timing-x.json" in again.files.names()
        and not again.files.exists("other")
    )
    assert store.files.read("timing-x.json") == b"{}"


def test_what_another_process_stored_meanwhile_is_noticed_on_refresh(root):
    mine, other = open_store(root), open_store(root)
    other.append(keys(2), pictures(2))
    assert len(mine) == 0
    mine.refresh()
    assert np.array_equal(mine.pictures(keys(2)), pictures(2))


@pytest.mark.parametrize("stuck", [False, True])
def test_a_write_that_fails_half_way_leaves_nothing_that_counts(half_way, monkeypatch, stuck):
    store = open_store("halfway://a/b")
    store.append(keys(2), pictures(2))
    before = {path: bytes(file.getbuffer()) for path, file in half_way.store.items()}
    monkeypatch.setattr(half_way, "full", True)
    monkeypatch.setattr(half_way, "stuck", stuck)
    with pytest.raises(
        UserError,
        match=(
            "halfway://a/b/suite/method-.* cannot be written: .*No space left.*what was written"
            " before is kept"
        ),
    ):
        store.append(keys(2, start=2), pictures(2), features={"mean": mean_of(pictures(2))})
    monkeypatch.setattr(half_way, "full", False)
    assert {path: bytes(half_way.store[path].getbuffer()) for path in before} == before
    # what cannot be removed has the name of something unfinished
    assert len(half_way.store) == len(before) + stuck
    again = open_store("halfway://a/b")
    assert again.missing(keys(4)) == keys(2, start=2) and again.with_features("mean") == set()


def test_a_store_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(
        known_implementations, "far", {"class": "nosuchpackage.FarFileSystem", "err": "Install it"}
    )
    with pytest.raises(
        UserError,
        match=(
            "^the store far://bucket/x cannot be opened: it needs the package nosuchpackage: pip"
            " install nosuchpackage$"
        ),
    ):
        open_store("far://bucket/x")
    with pytest.raises(UserError, match="Protocol not known: nowhere"):
        open_store("nowhere://user:secret@host/x")
    assert "secret" not in str(BehindUrl("nowhere://user:secret@host/x"))


def test_a_picture_that_was_dropped_leaves_its_facts_and_digests(root):
    store = open_store(root)
    store.append(
        keys(3),
        pictures(3),
        [{"a": i} for i in range(3)],
        {"mean": mean_of(pictures(3))},
        dropped=keys(2),
    )
    again = open_store(root)
    assert again.dropped == set(keys(2)) and again.missing(keys(3)) == []
    assert again.facts(keys(3)) == [{"a": i} for i in range(3)]
    assert again.pixel_digests(keys(3)) == [pixel_digest(picture) for picture in pictures(3)]
    assert np.array_equal(again.features(keys(3), "mean", None), mean_of(pictures(3)))
    assert np.array_equal(again.pictures(keys(1, start=2))[0], pictures(3)[2])
    for ask in (lambda: again.png(keys(1)), lambda: again.features(keys(2), "other", mean_of)):
        with pytest.raises(
            UserError, match="the picture in row 0 of shard .* was dropped.*--keep-images all"
        ):
            ask()


def test_features_of_pictures_beside_dropped_ones_can_still_be_made(tmp_path):
    store = open_store(tmp_path)
    store.append(keys(3), pictures(3), dropped=keys(1))
    assert np.array_equal(
        store.features(keys(2, start=1), "mean", mean_of), mean_of(pictures(3)[1:])
    )
    assert store.with_features("mean") == set()  # a file would say that all rows have them


def test_shards_with_all_their_pictures_are_what_they_were_before_any_could_be_dropped(tmp_path):
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2), features={"mean": mean_of(pictures(2))})
    assert pq.read_schema(store.shards()[0]).names == [
        "prompt",
        "seed",
        "png",
        "sha256",
        "method",
        "facts",
        "evaluations",
    ]


def test_what_another_process_stored_meanwhile_is_not_stored_again(tmp_path):
    """Whoever reads, then or later, finds the picture that was first."""
    first, second = open_store(tmp_path), open_store(tmp_path)
    first.append(keys(3), pictures(3, seed=1))
    second.append(keys(4), pictures(4, seed=2))  # it does not know of the first one's yet
    expected = [*pictures(3, seed=1), pictures(4, seed=2)[3]]
    for store in (first, second, open_store(tmp_path)):
        store.refresh()
        for found, picture in zip(store.pictures(keys(4)), expected, strict=True):
            assert np.array_equal(found, picture)
    assert [pq.read_metadata(path).num_rows for path in first.shards()] == [3, 1]


def test_every_image_says_what_it_cost_and_what_made_it(tmp_path):
    store = open_store(tmp_path)
    here, there = {"device": "cpu", "batch_size": 4}, {"device": "cuda", "batch_size": 8}
    store.append(keys(3), pictures(3), evaluations=[50.0, 50.0, 62.5], made_by=here)
    store.append(keys(5, start=3), pictures(5), evaluations=[50.0] * 5, made_by=there)
    again = open_store(tmp_path)
    asked = [keys(8)[i] for i in (2, 0, 7)]
    assert again.evaluations(asked) == [62.5, 50.0, 50.0]
    assert again.made_by(asked) == [(here, 2), (there, 1)]
    assert again.made_by(keys(8)) == [(there, 5), (here, 3)]


@pytest.mark.parametrize("same", [True, False])
def test_an_image_made_again_has_its_picture_and_the_features_that_fit_it(tmp_path, same):
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2), features={"mean": mean_of(pictures(2))}, dropped=keys(2))
    kept = {path: path.read_bytes() for path in store.folder.rglob("*.*") if path.is_file()}
    newer = pictures(1) if same else pictures(1, seed=5)
    store.append(keys(1), newer)
    asked = []
    for one in (store, open_store(tmp_path)):
        assert one.dropped == set(keys(1, start=1)) and np.array_equal(one.pictures(keys(1)), newer)
        found = one.features(
            keys(2), "mean", lambda batch: asked.append(len(batch)) or mean_of(batch)
        )
        assert np.array_equal(found, mean_of([newer[0], pictures(2)[1]]))
    assert asked == ([] if same else [1])
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_a_process_that_dies_between_features_and_shard_loses_the_shard_alone(
    tmp_path, monkeypatch
):
    store = open_store(tmp_path)

    def dies(name, content, write=store.files.write):
        if name.endswith(".parquet"):
            raise KeyboardInterrupt
        write(name, content)

    monkeypatch.setattr(type(store.files), "write", lambda _, name, content: dies(name, content))
    with pytest.raises(KeyboardInterrupt):
        store.append(keys(2), pictures(2), features={"mean": mean_of(pictures(2))}, dropped=keys(2))
    monkeypatch.undo()
    again = open_store(tmp_path)
    assert again.missing(keys(2)) == keys(2)
    again.append(keys(2), pictures(2), features={"mean": mean_of(pictures(2))}, dropped=keys(2))
    assert np.array_equal(
        open_store(tmp_path).features(keys(2), "mean", None), mean_of(pictures(2))
    )


# of an image: which, how it came out that time, whether its picture is dropped
ROW = st.tuples(st.integers(0, 3), st.integers(0, 1), st.booleans())


@given(
    st.lists(
        st.tuples(
            st.lists(ROW, min_size=1, max_size=4, unique_by=lambda row: row[0]), st.booleans()
        ),
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_of_an_image_stored_several_times_the_first_picture_counts_or_else_the_newest_row(shards):
    root = f"memory://{next(NUMBERS)}"
    store, rows = open_store(root), []
    for shard, with_features in shards:
        made = [pictures(1, seed=10 * image + variant)[0] for image, variant, _ in shard]
        features = {"mean": mean_of(made)} if with_features else {}
        store.append(
            [keys(4)[image] for image, *_ in shard],
            made,
            features=features,
            dropped=[keys(4)[image] for image, _, drop in shard if drop],
        )
        rows += [
            (image, picture, drop, with_features)
            for (image, _, drop), picture in zip(shard, made, strict=True)
        ]
    for one in (store, open_store(root)):
        for image in range(4):
            (key,), mine = keys(1, start=image), [row for row in rows if row[0] == image]
            assert (key in one) == bool(mine)
            if not mine:
                continue
            counts = next((row for row in mine if not row[2]), mine[-1])
            before = mine[: next(number for number, row in enumerate(mine) if row is counts) + 1]
            assert (key in one.dropped) == counts[2]
            assert one.pixel_digests([key]) == [pixel_digest(counts[1])]
            having = any(row[3] and np.array_equal(row[1], counts[1]) for row in before)
            assert one.has_features(key, one.with_features("mean")) == having
            if having:
                assert np.array_equal(one.features([key], "mean", None), mean_of([counts[1]]))


@pytest.mark.parametrize("root", ["~/images", "file://~/images", Path("~/images")])
def test_a_store_in_the_users_own_folder_is_there(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    open_store(root).append(keys(2), pictures(2))
    again = open_store(root)
    assert len(again.pictures(keys(2))) == 2 and again.folder.is_relative_to(tmp_path / "images")
    assert not (tmp_path / "~").exists()


# Shards of strangers


def stranger(tmp_path, table, **how):
    """A store of two images, whose shard somebody replaced."""
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2))
    (file,) = store.files.path.glob("*.parquet")
    whole = pq.read_table(file)
    pq.write_table(table(whole), file, **{"compression": "none"} | how)
    return file


def with_png(value, rows):
    """A table with one picture's bytes in so many rows."""

    def table(whole):
        columns = {name: [whole[name][0].as_py()] * rows for name in whole.column_names}
        return pa.table(columns | {"png": [value] * rows}, schema=whole.schema)

    return table


def replaced(name, values):
    return lambda whole: whole.set_column(whole.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("table", "how", "message"),
    [
        (with_png(bytes(20_000), 2), {"compression": "zstd"}, "is compressed; none of ours is"),
        # 10,000 bytes in the file, once, and 3,000 rows that repeat them
        (with_png(bytes(10_000), 3_000), {}, "bytes and .* images"),
        (with_png(bytes(10_000), 300), {"use_dictionary": False}, "bytes and .* images"),
        (with_png(b"", 5_001), {}, "images; .* and 5,000 are allowed"),
        (replaced("png", [[[b"x"] * 9, []]]), {}, "its column png is of the type list"),
        (replaced("seed", [["1", "2"]]), {}, "its column seed is of the type string"),
        (lambda whole: whole.drop_columns(["png"]), {}, "it has 0 columns png"),
        (lambda whole: whole.append_column("png", whole["png"]), {}, "it has 2 columns png"),
    ],
)
def test_a_shard_that_becomes_more_than_its_file_says_is_refused(
    tmp_path, monkeypatch, table, how, message
):
    monkeypatch.setattr(limits, "SHARD_BYTES", 2_000_000)
    monkeypatch.setattr(limits, "SHARD_IMAGES", 5_000)
    stranger(tmp_path, table, **how)
    with pytest.raises(UserError, match=f"is corrupt .*{message}"):
        open_store(tmp_path).png(keys(1))


def test_what_a_shard_repeats_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    """What is in memory when the limit is met is not much more than the limit."""
    monkeypatch.setattr(limits, "SHARD_BYTES", 2_000_000)
    file = stranger(tmp_path, with_png(bytes(100_000), 3_000))
    assert file.stat().st_size < 300_000
    seen, judge = [], shards._refuse_too_much
    monkeypatch.setattr(
        shards, "_refuse_too_much", lambda size, images: (seen.append(size), judge(size, images))
    )
    with pytest.raises(UserError, match="are allowed"):
        open_store(tmp_path).png(keys(1))
    assert max(seen) < 2 * limits.SHARD_BYTES


@pytest.mark.parametrize("limit", [1, 60, 10_000])
def test_a_shard_is_the_same_in_parts_of_any_size(tmp_path, monkeypatch, limit):
    store = open_store(tmp_path)
    store.append(keys(50), pictures(50))
    monkeypatch.setattr(shards, "_at_once", lambda file: limit)
    for original, stored in zip(pictures(50), open_store(tmp_path).pictures(keys(50)), strict=True):
        assert np.array_equal(original, stored)
