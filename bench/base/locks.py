"""The lock that keeps two commands out of one folder, on file systems that have locks."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    lock = FileLock(path, fallback_to_soft=False)
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            # Older releases take every error for a lock that somebody has, and would wait for ever.
            if _has_locks(path):
                if not wait:
                    raise Busy(str(folder)) from error
                lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _has_locks(path: Path) -> bool:
    """Whether the file system of a file has locks: it gives one, or says that somebody has it."""
    try:
        import fcntl
    except ImportError:  # Windows has them
        return True
    try:
        with path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
    return True
