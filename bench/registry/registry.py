"""Names to classes and suite files: what `--method NAME` and `--suite NAME` can mean.

A built-in is a file in `methods/`, `metrics/`, `attacks/`, `metrics/detectors/` or `bench/suites/`
whose name is the registered name; a Python file holds one subclass of the base class. Other
distributions add names by entry points (`bench.registry.plugins`): a built-in keeps its name
against them, and names that clash are reached as `distribution/name`. Wherever a name is taken,
`./mine.py` and `./mine.toml` are too. Nothing is imported before `Entry.load`; what a class says of
itself is read from the file.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.base import limits
from bench.base.errors import UnknownName, UserError, one_line, visible
from bench.base.files import is_folder, is_regular_file, read_regular_file
from bench.base.text import paragraphs
from bench.registry.plugins import NAME, Plugin, normalized, plugins

KINDS = {
    "method": "methods",
    "metric": "metrics",
    "attack": "attacks",
    "detector": "metrics.detectors",
}
SUITES = Path(__file__).parents[1] / "suites"


class WrongClass(UserError):
    """Code that was imported and does not hold the class that it should."""


@dataclass(frozen=True)
class Entry:
    """One registered name, as records write it.

    A built-in has a `path` and a `module`, a file of the user's only a `path`, and the entry point
    of another distribution a `plugin`.
    """

    kind: str
    name: str
    path: Path | None
    module: str | None
    plugin: Plugin | None = None

    @property
    def source(self) -> str | None:
        """What distinguishes one state of a stranger's code from another, as nobody need raise its
        `version`: the sha256 of the file that holds the class, for a plug-in after its distribution
        and version.

        None for built-ins. Raises `UserError` where that file cannot be found or read.
        """
        if self.plugin:
            return (
                f"{self.plugin.distribution} {self.plugin.version}"
                f" {_file_hash(_file_of(self.load()))}"
            )
        return _file_hash(self.path) if self.path and self.module is None else None

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, or a suite's description, read without importing;
        `broken: <reason>` for a file that cannot be read or holds no class of the kind.
        """
        if self.plugin and self.plugin.problem:
            return f"broken: {self.plugin.problem}"
        if self.kind == "suite":
            return self._suite_summary()
        return (
            _class_summary(self.kind, self.path)
            if self.path
            else f"{self.plugin.value if self.plugin else ''} (not imported)"
        )

    def _suite_summary(self) -> str:
        try:
            content = read_regular_file(self.file(), limits.SUITE_BYTES).decode()
            return str(tomllib.loads(content).get("description", ""))
        except (OSError, ValueError, RecursionError, UserError) as error:
            return f"broken: {one_line(error)}"

    def file(self) -> Path:
        """A suite's TOML file. Raises `UserError` when a plug-in's suite is not where it should
        be.
        """
        self._refuse_problem()
        if self.plugin:
            return self.plugin.file()
        assert self.path is not None
        return self.path

    def load(self) -> type[Any]:
        """Import the code and return its class.

        Raises `UserError` when it cannot be imported, or does not hold exactly one class of the
        kind; for an entry point with a class's name, when that is no such class.
        """
        self._refuse_problem()
        place = self.plugin.value if self.plugin else str(self.path)
        try:
            module = self._import()
            if self.plugin and self.plugin.attribute:
                return _named_class(self.kind, self.plugin, module)
            return _only_class(self.kind, place, module)
        except (KeyboardInterrupt, WrongClass):
            raise
        # A stranger's code may raise anything while it is imported or its names are looked up,
        # also SystemExit.
        except BaseException as error:
            title = self.plugin.full_name if self.plugin else self.name
            raise UserError(
                f"{self.kind} '{title}' ({place}) cannot be imported: {type(error).__name__}:"
                f" {one_line(error)}"
            ) from error

    def _import(self) -> ModuleType:
        if self.plugin:
            _announce(f"plug-in {self.plugin.full_name} {self.plugin.version}")
            return importlib.import_module(self.plugin.module)
        assert self.path is not None
        if self.module:
            return importlib.import_module(self.module)
        _announce(f"{self.path}, sha256 {_file_hash(self.path)}")
        return import_file(self.path)

    def _refuse_problem(self) -> None:
        if self.plugin and self.plugin.problem:
            raise UserError(
                f"{self.kind} '{self.plugin.full_name}' cannot be used: {self.plugin.problem}"
            )


