"""Folders of models that strangers made: their tables, and the code that they may not bring."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench.base import limits
from bench.base.errors import UserError, one_line, visible
from bench.base.files import read_regular_file

AUTO_MAP = "auto_map"  # the key by which transformers finds Python code of a folder


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object of at most `limits.TABLE_BYTES`. Raises `UserError` for anything else."""
    try:
        content = json.loads(read_regular_file(path, limits.TABLE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:100]}); a file is missing or damaged, fetch"
            " or build it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no table")
    return content


def refuse_code(folder: Path) -> None:
    """Raises `UserError` for a folder that holds Python files, or tables that name some; folders
    behind links count too.
    """
    entered: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:  # links that form a circle
            folders.clear()
            continue
        entered.add(real)
        for name in sorted(names):
            path = Path(place, name)
            if name.endswith((".py", ".pyc", ".so")):
                raise UserError(
                    f"the model in {folder} brings code ({visible(name)[:60]}), which is never run;"
                    " remove it"
                )
            if name.endswith("config.json") and AUTO_MAP in read_table(path):
                raise UserError(f"{path} names code of its own (`{AUTO_MAP}`), which is never run")
