"""The work folder of an audit: whose it is, and the pictures that its page shows.

An audit marks its folder before it writes anything else. What lies in a folder without the mark is
the user's own: nothing of it is written over, and no folder of pictures that is read may lie in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.auditing.asked import Asked
from bench.base import limits
from bench.base.errors import UserError, visible
from bench.base.files import is_there, read_regular_file, write_atomically
from bench.base.pictures import encode_png, pixel_digest
from bench.base.work_folder import refuse_own_files, refuse_read

COMMAND = "bench audit"
MARK = ".audit"
HEADING = "Written by `bench audit`; `bench run --suite` takes it too."  # of its suites
RESULT = "audit.json"
IMAGES = "images"  # the folder of those that the page shows
IMAGE = re.compile(rf"{IMAGES}/[0-9a-f]{{16}}\.png")
# Everything but the store and the records, which hold what others left there too.
WRITTEN = (
    *("index.html", RESULT, "audit.md", "pictures.csv", "rows.csv"),
    *("audit.toml", "audit-base.toml", "audit-attack.toml", "prompts", "views", IMAGES),
)


def refuse_out(asked: Asked, *generations: Path) -> None:
    """Raises `UserError` where the work folder is a folder of pictures that is read, lies in one or
    holds one; where another file that is read would be written over; and where it holds files of
    the names that an audit writes, and is of no audit.
    """
    out = asked.out
    for path in (asked.data, *generations, *([asked.holdout] if asked.holdout else [])):
        here, read = absolute(out), absolute(path)
        if here == read or (path.is_dir() and here.is_relative_to(read)):
            raise UserError(
                f"--out {visible(str(out))} lies in {visible(str(path))}, which is read: choose"
                " another work folder"
            )
        if read.is_relative_to(here):
            raise UserError(
                f"--out {visible(str(out))} holds {visible(str(path))}, which is read: choose"
                " another work folder"
            )
    refuse_read(out, WRITTEN, _others(asked), COMMAND)
    if not _is_ours(out):
        refuse_own_files(out, WRITTEN, COMMAND)


def _others(asked: Asked) -> Iterable[Path]:
    """The files and model folders that an audit reads."""
    named = (asked.model, asked.base, asked.config, asked.novel, asked.sscd)
    yield from (path for path in named if path is not None)
    yield from (one.file for one in asked.loras)
    yield from (*asked.epochs, *asked.embeddings)
    if asked.like:  # a name, or the path of a suite file
        yield Path(asked.like)


def absolute(path: Path) -> Path:
    """The path from the root, with its links followed."""
    return path.expanduser().resolve()


def _is_ours(out: Path) -> bool:
    """Whether an audit wrote the folder. Those of before marks have their suite or their result."""
    if is_there(out / MARK) or _result(out):
        return True
    try:
        text = read_regular_file(out / "audit.toml", limits.SUITE_BYTES)
    except (OSError, ValueError):
        return False
    return text.startswith(f"# {HEADING}".encode())


def claim(out: Path) -> None:
    """Mark a work folder as that of an audit, before anything else is written into it."""
    if not is_there(out / MARK):
        write_atomically(out / MARK, b"A work folder of `bench audit`, which writes over it.\n")


def keep_image(out: Path, picture: np.ndarray) -> str:
    """Keep a picture, uint8 `[H, W, 3]`, under its pixels' own name; its place below `out`."""
    name = f"{IMAGES}/{pixel_digest(picture)}.png"
    if not (out / name).is_file():
        write_atomically(out / name, encode_png(picture))
    return name


def shown_images(out: Path) -> set[str]:
    """The places, below `out`, of the pictures that the audit there showed by its `audit.json`;
    none where there is no audit, or none that can be read.
    """
    pictures = _result(out).get("pictures")
    named = [
        near.get("file")
        for one in (pictures if isinstance(pictures, list) else [])
        for near in (one.get("nearest") if isinstance(one, dict) else None) or ()
        if isinstance(near, dict)
    ]
    return {name for name in named if isinstance(name, str) and IMAGE.fullmatch(name)}


def forget_images(out: Path, shown: Collection[str], kept: Collection[str]) -> None:
    """Remove pictures that an earlier audit of the same folder showed and this one does not."""
    for name in set(shown) - set(kept):
        (out / name).unlink(missing_ok=True)


def _result(out: Path) -> dict[str, Any]:
    """What `audit.json` holds; empty where there is none of ours."""
    try:
        found = json.loads(read_regular_file(out / RESULT, limits.RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(found, dict) and {"version", "answer", "pictures"} <= found.keys()
    return found if ours else {}
