"""sha256 of JSON values, files and folders: what fingerprints, keys and records are made of."""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Iterable
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
    digits. Python's own `__pycache__` does not count.
    """
    if path.is_dir():
        return digest_of({str(file.relative_to(path)): _file_digest(file) for file in _files(path)})
    return _file_digest(path)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )


def _file_digest(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a device or a pipe may never end
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return _cached_file_digest(path, status.st_size, status.st_mtime_ns)


@cache
def _cached_file_digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
