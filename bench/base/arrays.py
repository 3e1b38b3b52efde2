"""Arrays of numbers as bytes: an .npy file with the sha256 of all of it behind the numbers, so that
damage is noticed when they are read.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np


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
