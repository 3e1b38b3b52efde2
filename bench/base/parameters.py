"""From `-p name=value` on the command line, or a table of a TOML file, to an object with checked
fields; and the one line that says what is wrong with either.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from bench.base import limits
from bench.base.errors import UnknownName, UserError, one_line, visible

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]  # keys and list positions from the outermost table inwards

DEEPEST = limits.TABLES_DEEP
LARGEST = 2**63 - 1  # the largest whole number that TOML promises to keep
GIVEN = 60  # characters of a wrong value that an error shows
PROBLEMS = 10  # of one table that an error tells; the others are counted


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document of texts, truth values, finite numbers of 64 bits, lists and tables.

    Raises `UserError` that says what is wrong and where: for what is no TOML, for other values,
    for NUL characters, and for what is nested more than `DEEPEST` deep.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise UserError("it is nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"it is not valid TOML: {one_line(error)}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f"it is not valid TOML: {one_line(error)[:120]}") from error
    waiting: list[tuple[Place, Any]] = [((), table)]
    while waiting:  # no recursion: dotted keys nest as deep as they like
        place, value = waiting.pop()
        if problem := _problem_of(place, value):
            raise UserError(f"{dotted(place)[:GIVEN] or 'it'} {problem}")
        if isinstance(value, dict):
            waiting += [((*place, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, index), item) for index, item in enumerate(value)]
    return table


def _problem_of(place: Place, value: Any) -> str:
    """What is wrong with one value or its key; empty where nothing is."""
    if len(place) > DEEPEST:
        return f"is nested more than {DEEPEST} deep"
    if any("\0" in text for text in (value, *place[-1:]) if isinstance(text, str)):
        return "holds a NUL character"
    if isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST:
        return "is a whole number beyond 64 bits"
    if isinstance(value, float) and not isfinite(value):
        return f"must be a finite number, not {value}"
    if not isinstance(value, (str, bool, int, float, list, dict)):
        return "is a date or a time, and none has a meaning here"
    return ""


def dotted(place: Sequence[str | int]) -> str:
    """A place in nested tables as people write it: `prompts.fit.limit`."""
    return ".".join(visible(str(part)) for part in place)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["sparsity=0.05", "branch=cond"]` to a dict; values are TOML where they parse as TOML and
    plain text otherwise.

    Raises `UserError` for what is no assignment, for a name that is given twice, and for values
    that cannot be kept (`parse_toml`).
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"parameter '{visible(assignment)}' is not of the form name=value")
        if name in values:
            raise UserError(f"parameter '{visible(name)}' is given twice")
        values[name] = _value_of(name, text)
    return values


def _value_of(name: str, text: str) -> Any:
    try:
        only_value = tomllib.loads(f"value = {text}").keys() == {"value"}
    except RecursionError:
        only_value = True  # which `parse_toml` refuses
    except tomllib.TOMLDecodeError:
        only_value = False
    except ValueError:
        only_value = True
    try:
        return parse_toml(f"value = {text}")["value"] if only_value else _plain_text(text)
    except UserError as error:
        what = str(error).removeprefix("value ").removeprefix("it ")
        raise UserError(f"parameter '{visible(name)}' {what}") from error


def _plain_text(text: str) -> str:
    if "\0" in text:
        raise UserError("holds a NUL character")
    return text


def configure(kind: str, name: str, cls: type[M], values: Mapping[str, Any]) -> M:
    """Build `cls` from values; a `UserError` names the field, what was given and what is
    allowed.
    """
    for key in values:  # a class of a plug-in may take any key without a word
        if key not in cls.model_fields:
            raise UnknownName(f"parameter of {kind} {name}", key, cls.model_fields)
    try:
        return cls(**values)
    except ValidationError as error:
        raise refusal(error, cls, f"parameter of {kind} {name}", f"{kind} {name}") from error


def refusal(error: ValidationError, model: type[BaseModel], kind: str, where: str) -> UserError:
    """What pydantic refused, as one line: the first unknown key with what was probably meant, else
    every problem, after `where`. `model` is the class that was to be made.
    """
    return unknown_key(error, model, kind) or UserError(f"{where}: {validation_line(error)}")


def unknown_key(error: ValidationError, model: type[BaseModel], kind: str) -> UnknownName | None:
    """The first key that pydantic did not know, with what was probably meant (`unknown <kind>
    'model.step': did you mean 'model.steps'?`); None where it knew them all.
    """
    for item in error.errors(include_url=False):
        place = item["loc"]
        if item["type"] == "literal_error" and place[-1:] == ("[key]",):
            place = place[:-1]
        elif item["type"] != "extra_forbidden":
            continue
        if known := _names_at(model, place[:-1]):
            return UnknownName(kind, dotted(place), [dotted((*place[:-1], name)) for name in known])
    return None


def _names_at(annotation: Any, place: Place) -> list[str]:
    """The names that the table at a place may have; none where any name will do."""
    for part in place:
        annotation = _type_inside(annotation, part)
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return list(choice.model_fields)
        if get_origin(choice) is dict and get_origin(get_args(choice)[0]) is Literal:
            return [str(name) for name in get_args(get_args(choice)[0])]
    return []


def _type_inside(annotation: Any, part: str | int) -> Any:
    """The type of one key of a table, or of the items of a list; None where it is not known."""
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            field = choice.model_fields.get(str(part))
            return field.annotation if field else None
        if get_origin(choice) is not None and get_args(choice):
            return get_args(choice)[1 if get_origin(choice) is dict else 0]
    return None


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def validation_line(error: ValidationError) -> str:
    """The problems of a pydantic error on one line: where, what is wrong, what was given."""
    problems = []
    items = error.errors(include_url=False)
    for item in items[:PROBLEMS]:
        given = "" if item["type"] == "missing" else f" (given: {_shown(item['input'])})"
        message = visible(f"{item['msg'][0].lower()}{item['msg'][1:]}")
        problems.append(f"{dotted(item['loc']) or 'value'}: {message}{given}")
    if len(items) > PROBLEMS:
        problems.append(f"and {len(items) - PROBLEMS} more")
    return "; ".join(problems)


def _shown(value: Any) -> str:
    try:
        return visible(str(value)[:GIVEN])
    except (ValueError, RecursionError):  # thousands of digits; tables inside one another
        return f"{type(value).__name__} that is too long to show"
