"""Suite files read strictly: TOML tables laid over those that they extend, with every key known and
every path led back to the file that states it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.assets.catalogue import Entry, FileEntry, own_entries, parse_entries
from bench.assets.download import Refused, local_path
from bench.base import limits
from bench.base.errors import UserError, one_line, visible
from bench.base.files import read_regular_file
from bench.base.parameters import parse_toml, refusal
from bench.registry.registry import find_suite
from bench.suite.places import looks_like_a_path, stated_by
from bench.suite.reach import refuse_outside
from bench.suite.schema import SuiteSettings
from bench.suite.suite import Suite


def load_suite(name: str, limit: int | None = None) -> Suite:
    """A shipped suite by name or a TOML file by path.

    `limit` keeps that many prompts of every role, for trying things out. Raises `UserError` for
    anything that is wrong with the file or with those that it extends. The files that it names are
    not looked at here; `bench.suite.needs` gives the suite as plans and `bench doctor` see it,
    which pass over what is missing.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    file = find_suite(name)
    table = _extended(file)
    entries = parse_entries(table.pop("assets", {}), file)
    _refuse_far_assets(entries, file)
    try:
        return Suite(SuiteSettings.model_validate(table), file, limit, own_entries(entries))
    except ValidationError as error:
        raise refusal(error, SuiteSettings, f"key in {file.name}", f"suite file {file}") from error


def _refuse_far_assets(entries: Mapping[str, Entry], file: Path) -> None:
    """A suite's own asset is a file of this machine only where the suite may read: what is fetched
    lies in the cache, where it may be read as a list or a picture.
    """
    for name, entry in entries.items():
        for url in entry.urls if isinstance(entry, FileEntry) else ():
            try:
                local = local_path(url)
            except Refused:  # nothing that could be fetched
                continue
            if local is not None:
                refuse_outside(file.stem, f"asset {name}", local, (file.parent,))


def _with_places(assets: Any, folder: Path) -> Any:
    """A suite's own assets with relative paths among their addresses led to the folder of the file
    that states them; what is no such table stays as it is for the checks to come.
    """

    def led(url: Any) -> Any:
        try:
            local = local_path(url) if isinstance(url, str) and url else None
        except Refused:  # nothing that could be fetched
            return url
        if local is None or local.is_absolute():
            return url
        return str(folder.absolute() / local)

    def all_led(urls: Any) -> Any:
        return [*map(led, urls)] if isinstance(urls, list) else urls

    if not isinstance(assets, dict):
        return assets
    return {name: _each(table, {"urls": all_led}) for name, table in assets.items()}


def _extended(file: Path, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table of a suite file, laid over that of the suite it extends, section by section."""
    table = _table_of(file)
    if "assets" in table:
        table["assets"] = _with_places(table["assets"], file.parent)
    if "extends" not in table:
        return table
    base = table.pop("extends")
    if not isinstance(base, str):
        raise UserError(f"suite file {file}: extends must be the name or the path of a suite")
    if len(before) == limits.SUITES_DEEP:
        raise UserError(
            f"suite file {file}: more than {limits.SUITES_DEEP} suites extend one another"
        )
    by_path = base.endswith(".toml")
    parent = find_suite(str(file.parent / base) if by_path else base).resolve()
    if parent in (*before, file.resolve()):
        raise UserError(f"suite file {file} extends itself by way of {parent.name}")
    inherited = _extended(parent, (*before, file.resolve()))
    if parent.parent != file.resolve().parent:
        inherited = _moved(inherited, parent, None if by_path else base, file.resolve())
    inherited.pop("name", None)
    return _laid_over(inherited, table)


def _table_of(file: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_regular_file(file, limits.SUITE_BYTES).decode())
    except UnicodeDecodeError as error:
        raise UserError(f"suite file {file} is not valid TOML: {one_line(error)}") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"suite file {visible(str(file))} cannot be read: {one_line(error)}"
        ) from error
    except UserError as error:
        raise UserError(f"suite file {file}: {error}") from error


def _moved(table: dict[str, Any], parent: Path, name: str | None, child: Path) -> dict[str, Any]:
    """The table of a suite in another folder, with every path as the file that extends it has to
    say it. `name`: what the parent is known by, where it was not named by its path.
    """

    def moved(text: Any) -> Any:
        return stated_by(text, parent, name, child) if isinstance(text, str) and text else text

    def judge(settings: Any) -> Any:
        """The settings of one metric or attack."""
        if not isinstance(settings, dict):
            return settings
        return {
            key: moved(value)
            if isinstance(value, str) and looks_like_a_path(key, value, parent.parent)
            else value
            for key, value in settings.items()
        }

    def judges(section: dict[str, Any]) -> dict[str, Any]:
        return {
            # code is found by its path alone
            stated_by(key, parent, None, child) if key.endswith(".py") else key: judge(settings)
            for key, settings in section.items()
        }

    def listed(key: str) -> Callable[[Any], Any]:
        """Tables that name a file each; what is no list of them stays as it is."""
        return lambda tables: (
            [_each(one, {key: moved}) for one in tables] if isinstance(tables, list) else tables
        )

    result = dict(table)
    of_model: dict[str, Callable[[Any], Any]]
    of_model = {"path": moved, "config": moved, "base": moved}
    of_model |= {"loras": listed("file"), "embeddings": listed("path")}
    result["model"] = _each(table.get("model"), of_model)
    for kind in ("metrics", "attacks"):
        if isinstance(table.get(kind), dict):
            result[kind] = judges(table[kind])

    def lists(section: Any) -> Any:
        """Sections of prompts by name; what is no section stays as it is."""
        if not isinstance(section, dict):
            return section
        given = {"file": moved, "references": moved}
        return {name: _each(settings, given) for name, settings in section.items()}

    def recorded(names: Any) -> Any:
        """Detectors; code is found by its path alone."""
        if not isinstance(names, list):
            return names
        return [
            stated_by(text, parent, None, child)
            if isinstance(text, str) and text.endswith(".py")
            else text
            for text in names
        ]

    result["prompts"] = lists(table.get("prompts"))
    of_detection = {"labels": moved, "negatives": lists, "record": recorded}
    result["detection"] = _each(table.get("detection"), of_detection)
    return {key: value for key, value in result.items() if key in table}


def _each(section: Any, changes: Mapping[str, Callable[[Any], Any]]) -> Any:
    """A section with some of its values changed, by key; what is no section stays as it is for the
    checks to come.
    """
    if not isinstance(section, dict):
        return section
    return {key: changes[key](value) if key in changes else value for key, value in section.items()}


def _laid_over(base: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two tables as one; where both have a value the one above counts, and sections are joined key
    by key.
    """
    joined = dict(base)
    for key, value in above.items():
        joined[key] = (
            _laid_over(base[key], value)
            if isinstance(value, dict) and isinstance(base.get(key), dict)
            else value
        )
    return joined
