"""Where the paths of a suite file lead: beside the file, or into the cache of assets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.assets.catalogue import PREFIX, Assets
from bench.base.digests import path_digest
from bench.base.errors import UserError


@dataclass(frozen=True)
class Places:
    """The files of one suite. `lenient`: for plans, which pass over what is missing."""

    suite: str
    file: Path
    assets: Assets
    lenient: bool = False

    def place(self, relative: str) -> Path:
        """Where a path of the suite file leads, there or not."""
        return (
            self.assets.place(relative)
            if relative.startswith(PREFIX)
            else (self.file.parent / relative).resolve()
        )

    def path(self, relative: str) -> Path:
        """A path of the suite file, made absolute. Raises `UserError` when nothing is there."""
        if relative.startswith(PREFIX):
            return self.assets.path(relative)
        path = self.place(relative)
        if not path.exists():
            raise UserError(f"suite {self.suite}: '{relative}' is missing (looked at {path})")
        return path

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
