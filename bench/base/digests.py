"""sha256 of JSON values, files and folders: what fingerprints, keys and records are made of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any


def digest_of(content: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces), as 64 hex digits.

    Raises `ValueError` for a number that is not finite.
    """
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def seed_of(*words: object) -> int:
    """A seed of 63 bits that depends on these words alone, in this order."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def path_digest(path: Path) -> str:
    """sha256 of a file, or of the relative names and the contents of a folder's files, as 64 hex
    digits. Folders behind links count as what they hold, since whoever loads the folder follows
    them. Python's own `__pycache__` does not count.
    """
    return digest_of(dict(_contents(path))) if path.is_dir() else _file_digest(path)


def _contents(folder: Path) -> Iterator[tuple[str, str]]:
    """The digest of every file by its path in the folder. A folder that links lead to once more is
    named with the path that it was met at first, so that links in circles come to an end.
    """
    entered: dict[str, str] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        inside = os.path.relpath(place, folder)
        first = entered.setdefault(os.path.realpath(place), inside)
        if first != inside:
            folders.clear()
            yield f"{inside}/", f"the same as {first}/"
            continue
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in (Path(place, name) for name in names if name != "__pycache__"):
            if path.is_file():
                yield str(path.relative_to(folder)), _file_digest(path)


def _file_digest(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a device or a pipe may never end
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return _cached_file_digest(path, status.st_size, status.st_mtime_ns)


@cache
def _cached_file_digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
