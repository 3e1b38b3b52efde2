"""Folders that a command fills with files of names that it chooses: what lies there and is not of
an earlier run of the command is somebody's own, and stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bench.base.errors import UserError, visible


def refuse_own_files(
    folder: Path, names: Iterable[str], command: str, option: str = "--out"
) -> None:
    """Raises `UserError` where a folder holds something of one of the names that a command writes.

    For a folder of which nothing says that the command wrote it.
    """
    for name in names:
        if os.path.lexists(folder / name):
            raise UserError(
                f"{visible(str(folder))} holds {visible(name)}, which `{command}` would write over,"
                f" and nothing there says that it wrote it: give another folder with {option}"
            )


def refuse_read(
    folder: Path, names: Iterable[str], read: Iterable[Path], command: str, option: str = "--out"
) -> None:
    """Raises `UserError` where a file or folder that a command reads is one that it writes, or lies
    in it: a `names` of its work folder. Links are followed.
    """
    written = [(folder / name).expanduser().resolve() for name in names]
    for path in read:
        if any(path.expanduser().resolve().is_relative_to(place) for place in written):
            raise UserError(
                f"{visible(str(path))} is read, and `{command}` would write over it: give another"
                f" folder with {option}"
            )
