"""Which folders a suite may read lists, training pictures and code from.

A suite may be a stranger's, and its prompts, pictures and scores go into records that are made
public. So what a suite names lies below its own folder, in the cache of assets or in this package,
or the user names the folder: with `bench --allow FOLDER`, or for good in BENCH_ALLOW.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from bench.base.errors import UserError, visible

VARIABLE = "BENCH_ALLOW"  # folders, separated as in PATH
LONGEST = 1000  # characters of a path that an error shows
PACKAGE = Path(__file__).resolve().parents[1]


def allow(folders: Iterable[Path]) -> None:
    """Let suites read below these folders in this process and in those that it starts.

    Raises `UserError` for one that is no folder.
    """
    folders = [folder.expanduser() for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--allow: there is no folder {folder}")
        if os.pathsep in str(folder.resolve()):
            raise UserError(f"--allow: {folder} holds '{os.pathsep}', which stands between folders")
    known = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    more = [str(folder.resolve()) for folder in folders]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*known, *more]))


def refuse_outside(suite: str, what: str, path: Path, inside: tuple[Path, ...]) -> None:
    """Raises `UserError` when a path, with its links followed, leads out of every folder that a
    suite may read: those of `inside`, this package, and what the user allows.
    """
    found = path.resolve()
    if not any(found.is_relative_to(folder) for folder in _roots(inside, os.environ.get(VARIABLE))):
        raise UserError(
            f"suite {suite}: its {what} {visible(str(found))[:LONGEST]} lies outside the suite's"
            " folder, and what a suite reads can become public in a record; if it may read there:"
            f" bench --allow {shlex.quote(visible(str(found.parent)))[:LONGEST]} ..."
        )


@lru_cache(64)
def _roots(inside: tuple[Path, ...], allowed: str | None) -> tuple[Path, ...]:
    named = [Path(part).expanduser() for part in (allowed or "").split(os.pathsep) if part]
    for folder in named:
        if not folder.is_absolute():
            raise UserError(f"{VARIABLE} holds the relative folder {folder}; give its whole path")
    return tuple(folder.resolve() for folder in (*inside, PACKAGE, *named))
