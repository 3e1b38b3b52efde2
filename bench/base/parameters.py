"""From `-p name=value` on the command line, or a table of a suite file, to a method, metric or
attack with checked fields.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.base.errors import UnknownName, UserError

M = TypeVar("M", bound=BaseModel)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["sparsity=0.05", "branch=cond"]` to a dict; values are TOML where they parse as TOML and
    plain text otherwise.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"parameter '{assignment}' is not of the form name=value")
        if name in values:
            raise UserError(f"parameter '{name}' is given twice")
        try:
            values[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = text
    return values


def configure(kind: str, name: str, cls: type[M], values: Mapping[str, Any]) -> M:
    """Build `cls` from values; a `UserError` names the field, what was given and what is
    allowed.
    """
    for key in values:
        if key not in cls.model_fields:
            raise UnknownName(f"parameter of {kind} {name}", key, cls.model_fields)
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(f"{kind} {name}: {validation_line(error)}") from error


def validation_line(error: ValidationError) -> str:
    """Every problem of a pydantic error on one line: where, what is wrong, what was given."""
    problems = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "value"
        given = "" if item["type"] == "missing" else f" (given: {str(item['input'])[:60]})"
        problems.append(f"{place}: {item['msg'][0].lower()}{item['msg'][1:]}{given}")
    return "; ".join(problems)
