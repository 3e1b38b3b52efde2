"""From `-p name=value` on the command line, or a table of a suite file, to a method, metric or
attack with checked fields.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.base.errors import UnknownName, UserError, one_line, visible
from bench.base.numbers import unusable_number

M = TypeVar("M", bound=BaseModel)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["sparsity=0.05", "branch=cond"]` to a dict; values are TOML where they parse as TOML and
    plain text otherwise.

    Raises `UserError` for what is not of this form, for a name that is given twice, and for values
    that no record can hold: infinities, NaN, integers of more than 63 bits, nesting beyond what
    can be read, NUL characters and bytes that are not UTF-8.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"parameter '{assignment}' is not of the form name=value")
        if name in values:
            raise UserError(f"parameter '{name}' is given twice")
        values[name] = _read(name, text)
    return values


def _read(name: str, text: str) -> Any:
    """The value that `text` stands for. Raises `UserError` where no record can hold it."""
    try:
        table = tomllib.loads(f"value = {text}")
        value = table["value"] if len(table) == 1 else text  # text of several lines is no value
    except tomllib.TOMLDecodeError:
        value = text
    except RecursionError:
        raise UserError(f"parameter '{name}' is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"parameter '{name}' cannot be read: {one_line(error)[:100]}") from error
    if reason := _unusable(value):
        raise UserError(f"parameter '{name}' {reason} (given: {visible(text)[:60]})")
    return value


def _unusable(value: Any) -> str | None:
    """Why neither a record nor a computation can hold a value; None for one that they can."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return next((reason for item in value if (reason := _unusable(item))), None)
    if isinstance(value, str) and "\0" in value:
        return "holds a NUL character"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return "holds bytes that are not UTF-8"
    return unusable_number(value)


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