_ANNOUNCED: set[str] = set()


def _announce(code: str) -> None:
    """Say, once in a process, whose code is about to run: it may do whatever its user may do."""
    if code not in _ANNOUNCED:
        _ANNOUNCED.add(code)
        print(f"bench: running code of {visible(code)}", file=sys.stderr)


def entries(kind: str) -> dict[str, Entry]:
    """The entries of a kind by the name that reaches them: built-ins, then plug-ins.

    A plug-in whose name is also that of another entry stands as `distribution/name`.
    """
    found = _built_ins(kind)
    installed = plugins(kind)
    bearers = Counter([*found, *(plugin.name for plugin in installed if not plugin.problem)])
    for plugin in installed:
        is_unique = bearers[plugin.name] == 1 and not plugin.problem
        found[plugin.name if is_unique else plugin.full_name] = _plugin_entry(plugin)
    return found


def find(kind: str, name: str) -> Entry:
    """The entry called `name` or `distribution/name`, or the file at `name` where that ends in
    `.py` (`.toml` for a suite).

    Raises `UnknownName`, with what was probably meant, and `UserError` for a name that several
    plug-ins have and for a file that is not there.
    """
    if name.endswith(_suffix(kind)):
        return _file_entry(kind, name)
    known = entries(kind)
    if name in known:
        return known[name]
    called = _plugins_called(kind, name)
    if len(called) > 1:
        raise UserError(
            f"{kind} '{name}' is given by {len(called)} plug-ins: say which,"
            f" {' or '.join(plugin.full_name for plugin in called)}"
        )
    if called:
        return _plugin_entry(called[0])
    _refuse_path(kind, name)
    distribution, installed = _distribution(name), plugins(kind)
    siblings = [plugin.full_name for plugin in installed if plugin.distribution == distribution]
    if distribution and not siblings:
        raise UnknownName(
            f"distribution with {kind} plug-ins",
            distribution,
            {plugin.distribution for plugin in installed},
        )
    raise UnknownName(kind, name, siblings or known)


def knows(kind: str, name: str) -> bool:
    """Whether `name` means something of this kind; also a name that clashes, so that `find` can say
    so.
    """
    return name in _built_ins(kind) or bool(_plugins_called(kind, name))


