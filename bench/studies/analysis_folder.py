"""The folder that an analysis fills with tables and pictures, and whose it is."""

from __future__ import annotations

import json
from pathlib import Path

from bench.base import limits
from bench.base.errors import UserError, visible
from bench.base.files import is_there, read_regular_file, write_atomically
from bench.base.work_folder import refuse_own_files

MARK = ".analysis"
SUMMARY = "summary.json"
ENDS = (".csv", ".png", SUMMARY, "conclusions.txt")  # of the names that analyses write


def claim(folder: Path, command: str) -> None:
    """Mark a folder as that of an analysis, before anything else is written into it; `command` is
    the one that fills it.

    Raises `UserError` where another analysis wrote the folder, where it holds tables or pictures
    that no analysis wrote, and where it cannot be written.
    """
    text = f"A folder of `{command}`, which writes over it.\n".encode()
    if is_there(folder / MARK):
        if _content(folder / MARK) != text:
            raise UserError(
                f"{visible(str(folder))} is of another analysis, and `{command}` would write over"
                " it: give another folder with --out"
            )
        return
    if folder.is_dir() and not _is_finished(folder):
        names = sorted(path.name for path in folder.iterdir())
        refuse_own_files(folder, [name for name in names if name.endswith(ENDS)], command)
    write_atomically(folder / MARK, text)


def _is_finished(folder: Path) -> bool:
    """Whether an analysis of before there were marks wrote the folder to its end."""
    try:
        facts = json.loads(_content(folder / SUMMARY))
    except ValueError:
        return False
    return isinstance(facts, dict) and {"suite", "fingerprint", "files"} <= facts.keys()


def _content(file: Path) -> bytes:
    """Of a small file; nothing where it cannot be read or is none."""
    try:
        return read_regular_file(file, limits.TABLE_BYTES)
    except (OSError, ValueError):
        return b""
