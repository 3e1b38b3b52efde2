"""Writing files so that readers see the old one or the whole new one, whatever happens
meanwhile.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from bench.base.errors import UserError, one_line


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
