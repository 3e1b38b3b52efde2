"""Entry points: the names that other installed distributions add.

Everything here reads metadata; nothing imports their code.

A distribution names a module or a class under `bench.methods`, `bench.metrics`, `bench.attacks` or
`bench.detectors` (`pkg.milder` or `pkg.milder:Milder`), and a file of a package under
`bench.suites` (`pkg.suites:mine.toml`). Names may clash, so each has a full name
`distribution/name` that always works. Records write `distribution.name`: it is a safe part of a
path, no other name can mean the same (a distribution's normalized name has no dot), and it does not
depend on what else is installed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

from bench.base.errors import UserError, one_line

GROUPS = {
    "method": "bench.methods",
    "metric": "bench.metrics",
    "attack": "bench.attacks",
    "detector": "bench.detectors",
    "suite": "bench.suites",
}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Plugin:
    """One entry point: which distribution adds which name, and where it points.

    `problem` says why it cannot be used, where the metadata alone shows that; otherwise it is
    empty.
    """

    kind: str
    distribution: str  # normalized: lower case, words joined by hyphens
    version: str
    name: str
    value: str
    problem: str = ""

    @property
    def full_name(self) -> str:
        """`distribution/name`, which reaches the plug-in also when its name is taken."""
        return f"{self.distribution}/{self.name}"

    @property
    def record_name(self) -> str:
        """`distribution.name`, the name in records, tables and folders."""
        return f"{self.distribution}.{self.name}"

    @property
    def module(self) -> str:
        """The dotted name of the module or package that the entry point names."""
        return self.value.partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        """The class's name, or a suite's file; empty when the entry point names only a module."""
        return self.value.partition(":")[2].partition("[")[0].strip()

    def file(self) -> Path:
        """The suite's TOML file, found without importing the package that holds it.

        Raises `UserError` when it is not inside that package.
        """
        relative = PurePosixPath(self.attribute)
        if not self.attribute.endswith(".toml"):
            raise UserError(
                f"suite '{self.full_name}': its entry point '{self.value}' is not of the form"
                " package:file.toml"
            )
        # Judged as written: links are the installer's, which makes them for some editable installs.
        if relative.is_absolute() or ".." in relative.parts or "\\" in self.attribute:
            raise UserError(
                f"suite '{self.full_name}': '{self.attribute}' leads out of the package"
                f" {self.module}"
            )
        folders = _package_folders(self.module)
        if not folders:
            raise UserError(f"suite '{self.full_name}': there is no package '{self.module}'")
        found = next(
            (folder / relative for folder in folders if (folder / relative).is_file()), None
        )
        if found is None:
            raise UserError(
                f"suite '{self.full_name}': the package {self.module} holds no file"
                f" '{self.attribute}'"
            )
        return found


def plugins(kind: str) -> tuple[Plugin, ...]:
    """Every entry point of a kind, sorted by full name."""
    return tuple(plugin for plugin in _scan(tuple(sys.path)) if plugin.kind == kind)


def normalized(distribution: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@lru_cache(maxsize=8)
def _scan(path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Read the metadata of everything on `sys.path`.

    As for imports, the first of two distributions with one name hides the second.
    """
    found: dict[str, list[Plugin]] = {}
    for distribution in distributions(path=list(path)):
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeDecodeError):
            continue
        if "[bench." in text:  # most have none, and reading only this keeps `bench --help` quick
            read = list(_read(distribution, text))
            if read:
                found.setdefault(read[0].distribution, read)
    return tuple(
        sorted(
            (plugin for read in found.values() for plugin in read),
            key=lambda plugin: (plugin.kind, plugin.full_name),
        )
    )


def _read(distribution: Distribution, text: str) -> Iterator[Plugin]:
    name = version = "unknown"
    try:
        name, version = normalized(distribution.metadata["Name"]), distribution.version or "unknown"
        points = [(point.group, point.name, point.value) for point in distribution.entry_points]
    # Metadata is damaged in as many ways as there are tools that write it.
    except Exception as error:
        problem = f"the distribution's metadata cannot be read: {one_line(error)}"
        yield from (
            Plugin(kind, name, version, "unknown", "", problem)
            for kind, group in GROUPS.items()
            if f"[{group}]" in text
        )
        return
    for kind, group in GROUPS.items():
        values: dict[str, list[str]] = {}
        for _, label, value in (point for point in points if point[0] == group):
            values.setdefault(label, []).append(value)
        yield from (
            Plugin(kind, name, version, label, given[0], _problem(name, label, given))
            for label, given in values.items()
        )


def _problem(distribution: str, name: str, given: list[str]) -> str:
    if not NAME.fullmatch(distribution):
        return "the distribution's name is malformed"
    if not NAME.fullmatch(name):
        return "a name may hold letters, digits, '_' and '-'"
    return (
        f"the distribution gives the name twice: {', '.join(given)}" if len(set(given)) > 1 else ""
    )


def _package_folders(package: str) -> list[Path]:
    """Where a dotted package lies.

    Only the top one is asked of the import system, because finding `a.b` would import `a`.
    """
    top, *inner = package.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        return []
    try:
        spec = importlib.util.find_spec(top)
    except Exception:  # a finder that an editable install left behind
        return []
    places = (
        [Path(place, *inner) for place in spec.submodule_search_locations or []] if spec else []
    )
    return [place for place in places if place.is_dir()]
