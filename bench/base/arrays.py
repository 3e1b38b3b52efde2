"""Arrays of numbers as bytes: an .npy file with the sha256 of all of it behind the numbers, so that
damage is noticed when they are read; and .npz files of strangers.
"""

from __future__ import annotations

import hashlib
import io
import stat
from pathlib import Path
from typing import Any

import numpy as np

from bench.base import limits


def open_arrays(path: Path) -> Any:
    """The arrays of an .npz file by name, each read when it is asked for; a context manager.

    Raises what `numpy.load` raises, and `ValueError` for what is no regular file or unpacks to more
    than `limits.ARCHIVE_RATIO` times its size.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("it is no regular file")
    found: Any = np.load(path, allow_pickle=False)
    if isinstance(found, np.lib.npyio.NpzFile) and found.zip is not None:
        unpacked = sum(member.file_size for member in found.zip.infolist())
        if unpacked > limits.ARCHIVE_RATIO * facts.st_size:
            found.close()
            raise ValueError(
                f"its {facts.st_size:,} bytes would unpack to {unpacked:,}, and at most"
                f" {limits.ARCHIVE_RATIO} times as many are allowed"
            )
    return found


def array_as_bytes(values: np.ndarray) -> bytes:
    """Float32 numbers of any shape as bytes."""
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32), allow_pickle=False)
    content = buffer.getvalue()
    return content + hashlib.sha256(content).digest()


def array_of(content: bytes) -> np.ndarray:
    """The numbers again. A file of before there were digests ends where its numbers end.

    Raises `ValueError` or `EOFError` when it was changed or cut since.
    """
    stream = io.BytesIO(content)
    values = np.asarray(np.load(stream, allow_pickle=False))
    end = stream.tell()
    if content[end:] not in (b"", hashlib.sha256(content[:end]).digest()):
        raise ValueError("its content does not match its sha256")
    return values
