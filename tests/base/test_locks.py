"""One lock for a folder, and one rule where a file system has none."""

import errno
import fcntl
import multiprocessing
import os

import numpy as np
import pytest
from filelock import FileLock, Timeout

from bench.base.errors import UserError
from bench.base.locks import LOCK, Busy, locked
from bench.store import folders
from bench.store.store import SampleKey, SampleStore

WITHOUT = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO]


@pytest.fixture(params=WITHOUT, ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def _busy(folder):
    try:
        with locked(folder, wait=False):
            return False
    except Busy:
        return True


def test_no_two_processes_have_a_folder_at_a_time(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        with locked(tmp_path):
            assert pool.apply(_busy, (tmp_path,))
        assert not pool.apply(_busy, (tmp_path,))


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    assert not _busy(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as error, locked(tmp_path / "file/in"):
        pass
    assert "\n" not in str(error.value)


def test_without_locks_the_block_runs_again_and_again(no_locks, tmp_path):
    """And no file is left whose presence would count as a lock."""
    for _ in range(2):
        with locked(tmp_path, wait=False), locked(tmp_path):
            pass
    with pytest.raises(RuntimeError, match="of the block") as error, locked(tmp_path):
        raise RuntimeError("of the block")
    assert error.value.__context__ is None
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_an_older_library_waits_for_no_lock_that_there_cannot_be(no_locks, tmp_path, monkeypatch):
    """It says of every error that somebody has the lock."""

    def acquire(lock, timeout=None):
        assert timeout == 0, "it would wait for ever"
        raise Timeout(lock.lock_file)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with locked(tmp_path, wait=False), locked(tmp_path):
        pass


def test_a_store_without_locks_keeps_what_was_made(no_locks, tmp_path):
    store = SampleStore(tmp_path, "suite", "method", {"a": 1})
    store.prepare()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    keys = [SampleKey("prompt", seed) for seed in range(3)]
    store.append(keys[:1], pictures[:1])
    store.append(keys, pictures)
    again = SampleStore(tmp_path, "suite", "method", {"a": 1})
    assert all(map(np.array_equal, again.pictures(keys), pictures))


def test_what_a_lock_can_raise_is_raised_before_anything_is_sampled(tmp_path, monkeypatch):
    def refuse(folder):
        raise UserError(f"{folder} cannot be written")

    monkeypatch.setattr(folders, "locked", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        SampleStore(tmp_path, "suite", "method", {"a": 1}).prepare()
