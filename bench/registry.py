"""Names to classes: what `--method NAME` can mean.

A built-in is a file in `methods/`, `metrics/` or `attacks/` whose name is the registered name and which holds one
subclass of the base class. The same door takes `./mine.py`. Listing reads the files without importing them, so that it
needs no torch and a broken file disturbs nobody.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import UnknownName, UserError, one_line

KINDS = {"method": "methods", "metric": "metrics", "attack": "attacks"}
SUITES = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Entry:
    """One registered name. `module` is how it is imported; `path` is the file it is read from for listing."""

    kind: str
    name: str
    path: Path
    module: str | None

    @property
    def source(self) -> str | None:
        """Hash of a stranger's file, which has no version to trust; None for what is installed."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest() if self.module is None else None

    @property
    def summary(self) -> str:
        """The first line of the class's docstring, read without importing the file; the error's text for a broken file."""
        try:
            tree = ast.parse(self.path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
            return f"broken: {one_line(error)}"
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(_base_name(base) == self.kind.capitalize() for base in node.bases):
                return (ast.get_docstring(node) or "").partition("\n")[0]
        return f"broken: no class derived from {self.kind.capitalize()}"

    def load(self) -> type[Any]:
        """Import the file and return its class. Raises `UserError` when it cannot be imported or has not exactly one class."""
        try:
            module = importlib.import_module(self.module) if self.module else _import_file(self.path)
        except Exception as error:  # whatever a stranger's file raises while being imported
            raise UserError(f"{self.kind} '{self.name}' ({self.path}) cannot be imported: {type(error).__name__}: {one_line(error)}") from error
        return _only_class(self.kind, self.path, module)


def entries(kind: str) -> dict[str, Entry]:
    """The built-in entries of a kind by name, sorted. Files that begin with an underscore are helpers and templates."""
    return dict(_builtin_entries(kind))


@cache
def _builtin_entries(kind: str) -> tuple[tuple[str, Entry], ...]:
    package = KINDS[kind]
    spec = importlib.util.find_spec(package)
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(path for folder in folders for path in folder.glob("*.py") if not path.name.startswith("_"))
    found = {path.stem: Entry(kind, path.stem, path, f"{package}.{path.stem}") for path in files}
    # A package may hold rooms that a file needs beside it; only files with the base class are entries.
    return tuple((name, entry) for name, entry in found.items() if not entry.summary.startswith("broken: no class"))


def find(kind: str, name: str) -> Entry:
    """The entry called `name`, or the file at `name` when it looks like a path to Python code."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{kind} file '{name}' does not exist")
        return Entry(kind, path.stem, path.resolve(), None)
    known = entries(kind)
    if name not in known:
        raise UnknownName(kind, name, known)
    return known[name]


def suites() -> dict[str, Path]:
    """The shipped suites by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.toml"))}


def find_suite(name: str) -> Path:
    """The file of a shipped suite, or `name` itself when it looks like a path to a TOML file."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"suite file '{name}' does not exist")
        return path.resolve()
    known = suites()
    if name not in known:
        raise UnknownName("suite", name, known)
    return known[name]


def _base_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _import_file(path: Path) -> ModuleType:
    name = f"bench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through it
    spec.loader.exec_module(module)
    return module


def _only_class(kind: str, path: Path, module: ModuleType) -> type[Any]:
    base = getattr(importlib.import_module(f"bench.{kind}"), kind.capitalize())
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value is not base and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        found = ", ".join(c.__name__ for c in classes) or "none"
        raise UserError(f"{path} must hold exactly one class derived from bench.{kind.capitalize()}; found: {found}")
    return classes[0]
