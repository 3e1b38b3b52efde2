"""Reading files that hold one JSON record each: a damaged one costs itself only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bench.base import limits
from bench.base.errors import UserError, one_line
from bench.base.files import read_regular_file
from bench.base.parameters import validation_line

Form = TypeVar("Form", bound=BaseModel)


def load_file(path: Path, form: type[Form], what: str) -> Form:
    """One file of a form; `what` it is, for messages.

    Raises `UserError` when it is missing, damaged, too large or of another form.
    """
    try:
        return form.model_validate_json(read_regular_file(path, limits.RECORD_BYTES))
    except ValidationError as error:
        raise UserError(f"{what} {path}: {validation_line(error)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} cannot be read ({one_line(error)})") from error


def load_below(
    folder: Path, load: Callable[[Path], Form]
) -> tuple[list[Form], list[tuple[str, str]]]:
    """All files `<suite>/<name>.json` below a folder, by suite and name; and of each that cannot be
    used, the suite that it stands under and what is wrong.
    """
    found, damaged = list[Form](), list[tuple[str, str]]()
    for path in sorted(folder.glob("*/*.json")):
        try:
            found.append(load(path))
        except UserError as error:
            damaged.append((path.parent.name, one_line(error)))
    return found, damaged
