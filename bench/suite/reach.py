"""Which folders a suite may read lists, training pictures and code from.

A suite may be a stranger's, and its prompts, pictures and scores go into records that are made
public. So what a suite names lies below its own folder, in the cache of assets or in this package,
or the user names the folder: with `bench --allow FOLDER`, or for good in BENCH_ALLOW.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from bench.base.errors import UserError, visible

VARIABLE = "BENCH_ALLOW"  # folders, separated as in PATH
PACKAGE = Path(__file__).resolve().parents[1]


def allow(folders: Iterable[Path]) -> None:
    """Let suites read below these folders in this process and in those that it starts.

    Raises `UserError` for one that is no folder.
    """
    folders = [folder.expanduser() for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--allow: there is no folder {folder}")
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
            f"suite {suite}: its {what} {visible(str(found))[:200]} lies outside the suite's"
            f" folder; if it may read there: bench --allow {visible(str(found.parent))[:200]} ..."
        )


@lru_cache(64)
def _roots(inside: tuple[Path, ...], allowed: str | None) -> tuple[Path, ...]:
    named = (Path(part) for part in (allowed or "").split(os.pathsep) if part)
    return tuple(folder.resolve() for folder in (*inside, PACKAGE, *named))
