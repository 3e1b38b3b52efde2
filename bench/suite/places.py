"""Where the paths of a suite file lead: beside the file that states them, or into the cache of
assets.

A suite may extend one in another folder, and each path keeps its meaning: one that a suite known by
name states (a shipped one, say) reads `suite:NAME:PATH` in the suite that extends it, which is the
same on every machine; one that a file in another folder states becomes relative to the file that
extends it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.assets.catalogue import PREFIX, Assets
from bench.base.digests import path_digest
from bench.base.errors import UserError, visible
from bench.base.files import is_regular_file, is_there
from bench.registry.registry import find_suite
from bench.suite.reach import refuse_outside

SUITE_PREFIX = "suite:"  # suite:NAME:PATH is a path as the file of the suite NAME states it
# settings of metrics and attacks that are names, whatever files lie beside the suite
NAMES = ("profile",)
LONGEST = 200  # characters of a path that an error shows


@dataclass(frozen=True)
class Places:
    """The files of one suite. `lenient`: for plans, which pass over what is missing."""

    suite: str
    file: Path
    assets: Assets
    lenient: bool = False

    def place(self, relative: str) -> Path:
        """Where a path of the suite file leads, there or not.

        Raises `UserError` for what can be no path, and for an unknown asset or suite.
        """
        if relative.startswith(PREFIX):
            return self.assets.place(relative)
        try:
            return self.beside_suite(relative).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError
            raise UserError(
                f"suite {self.suite}: '{visible(relative)[:LONGEST]}' leads nowhere: it is too"
                " long, or its links form a circle"
            ) from error

    def beside_suite(self, relative: str) -> Path:
        """The same, with links left as they are."""
        if relative.startswith(PREFIX):
            return self.assets.place(relative)
        if relative.startswith(SUITE_PREFIX):
            name, colon, inner = relative.removeprefix(SUITE_PREFIX).partition(":")
            if not colon or name.endswith(".toml"):
                raise UserError(
                    f"suite {self.suite}: '{visible(relative)[:LONGEST]}' must be suite:NAME:PATH"
                )
            return find_suite(name).parent / inner
        return self.file.parent / relative

    def path(self, relative: str) -> Path:
        """A path of the suite file, made absolute. Raises `UserError` when nothing is there."""
        if relative.startswith(PREFIX):
            return self.assets.path(relative)
        path = self.place(relative)
        if not is_there(path):
            raise UserError(
                f"suite {self.suite}: '{visible(relative)[:LONGEST]}' is missing (looked at"
                f" {visible(str(path))[:LONGEST]})"
            )
        return path

    def named(self, relative: str) -> Path:
        """The same, with links left as they are, for whoever goes by a file's name: a hub's cache
        names files by links to others whose names say nothing.
        """
        self.path(relative)
        return self.beside_suite(relative)

    def judge(self, name: str) -> str:
        """What finds a metric or attack: its name, or the path of its code.

        Raises `UserError` for code that the suite may not reach.
        """
        if not name.endswith(".py"):
            return name
        code = self.file.parent / name
        self.refuse_outside("code", code)
        return str(code)

    def refuse_outside(self, what: str, path: Path, stated: str = "") -> None:
        """Raises `UserError` for a list, a picture or code that the suite may not reach.

        `stated`: the path that led there, as the suite file says it. An asset lies in the cache,
        which may hold links to other disks; what a suite known by name states may lie beside it.
        """
        cache = self.assets.cache
        if (
            stated.startswith(PREFIX)
            and path.is_relative_to(cache)
            and ".." not in path.relative_to(cache).parts
        ):
            return
        own = [self.file.parent, cache]
        if stated.startswith(SUITE_PREFIX):
            own.append(self._named_folder(stated))
        refuse_outside(self.suite, what, path, tuple(own))

    def _named_folder(self, stated: str) -> Path:
        return find_suite(stated.removeprefix(SUITE_PREFIX).partition(":")[0]).parent

    def is_there(self, relative: str) -> bool:
        """Whether `path` would find it."""
        try:
            self.path(relative)
        except UserError:
            return False
        return True

    def digest(self, relative: str) -> str:
        """sha256 of the content behind a path of the suite file; the same wherever an asset
        lies.
        """
        return (
            self.assets.digest(relative)
            if relative.startswith(PREFIX)
            else path_digest(self.path(relative))
        )


def stated_by(text: str, parent: Path, name: str | None, child: Path) -> str:
    """A path that the suite file `parent` states, as the suite file `child` in another folder has
    to state it. `name`: what the parent is known by, where it was not named by its path.
    """
    if text.startswith((PREFIX, SUITE_PREFIX)) or Path(text).is_absolute():
        return text
    if name is not None:
        return f"{SUITE_PREFIX}{name}:{text}"
    return Path(os.path.relpath(parent.parent / text, child.parent)).as_posix()


def looks_like_a_path(key: str, text: str, folder: Path) -> bool:
    """Whether a setting of a metric or attack, whose class alone knows what it means, is taken for
    a path: it begins with a dot and a slash, or something is there.
    """
    if key in NAMES or text in ("", "."):
        return False
    return text.startswith(("./", "../")) or is_there(folder / text)


def named_files(
    settings: Iterable[tuple[str, Any]], folder: Path, declared: Collection[str] = ()
) -> set[str]:
    """Those of some settings of a metric or attack, by key, that name files: the `declared` ones,
    and others that are written as addresses or paths, or name a file that is there. A folder that
    happens to bear the name of a setting is none.
    """
    return {
        value
        for key, value in settings
        if isinstance(value, str)
        and value != ""
        and key not in NAMES
        and (
            value.startswith((PREFIX, SUITE_PREFIX))
            or (
                is_there(folder / value)
                if key in declared or "/" in value
                else is_regular_file(folder / value)
            )
        )
    }