def suites() -> dict[str, Path]:
    """The shipped suites by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.toml"))}


def find_suite(name: str) -> Path:
    """The TOML file of a suite, by name or by path."""
    return find("suite", name).file()


def _built_ins(kind: str) -> dict[str, Entry]:
    """The built-in entries of a kind by name, sorted.

    Files that begin with an underscore are helpers and templates.
    """
    return (
        {name: Entry(kind, name, path, "bench.suites") for name, path in suites().items()}
        if kind == "suite"
        else dict(_built_in_classes(kind))
    )


@cache
def _built_in_classes(kind: str) -> tuple[tuple[str, Entry], ...]:
    package = KINDS[kind]
    spec = importlib.util.find_spec(package)
    folders = [Path(place) for place in spec.submodule_search_locations or []] if spec else []
    files = sorted(
        path for folder in folders for path in folder.glob("*.py") if not path.name.startswith("_")
    )
    found = {path.stem: Entry(kind, path.stem, path, f"{package}.{path.stem}") for path in files}
    # A package may hold rooms that a file needs beside it; only files with the base class are
    # entries.
    return tuple(
        (name, entry)
        for name, entry in found.items()
        if not entry.summary.startswith("broken: no class")
    )


def _plugins_called(kind: str, name: str) -> list[Plugin]:
    """The plug-ins that a bare name, a full name, or the name in a record can mean."""
    full_name = f"{_distribution(name)}/{name.partition('/')[2]}"
    return [
        plugin
        for plugin in plugins(kind)
        if name in (plugin.name, plugin.record_name) or full_name == plugin.full_name
    ]


def _distribution(name: str) -> str:
    """The normalized distribution of `distribution/name`; empty for a bare name and for what looks
    like a path.
    """
    distribution, slash, _ = name.partition("/")
    return normalized(distribution) if slash and distribution[:1].isalnum() else ""


def _file_entry(kind: str, name: str) -> Entry:
    path = Path(name)
    if not is_regular_file(path):
        raise UserError(
            f"{kind} file '{visible(name)[:200]}'"
            f" {'is a folder' if is_folder(path) else 'does not exist'}"
        )
    if kind != "suite" and not NAME.fullmatch(path.stem):
        raise UserError(
            f"{kind} file '{name}' cannot give its name to records: rename it to letters, digits,"
            " '_' and '-'"
        )
    return Entry(kind, path.stem, path.resolve(), None)


def _plugin_entry(plugin: Plugin) -> Entry:
    return Entry(plugin.kind, plugin.record_name, None, None, plugin)


def _suffix(kind: str) -> str:
    return ".toml" if kind == "suite" else ".py"


def _refuse_path(kind: str, name: str) -> None:
    """Say what is wrong with something that is no name but lies on disk."""
    path = Path(name)
    if name and is_folder(path):
        raise UserError(f"{kind} '{name}' is a folder; give the {_suffix(kind)} file in it")
    if is_regular_file(path):
        raise UserError(f"{kind} '{name}' is a file whose name does not end in {_suffix(kind)}")


def _class_summary(kind: str, path: Path) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"broken: {one_line(error)}"
    siblings = _siblings(kind, tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(
            _base_name(base).endswith(kind.capitalize()) or _base_name(base) in siblings
            for base in node.bases
        ):
            return paragraphs(ast.get_docstring(node) or "")[0]
    return f"broken: no class derived from {kind.capitalize()}"


def _siblings(kind: str, tree: ast.Module) -> set[str]:
    """Names that a module imports from public modules of the built-in package of its kind, whose
    classes it may refine.
    """
    package = KINDS[kind]
    return {
        name.asname or name.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(f"{package}.")
        and not (node.module or "").rpartition(".")[2].startswith("_")
        for name in node.names
    }


def _base_name(node: ast.expr) -> str:
    return (
        node.attr
        if isinstance(node, ast.Attribute)
        else node.id
        if isinstance(node, ast.Name)
        else ""
    )


def _file_of(cls: type[Any]) -> Path:
    try:
        return Path(inspect.getfile(cls))
    except (OSError, TypeError) as error:  # a class made by other code than a file's
        raise UserError(
            f"the source of {cls.__name__} cannot be found: {one_line(error)}"
        ) from error


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    # Code in a zip archive, say: what cannot be identified must not be measured.
    except OSError as error:
        raise UserError(f"the source {path} cannot be read: {one_line(error)}") from error


def import_file(path: Path) -> ModuleType:
    """Import a Python file by its path; it is imported anew at every call.

    Raises `ImportError` for what is no Python file, and whatever the file raises.
    """
    name = f"bench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _base(kind: str) -> type[Any]:
    """The class that authors derive from, by way of the public face: contracts stand above this
    room.
    """
    return getattr(importlib.import_module("bench"), kind.capitalize())


def _named_class(kind: str, plugin: Plugin, module: ModuleType) -> type[Any]:
    base, found = _base(kind), getattr(module, plugin.attribute, None)
    if not (inspect.isclass(found) and issubclass(found, base) and found is not base):
        raise WrongClass(
            f"{kind} '{plugin.full_name}': {plugin.value} is no class derived from"
            f" bench.{kind.capitalize()}"
        )
    return found


def _only_class(kind: str, place: str, module: ModuleType) -> type[Any]:
    base = _base(kind)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        found = ", ".join(c.__name__ for c in classes) or "none"
        raise WrongClass(
            f"{place} must hold exactly one class derived from bench.{kind.capitalize()}; found:"
            f" {found}"
        )
    return classes[0]


def declared_files(kind: str, name: str) -> tuple[str, ...]:
    """The fields of a metric or attack that name files, by its class; none where that cannot be
    loaded, which whoever runs it will hear.
    """
    try:
        found: Any = find(kind, name).load()
    except Exception:  # of a stranger's module
        return ()
    return tuple(getattr(found, "files", ()))
