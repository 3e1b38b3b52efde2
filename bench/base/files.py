"""Reading and writing files: readers see the old file or the whole new one, whatever happens
meanwhile, and nobody waits for a device or a pipe that never ends.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from bench.base.errors import UserError, one_line

DEBRIS_AGE = 3600.0  # seconds; no file of ours takes nearly as long to write


def read_regular_file(path: Path, most: int) -> bytes:
    """The bytes of a file that a user names.

    Raises `OSError` when it cannot be read, and `ValueError` when it is no regular file (a device
    or a pipe may never end), has more than `most` bytes or a name that no file can have.
    """
    facts = path.stat()
    if stat.S_ISDIR(facts.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("it is no regular file")
    if facts.st_size > most:
        raise ValueError(f"it has {facts.st_size:,} bytes, and {most:,} are allowed")
    return path.read_bytes()


def is_regular_file(path: Path) -> bool:
    """Whether a path leads to a file; never for a name that no file can have (too long, with a NUL
    in it), such as a caption in a column of paths.
    """
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; never for a name that none can have."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


def is_there(path: Path) -> bool:
    """Whether something is at a path; never for a name that nothing can have."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def remove_debris(folder: Path) -> None:
    """Remove what writers that were killed left in a folder: their temporary files, once these are
    so old that nobody can still be writing them.
    """
    with suppress(OSError):
        for path in folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > DEBRIS_AGE:
                path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename: readers see the old file or the whole
    new one.

    Raises `UserError` when the disk is full or the folder cannot be written.
    """
    # two machines may have processes of one number
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{path} cannot be written: {one_line(error)}; what was written before is kept"
            ) from error
        raise
