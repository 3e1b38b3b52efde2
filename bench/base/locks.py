"""The lock that keeps two commands out of one folder, on file systems that have locks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.base.errors import UserError, one_line

LOCK = ".lock"  # the file in a folder that is locked


class Busy(Exception):
    """Another command has the folder."""


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """A block that no two processes are in at a time for one folder, which is made where it is not
    there.

    On a file system without locks (some of NFS, Lustre and FUSE) the block runs all the same: two
    commands at once are not noticed there. Raises `Busy` without `wait` when another command has
    the folder, and `UserError` when the folder cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {one_line(error)}") from error
    # The library's way without locks is a file that is there or not: it would stay after a command
    # that was killed, and here it is there always. Older releases know no such way, and drop the
    # argument.
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise Busy(str(folder)) from error
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()
