import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.errors import UserError
from bench.store import SampleKey, SampleStore


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
    for stored, original in zip(again.pictures([*reversed(keys(5))]), reversed(pictures(5)), strict=True):
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
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
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
    assert np.array_equal(open_store(tmp_path).pictures(keys(6)), np.concatenate([pictures(2), pictures(2, seed=2), pictures(2, seed=4)]))


def test_a_changed_picture_does_not_match_its_hash(tmp_path):
    store = open_store(tmp_path)
    store.append(keys(2), pictures(2))
    table = pq.read_table(store.shards()[0]).to_pydict()
    table["png"][1] = table["png"][0]
    import pyarrow as pa

    from bench.store import SCHEMA

    pq.write_table(pa.table(table, schema=SCHEMA), store.shards()[0])
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
