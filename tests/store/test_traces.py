"""What recorders kept: found again by image, whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from bench.base.errors import UserError
from bench.store.folders import open_folder
from bench.store.store import SampleKey
from bench.store.traces import Traces

KEYS = [SampleKey(f"prompt {number // 2}", number) for number in range(6)]
VALUES = np.arange(36, dtype=np.float32).reshape(6, 3, 2)


def traces(folder) -> Traces:
    return Traces(open_folder(folder), "norms-0")


def test_arrays_come_back_in_the_order_asked_for(tmp_path):
    traces(tmp_path).append(KEYS[:4], VALUES[:4])
    traces(tmp_path).append(KEYS[2:], VALUES[2:])
    found = traces(tmp_path)
    assert found.missing(KEYS) == []
    assert np.array_equal(found.read(KEYS[::-1]), VALUES[::-1])


def test_what_is_there_stays(tmp_path):
    kept = traces(tmp_path)
    kept.append(KEYS[:2], VALUES[:2])
    kept.append(KEYS[:2], VALUES[:2] + 100)
    assert np.array_equal(kept.read(KEYS[:2]), VALUES[:2])


def test_an_image_without_an_array_is_named(tmp_path):
    with pytest.raises(UserError, match="prompt 0"):
        traces(tmp_path).read(KEYS[:1])


@pytest.mark.parametrize("ending", [".npy", ".json"])
def test_a_damaged_part_is_named_and_made_again(tmp_path, ending, capsys):
    traces(tmp_path).append(KEYS, VALUES)
    (part,) = tmp_path.glob(f"traces/norms-0/*{ending}")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    if ending == ".npy":
        with pytest.raises(UserError, match="makes it again"):
            traces(tmp_path).read(KEYS)
    else:
        assert traces(tmp_path).missing(KEYS) == KEYS
        assert "damaged" in capsys.readouterr().err
    again = traces(tmp_path)
    assert again.missing(KEYS) == KEYS
    again.append(KEYS, VALUES)
    assert np.array_equal(traces(tmp_path).read(KEYS), VALUES)


def test_rows_without_their_list_count_for_nothing(tmp_path):
    traces(tmp_path).append(KEYS, VALUES)
    for note in tmp_path.glob("traces/norms-0/*.json"):
        note.unlink()
    assert traces(tmp_path).missing(KEYS) == KEYS
