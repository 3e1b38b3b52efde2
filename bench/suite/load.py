"""Suite files read strictly: TOML tables laid over those that they extend, with every key known."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.assets.catalogue import PREFIX, parse_entries
from bench.base.errors import UnknownName, UserError, one_line
from bench.base.parameters import validation_line
from bench.registry.registry import find_suite
from bench.suite.settings import ROLES, ModelSettings, PromptSettings, SuiteSettings, texts_in
from bench.suite.suite import Suite


def load_suite(name: str, limit: int | None = None) -> Suite:
    """A shipped suite by name or a TOML file by path.

    `limit` keeps that many prompts of every role, for trying things out.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    file = find_suite(name)
    table = _extended(file)
    entries = parse_entries(table.pop("assets", {}), file)
    _refuse_unknown_keys(file, table)
    try:
        return Suite(SuiteSettings.model_validate(table), file, limit, entries)
    except ValidationError as error:
        raise UserError(f"suite file {file}: {validation_line(error)}") from error


def _extended(file: Path, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table of a suite file, laid over that of the suite it extends, section by section.

    Paths are relative to the file they stand in, so a suite in another folder can be extended only
    where it names none.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"suite file {file} is not valid TOML: {one_line(error)}") from error
    if (base := table.pop("extends", None)) is None:
        return table
    parent = find_suite(
        str(file.parent / base) if str(base).endswith(".toml") else str(base)
    ).resolve()
    if parent in (*before, file.resolve()):
        raise UserError(f"suite file {file} extends itself by way of {parent.name}")
    inherited = _extended(parent, (*before, file.resolve()))
    local = [
        text
        for text in texts_in(inherited)
        if not text.startswith(PREFIX) and text not in ("", ".") and (parent.parent / text).exists()
    ]
    if local and parent.parent != file.resolve().parent:
        raise UserError(
            f"suite file {file} cannot extend {parent.name}: that one names '{local[0]}', relative"
            " to its own folder"
        )
    inherited.pop("name", None)
    return _laid_over(inherited, table)


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


def _refuse_unknown_keys(file: Path, table: dict[str, Any]) -> None:
    """Pydantic would refuse them too; this says what was probably meant."""
    sections: list[tuple[str, Any, type[BaseModel]]] = [
        ("", table, SuiteSettings),
        ("model.", table.get("model"), ModelSettings),
    ]
    prompts = table.get("prompts")
    if isinstance(prompts, dict):
        for role in prompts:
            if role not in ROLES:
                raise UnknownName(f"prompt role in {file.name}", role, ROLES)
        sections += [
            (f"prompts.{role}.", section, PromptSettings) for role, section in prompts.items()
        ]
    for prefix, section, model in sections:
        for key in section if isinstance(section, dict) else ():
            if key not in model.model_fields:
                raise UnknownName(
                    f"key in {file.name}",
                    prefix + key,
                    (prefix + known for known in model.model_fields),
                )
